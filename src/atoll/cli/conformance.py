"""`atoll conformance`: whether a controller or a shim of anybody keeps the rules. Needs no daemon.

Exit codes: 0 all checks passed, 1 some failed, 2 nothing could be tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import shlex
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from atoll import errors
from atoll.cli import outcome, show
from atoll.cli.outcome import FOUND

if TYPE_CHECKING:
    from atoll.testing.conformance.check import Check
    from atoll.testing.conformance.remote import Target
    from atoll.testing.conformance.report import Outcome, Report

app = typer.Typer(
    name="conformance", help="Check a sandbox controller or a shim against the rules.", no_args_is_help=True
)

UNTRIED = 2
JOBS = 4
TIMEOUT_S = 30.0
WIDTH = 100

C = TypeVar("C", bound="Check[Any]")

Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="PATTERN", help="Only checks or rules like this; repeatable.")
]
Skip = Annotated[list[str] | None, typer.Option("--skip", metavar="PATTERN", help="No checks or rules like this.")]
Destructive = Annotated[
    bool, typer.Option("--destructive", help="Also the checks that kill, restart, flood and hang up.")
]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long one call may take.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Checks at a time.")]
List = Annotated[bool, typer.Option("--list", help="List the checks that would run, and run none.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit's XML as well.")]


@app.command("controller")
def controller(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="unix:///path (gRPC), ttrpc+unix:///path, grpc+vsock://cid:port")
    ] = "",
    sandboxer: Annotated[str, typer.Option("--sandboxer", help="The name that its controller has there.")] = "",
    namespace: Annotated[str, typer.Option("--namespace", help="containerd's, which the sandboxes live in.")] = (
        "default"
    ),
    runtime: Annotated[str, typer.Option("--runtime", metavar="TYPE", help="As in io.containerd.runc.v2.")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The pods' config: JSON with the names of CRI.")
    ] = None,
    netns: Annotated[str, typer.Option("--netns", metavar="PATH", help="For pods with a network of their own.")] = "",
    restart: Annotated[
        str, typer.Option("--restart", metavar="COMMAND", help="Restarts its process, for --destructive.")
    ] = "",
    elsewhere: Annotated[bool, typer.Option("--elsewhere", help="Its processes cannot be seen from here.")] = False,
    only: Only = None,
    skip: Skip = None,
    destructive: Destructive = False,
    timeout: Timeout = TIMEOUT_S,
    jobs: Jobs = JOBS,
    list_only: List = False,
    as_json: AsJson = False,
    junit: Junit = None,
) -> None:
    """Check the controller that answers at ADDRESS."""
    from atoll.testing.conformance import CHECKS, check_controller
    from atoll.testing.conformance.remote import Target, host_network, read_config, remote

    chosen = choose(CHECKS, only, skip, destructive)
    if list_only:
        raise typer.Exit(list_checks(chosen))

    async def run(told: Callable[[Outcome], None]) -> Report:
        target = Target(
            address=address,
            sandboxer=sandboxer,
            namespace=namespace,
            runtime=runtime,
            config=host_network() if config is None else read_config(_text(config)),
            netns=netns,
            restart=tuple(shlex.split(restart)),
            elsewhere=elsewhere,
            within_s=timeout,
        )
        _need_address(target)
        async with remote(target) as subject:
            return await check_controller(subject, chosen, jobs=jobs, told=told)

    raise typer.Exit(_report(run, len(chosen), as_json=as_json, junit=junit))


def _need_address(target: Target) -> None:
    if not target.address:
        raise errors.InvalidArgument("no address was given; see `atoll conformance controller --help`")


@app.command("shim")
def shim(
    binary: Annotated[str, typer.Argument(metavar="BINARY", help="A path, or a type as io.containerd.runc.v2.")] = "",
    only: Only = None,
    skip: Skip = None,
    destructive: Destructive = False,
    timeout: Timeout = TIMEOUT_S,
    jobs: Jobs = JOBS,
    list_only: List = False,
    as_json: AsJson = False,
    junit: Junit = None,
) -> None:
    """Check a shim's binary as containerd drives it, with containers of busybox; as root."""
    from atoll.testing.conformance.shim import CHECKS, check_shim
    from atoll.testing.conformance.shim import shim as subject_of

    chosen = choose(CHECKS, only, skip, destructive)
    if list_only:
        raise typer.Exit(list_checks(chosen))

    async def run(told: Callable[[Outcome], None]) -> Report:
        if not binary:
            raise errors.InvalidArgument("no binary was given; see `atoll conformance shim --help`")
        async with subject_of(binary, within_s=timeout) as subject:
            return await check_shim(subject, chosen, jobs=jobs, told=told)

    raise typer.Exit(_report(run, len(chosen), as_json=as_json, junit=junit))


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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise errors.NotFound(f"{path}: cannot be read: {error.strerror}") from error


def _report(
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
            report = asyncio.run(_until_signalled(run(Progress(count))))
        if junit is not None:
            _write(junit, report.to_junit())
    except errors.AtollError as error:
        outcome.say(str(error))
        return UNTRIED
    if as_json:
        print(report.to_json())
    else:
        print_report(report)
    return 0 if report.is_passed else FOUND


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
