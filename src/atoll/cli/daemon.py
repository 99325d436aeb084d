"""The daemon, the host, and sandboxers of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import serving
from atoll.cli.options import AsJson, ConfigFile, LogLevel, Root, Socket, State, ask

app = typer.Typer()


@app.command("serve")
def serve(
    root: Root = None,
    state: State = None,
    socket: Socket = None,
    config: ConfigFile = None,
    log_level: Annotated[LogLevel | None, typer.Option("--log-level")] = None,
    idle_exit: Annotated[
        float | None, typer.Option("--idle-exit", metavar="SECONDS", min=0, help="End when unused for so long.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", hidden=True)] = False,
) -> None:
    """Run the daemon."""
    asked = serving.Asked(
        root=root,
        state=state,
        socket=socket,
        config=config,
        log_level=log_level.value if log_level is not None else "",
        idle_exit_s=idle_exit,
        private=private,
    )
    raise typer.Exit(serving.run(asked))


@app.command("fsck")
def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can be.")] = False,
    abandon: Annotated[
        list[str] | None,
        typer.Option("--abandon", metavar="ID", help="Give up a sandbox whose remote sandboxer is gone for good."),
    ] = None,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Compare the books with the machine: 0 when all is clean, 1 when something was found."""
    from atoll.cli import work

    names = tuple(abandon or ())
    ask(socket, lambda client: work.fsck(client, repair=repair, abandon=names, as_json=as_json))


@app.command("reload")
def reload(as_json: AsJson = False, socket: Socket = None) -> None:
    """Have the daemon read its configuration file again; one with a mistake is refused, and changes nothing."""
    from atoll.cli import work

    ask(socket, lambda client: work.reload(client, as_json=as_json))


@app.command("doctor")
def doctor(
    root: Root = None,
    state: State = None,
    socket: Socket = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """What this host has and lacks, and the way to fix it; needs no daemon."""
    import asyncio

    import msgspec

    from atoll import config as configuration
    from atoll.cli.doctor import report

    chosen = configuration.load(config)
    flags = serving.folders(root, state)
    if socket is not None:
        flags["socket"] = str(socket.absolute())
    chosen = configuration.check(msgspec.structs.replace(chosen, **flags), "atoll doctor")
    raise typer.Exit(asyncio.run(report(chosen, as_json=as_json, own_folders=bool(root or state))))


sandboxer = typer.Typer(help="Sandboxers of one's own.", no_args_is_help=True)
app.add_typer(sandboxer, name="sandboxer")


@sandboxer.command("new")
def new_sandboxer(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters and digits, in parts joined by '-'.")],
    parent: Annotated[Path, typer.Option("--in", metavar="DIR", help="Where the project's folder is made.")] = Path(),
) -> None:
    """Write a project of a controller that runs and passes the conformance kit."""
    from atoll.cli.sandboxer import new

    raise typer.Exit(new(name, parent))


@app.command("version")
def version(as_json: AsJson = False, socket: Socket = None) -> None:
    """The versions of this command and of the daemon; starts none."""
    from atoll.cli.version import show_version

    raise typer.Exit(show_version(socket, as_json=as_json))
