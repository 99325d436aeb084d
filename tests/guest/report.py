"""The guest's end of the report: one line a test on the serial console, and the verdict.

guest: passed|failed|skipped <seconds> <test>[: <reason>]
guest: verdict <passed> <failed> <skipped>
"""

from __future__ import annotations

from collections import Counter

import pytest

PREFIX = "guest:"


class Report:
    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.judged: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration  # pyright: ignore[reportArgumentType]  a Counter adds floats too
        if report.failed or report.skipped or (report.when == "teardown" and report.nodeid not in self.judged):
            if report.nodeid in self.judged and not report.failed:
                return
            self.judged.add(report.nodeid)
            self.outcomes[report.outcome] += 1
            reason = f": {report.longrepr[2]}" if report.skipped and isinstance(report.longrepr, tuple) else ""
            self.tell(f"{report.outcome} {self.seconds[report.nodeid]:.2f} {report.nodeid}{reason}")
            if report.failed:
                print(report.longreprtext, report.capstdout, report.capstderr, sep="\n", flush=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes["failed"] += 1
            self.tell(f"failed 0 {report.nodeid}: cannot be collected")

    def pytest_sessionfinish(self) -> None:
        found = self.outcomes
        self.tell(f"verdict {found['passed']} {found['failed']} {found['skipped']}")

    def tell(self, text: str) -> None:
        print(f"\n{PREFIX} {text}", flush=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Report(), "guest-report")
