"""The work of `atoll conformance`: which checks, running them, and the report."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from atoll import errors
from atoll.cli import outcome, show
from atoll.cli.outcome import FOUND

if TYPE_CHECKING:
    from atoll.testing.conformance.check import Check
    from atoll.testing.conformance.report import Outcome, Report

UNTRIED = 2

C = TypeVar("C", bound="Check[Any]")


def choose(checks: Sequence[C], only: Sequence[str] | None, skip: Sequence[str] | None, destructive: bool) -> list[C]:
    """The checks whose name or one of whose rules is like a pattern of `only`, and like none of `skip`."""

    def like(check: C, patterns: Sequence[str]) -> bool:
        names = (check.name, *check.rules)
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return [
        check
        for check in checks
        if (destructive or not check.destructive) and (not only or like(check, only)) and not like(check, skip or ())
    ]


def list_checks(checks: Sequence[Check[Any]]) -> int:
    """Print what each check claims and where its rule comes from."""
    show.table(("CHECK", "RULE", "CLAIM"), [(one.name, one.origin, one.claim) for one in checks])
    return 0


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise errors.NotFound(f"{path}: cannot be read: {error.strerror}") from error


def report(
    run: Callable[[Callable[[Outcome], None]], Coroutine[Any, Any, Report]],
    count: int,
    *,
    as_json: bool,
    junit: Path | None,
) -> int:
    """Run, print, and the exit code; what stops the run before a check is one line."""
    if count == 0:
        outcome.say("no check is like that; see --list")
        return UNTRIED
    try:
        with _silence():
            told = asyncio.run(_until_signalled(run(Progress(count))))
        if junit is not None:
            _write(junit, told.to_junit())
    except errors.AtollError as error:
        outcome.say(str(error))
        return UNTRIED
    if as_json:
        print(told.to_json())
    else:
        print_report(told)
    return 0 if told.is_passed else FOUND


@contextlib.contextmanager
def _silence() -> Generator[None]:
    """What goes wrong is in the report; the parts' own logs would stand between its lines."""
    log = logging.getLogger("atoll")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


class Progress:
    """Tells on a terminal how far it is."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0

    def __call__(self, found: Outcome) -> None:
        self._done += 1
        if sys.stderr.isatty():
            end = "\r\x1b[K" if self._done == self._count else ""
            print(f"\r\x1b[K{self._done}/{self._count} {found.check.name}{end}", end="", file=sys.stderr, flush=True)


async def _until_signalled(work: Coroutine[Any, Any, Report]) -> Report:
    """SIGTERM ends a run as SIGINT does: what was made is cleared away first."""
    async with _cancelled_by(signal.SIGTERM):
        return await work


@contextlib.asynccontextmanager
async def _cancelled_by(number: signal.Signals) -> AsyncGenerator[None]:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, task.cancel)
    except (ValueError, RuntimeError):  # not the main thread: its signals are somebody else's
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(number)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise errors.Unavailable(f"{path}: cannot be written: {error.strerror}") from error


def print_report(report: Report) -> None:
    """A line for each check, then what was expected and what came of each that failed."""
    marks = {"passed": "ok", "skipped": "skip", "failed": "FAILED"}
    rows = [
        (marks[one.verdict], one.check.name, ", ".join(one.check.rules), show.seconds(one.duration_s))
        for one in report.outcomes
    ]
    show.table(("", "CHECK", "RULES", "TIME"), rows, right=("TIME",))
    for one in report.skips:
        print(f"\n{one.check.name} does not apply: {one.text}")
    for one in report.failures:
        print(f"\n{one.check.name}: {one.check.claim}")
        print(f"  rule      {one.check.origin}")
        print(f"  looked at {one.what}")
        print(f"  expected  {one.expected}")
        print(f"  got       {one.got}")
        for left in one.left:
            print(f"  left      {left}")
    print(f"\n{report.subject}: {report.summary}")
