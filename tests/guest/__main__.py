"""`scripts/guest-test`: boot the guest once for each cgroup layout and judge what it reports.

Anything after `--` goes to pytest in the guest instead of the guest's own tests; paths are relative to the repository.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.guest import image, machine, project
from tests.guest.report import PREFIX

LAYOUTS = ("v1", "hybrid", "v2")
OWN_TESTS = ["tests/guest"]
TIMEOUT_S = 1800.0
CONSOLE_TAIL = 60


def main() -> int:
    """0 where every boot's tests passed, 1 where not, 2 where no guest can be made here."""
    asked, pytest_arguments = parse(sys.argv[1:])
    if shutil.which(machine.QEMU) is None:
        print(f"guest-test: {machine.QEMU} is missing: apt-get install qemu-system-x86", file=sys.stderr)
        return 2
    try:
        guest = image.built()
    except image.CannotBuild as error:
        print(f"guest-test: {error}", file=sys.stderr)
        return 2
    outcomes = {layout: one_boot(guest, layout, asked, pytest_arguments) for layout in asked.cgroups or LAYOUTS}
    for layout, outcome in outcomes.items():
        print(f"guest-test: {'good' if outcome.is_good else 'BAD'}: cgroups {layout}: {summary(outcome)}")
    return 0 if all(outcome.is_good for outcome in outcomes.values()) else 1


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    own, pytest_arguments = words, OWN_TESTS
    if "--" in words:
        own, pytest_arguments = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="guest-test", description=__doc__)
    parser.add_argument("--cgroups", action="append", choices=LAYOUTS, help="only this layout; may be repeated")
    parser.add_argument("--apparmor", action="store_true", help="with AppArmor, as on a Debian host")
    parser.add_argument("--commit", default="", help="test this commit instead of the working tree")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for one boot (default %(default)s)")
    return parser.parse_args(own), pytest_arguments


def one_boot(
    guest: image.Image, layout: str, asked: argparse.Namespace, pytest_arguments: list[str]
) -> machine.Outcome:
    security = ["apparmor=1", "security=apparmor"] if asked.apparmor else ["apparmor=0"]
    words = [f"guest.cgroups={layout}", *security]
    console = image.FOLDER / f"console-{layout}{'-apparmor' if asked.apparmor else ''}.log"
    console.unlink(missing_ok=True)  # another run may be writing it
    with tempfile.NamedTemporaryFile(dir=image.FOLDER, prefix="project-") as disk:
        project.write(Path(disk.name), pytest_arguments, asked.commit)
        outcome = machine.boot(guest, Path(disk.name), words, console, asked.timeout, show)
    if not outcome.is_good:
        print("\n".join(console.read_text(errors="replace").splitlines()[-CONSOLE_TAIL:]))
    return outcome


def show(line: str) -> None:
    """Print a line of the report, unless it is about a test that was skipped: the console's file has those."""
    if not line.startswith(f"{PREFIX} skipped"):
        print(line, flush=True)


def summary(outcome: machine.Outcome) -> str:
    counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
    if outcome.ran_out_of_time:
        counts = "killed at the end of its time"
    elif not outcome.has_verdict:
        counts = "ended without a verdict"
    return f"{counts}, {outcome.seconds:.0f} s; all it wrote is in {outcome.console.relative_to(image.REPOSITORY)}"


if __name__ == "__main__":
    sys.exit(main())
