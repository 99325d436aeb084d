"""`atoll conformance`: whether a controller or a shim of anybody keeps the rules. Needs no daemon.

Exit codes: 0 all checks passed, 1 some failed, 2 nothing could be tried.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll import errors

if TYPE_CHECKING:
    from atoll.testing.conformance.remote import Target
    from atoll.testing.conformance.report import Outcome, Report

app = typer.Typer(
    name="conformance", help="Check a sandbox controller or a shim against the rules.", no_args_is_help=True
)

JOBS = 4
TIMEOUT_S = 30.0

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
    import shlex

    from atoll.cli import checking
    from atoll.testing.conformance import CHECKS, check_controller
    from atoll.testing.conformance.remote import Target, host_network, read_config, remote

    chosen = checking.choose(CHECKS, only, skip, destructive)
    if list_only:
        raise typer.Exit(checking.list_checks(chosen))

    async def run(told: Callable[[Outcome], None]) -> Report:
        target = Target(
            address=address,
            sandboxer=sandboxer,
            namespace=namespace,
            runtime=runtime,
            config=host_network() if config is None else read_config(checking.read_text(config)),
            netns=netns,
            restart=tuple(shlex.split(restart)),
            elsewhere=elsewhere,
            within_s=timeout,
        )
        _need_address(target)
        async with remote(target) as subject:
            return await check_controller(subject, chosen, jobs=jobs, told=told)

    raise typer.Exit(checking.report(run, len(chosen), as_json=as_json, junit=junit))


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
    from atoll.cli import checking
    from atoll.testing.conformance.shim import CHECKS, check_shim
    from atoll.testing.conformance.shim import shim as subject_of

    chosen = checking.choose(CHECKS, only, skip, destructive)
    if list_only:
        raise typer.Exit(checking.list_checks(chosen))

    async def run(told: Callable[[Outcome], None]) -> Report:
        if not binary:
            raise errors.InvalidArgument("no binary was given; see `atoll conformance shim --help`")
        async with subject_of(binary, within_s=timeout) as subject:
            return await check_shim(subject, chosen, jobs=jobs, told=told)

    raise typer.Exit(checking.report(run, len(chosen), as_json=as_json, junit=junit))
