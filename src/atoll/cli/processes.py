"""Processes that run beside a container's main one and outlive their callers: `atoll process`."""

from __future__ import annotations

from typing import Annotated

import typer

from atoll.cli import completing
from atoll.cli.options import DETACH_KEYS, AsJson, DetachKeys, Name, Quiet, Socket, ask

app = typer.Typer()
process = typer.Typer(
    help="Processes beside a container's main one that the daemon keeps: exec -d, exec -it that was left.",
    no_args_is_help=True,
)
app.add_typer(process, name="process")

ProcessId = Annotated[
    str,
    typer.Argument(metavar="PROCESS", help="Its ID, as `process ls` has it.", autocompletion=completing.processes),
]
ProcessIds = Annotated[
    list[str],
    typer.Argument(metavar="PROCESS", help="IDs, as `process ls` has them.", autocompletion=completing.processes),
]


@process.command("ls")
def ls(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of one container.", autocompletion=completing.containers)
    ] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
    socket: Socket = None,
) -> None:
    """List the processes, ended ones too, until they are removed."""
    from atoll.cli import keeping

    ask(socket, lambda client: keeping.ls(client, name, as_json=as_json, quiet=quiet))


@process.command("attach")
def attach(name: Name, process_id: ProcessId, detach_keys: DetachKeys = DETACH_KEYS, socket: Socket = None) -> None:
    """Come back to one that has a terminal; ends with its exit code, or with 0 by the keys that detach."""
    from atoll.cli import keeping
    from atoll.cli.terminal import detach_sequence

    keys = detach_sequence(detach_keys)
    ask(socket, lambda client: keeping.attach(client, name, process_id, keys=keys))


@process.command("logs")
def logs(
    name: Name,
    process_id: ProcessId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    socket: Socket = None,
) -> None:
    """What one wrote, as far as it is kept: its stdout to stdout, its stderr to stderr."""
    from atoll.cli import keeping

    ask(socket, lambda client: keeping.logs(client, name, process_id, follow=follow))


@process.command("kill")
def kill(
    name: Name,
    process_ids: ProcessIds,
    signal: Annotated[str, typer.Option("--signal", "-s", help="A name or a number.")] = "KILL",
    socket: Socket = None,
) -> None:
    """Send some a signal."""
    from atoll.cli import keeping
    from atoll.cli.controlling import signal_number

    number = signal_number(signal)
    ask(socket, lambda client: keeping.kill(client, name, process_ids, number))


@process.command("rm")
def rm(
    name: Name,
    process_ids: ProcessIds,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also what runs: it is killed.")] = False,
    socket: Socket = None,
) -> None:
    """Forget some, with what they wrote."""
    from atoll.cli import keeping

    ask(socket, lambda client: keeping.remove(client, name, process_ids, force=force))
