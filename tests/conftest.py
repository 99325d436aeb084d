"""What holds for every test: a skip is accounted for, and nothing blocks the event loop."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator

import pytest

IN_CI = os.environ.get("CI") == "true"

EXPECTED_SKIPS = (
    r"^needs cgroup v[12]: this host has ",
    r"^needs the kernel's .+: this host has none",
    r"^needs CAP_[A-Z_]+$",
)
"""Reasons that excuse a skip in CI: what a host cannot be given by installing a package."""

TICK_S = 0.05
BLOCKED_LIMIT_S = 0.5


class SkipAccount:
    """Counts the skips whose reason is none of `EXPECTED_SKIPS`; in CI such a skip fails the run."""

    def __init__(self) -> None:
        self.unexpected: list[tuple[str, str]] = []

    def enter(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = text.removeprefix("Skipped: ")
        if not any(re.search(expected, reason) for expected in EXPECTED_SKIPS):
            self.unexpected.append((report.nodeid, reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.enter(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.enter(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if IN_CI and self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if IN_CI and self.unexpected:
            terminalreporter.section("skips that CI does not expect (tests/conftest.py lists those it does)", red=True)
            for nodeid, reason in self.unexpected:
                terminalreporter.line(f"{nodeid}: {reason}")


class LoopWatch:
    """Sees when one callback of an event loop runs for too long, and notes the stack it then had.

    It counts its own ticks while the same callback runs in a thread, so a machine that stands still blames nobody.
    """

    def __init__(self) -> None:
        self._callbacks = 0
        self._running: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)
        self.longest_s = 0.0
        self.stack = ""

    def start(self) -> None:
        run = asyncio.Handle._run

        def watched(handle: asyncio.Handle) -> None:
            thread = threading.get_ident()
            outer = self._running.get(thread)
            self._callbacks += 1
            self._running[thread] = self._callbacks
            try:
                run(handle)
            finally:
                if outer is None:
                    del self._running[thread]
                else:
                    self._running[thread] = outer

        self._original = run
        setattr(asyncio.Handle, "_run", watched)  # noqa: B010 - its parameter is called self
        self._thread.start()

    def stop(self) -> None:
        setattr(asyncio.Handle, "_run", self._original)  # noqa: B010
        self._ended.set()
        self._thread.join()

    def reset(self) -> None:
        self.longest_s, self.stack = 0.0, ""

    def _watch(self) -> None:
        seen: dict[int, int] = {}
        ticks: dict[int, int] = {}
        while not self._ended.wait(TICK_S):
            running = dict(self._running)
            ticks = {thread: ticks.get(thread, 0) + 1 for thread, at in running.items() if seen.get(thread) == at}
            seen = running
            for thread, count in ticks.items():
                if count * TICK_S > self.longest_s:
                    self.longest_s = count * TICK_S
                    frame = sys._current_frames().get(thread)
                    self.stack = "".join(traceback.format_stack(frame)[-8:]) if frame else "(its thread has ended)"


@pytest.fixture(scope="session")
def loop_watch() -> Iterator[LoopWatch]:
    """The watch of this run; one thread for all tests."""
    watch = LoopWatch()
    watch.start()
    yield watch
    watch.stop()


@pytest.fixture(autouse=True)
def loop_is_never_blocked(request: pytest.FixtureRequest, loop_watch: LoopWatch) -> Iterator[None]:
    """Fails a test that holds its event loop for BLOCKED_LIMIT_S, or for what its mark `may_block(seconds)` says."""
    marker = request.node.get_closest_marker("may_block")
    limit_s = float(marker.args[0]) if marker else BLOCKED_LIMIT_S
    loop_watch.reset()
    yield
    if loop_watch.longest_s >= limit_s:
        pytest.fail(
            f"the event loop was blocked for {loop_watch.longest_s:.2f} s (limit {limit_s:g} s):\n{loop_watch.stack}",
            pytrace=False,
        )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipAccount(), "skip-account")
