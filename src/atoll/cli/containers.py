"""What is asked about containers and pods, and done with those that are there."""

from __future__ import annotations

from typing import Annotated

import typer

from atoll.cli import completing
from atoll.cli.options import AsJson, Name, Names, Quiet, Socket, ask, moment_ns

app = typer.Typer()


@app.command("ps")
def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="Also what has ended.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    socket: Socket = None,
) -> None:
    """List containers and their pods."""
    from atoll.cli import work

    ask(socket, lambda client: work.ps(client, every=every, as_json=as_json, quiet=quiet))


@app.command("inspect")
def inspect(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="Names, IDs or unique beginnings of IDs.", autocompletion=completing.things
        ),
    ],
    timings: Annotated[bool, typer.Option("--timings", help="With the phases of every operation.")] = False,
    socket: Socket = None,
) -> None:
    """Everything about pods, containers and images, as JSON."""
    from atoll.cli import work

    ask(socket, lambda client: work.inspect(client, names, timings=timings))


@app.command("logs")
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Only so many lines.")] = None,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Like 10m, or 2026-01-31T12:00:00Z.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="End there.")] = "",
    times: Annotated[bool, typer.Option("--timestamps", "-t", help="When each line was written.")] = False,
    socket: Socket = None,
) -> None:
    """What a container wrote: its stdout to stdout, its stderr to stderr."""
    from atoll.cli import work

    since_ns, until_ns = moment_ns(since) if since else None, moment_ns(until) if until else None
    ask(
        socket,
        lambda client: work.logs(
            client, name, follow=follow, tail=tail, since_ns=since_ns, until_ns=until_ns, times=times
        ),
    )


@app.command("phases")
def phases(name: Name, as_json: AsJson = False, socket: Socket = None) -> None:
    """What each operation on a pod did, how long it took, what it waits on."""
    from atoll.cli import work

    ask(socket, lambda client: work.phases(client, name, as_json=as_json))


@app.command("why")
def why(name: Name, as_json: AsJson = False, socket: Socket = None) -> None:
    """What a pod waits on now: each phase, how long, and the process that holds it up; also while it is being made."""
    from atoll.cli.explaining import why as explain

    ask(socket, lambda client: explain(client, name, as_json=as_json))


# --- stop and remove ---


@app.command("stop")
def stop(
    names: Names,
    timeout: Annotated[float, typer.Option("--time", "-t", min=0, help="Seconds until it is killed.")] = 10.0,
    socket: Socket = None,
) -> None:
    """Stop containers or pods."""
    from atoll.cli import work

    ask(socket, lambda client: work.stop(client, names, timeout))


@app.command("rm")
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", autocompletion=completing.containers)] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also what runs.")] = False,
    every: Annotated[bool, typer.Option("--all", "-a", help="Every pod that has ended; with -f every pod.")] = False,
    socket: Socket = None,
) -> None:
    """Remove containers or pods."""
    from atoll.cli import work

    if bool(names) == every:
        raise typer.BadParameter("name what to remove, or use --all")
    ask(socket, lambda client: work.remove(client, names or [], force=force, every=every))
