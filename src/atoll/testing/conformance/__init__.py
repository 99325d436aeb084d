"""The conformance kit: every rule of the sandbox contract, and of containerd's shims, as a check with a name.

    report = await check_controller(Subject(controller=mine, sandbox=..., options=...))
    assert report.is_passed, report

check       what a check is: a name, a claim, where the rule comes from; expectations
subject     a controller to be tried, and the trial of one check on it
bounded     a controller whose every call ends in time
host        what a sandbox has on its host, seen from outside
run         runs checks beside each other, each within its time, and cleans up behind them
report      what came of it: text, JSON, JUnit
controller  the checks of controllers
remote      a controller behind an address as a subject
shim        the checks of shim binaries, and their subject
"""

from atoll.testing.conformance.check import Broken, Check, NotApplicable
from atoll.testing.conformance.controller import CHECKS, DESTRUCTIVE, SAFE, check_controller
from atoll.testing.conformance.host import Host, LinuxHost, Trace
from atoll.testing.conformance.report import Outcome, Report, Verdict
from atoll.testing.conformance.subject import Subject, Trial

__all__ = [
    "CHECKS",
    "DESTRUCTIVE",
    "SAFE",
    "Broken",
    "Check",
    "Host",
    "LinuxHost",
    "NotApplicable",
    "Outcome",
    "Report",
    "Subject",
    "Trace",
    "Trial",
    "Verdict",
    "check_controller",
]
