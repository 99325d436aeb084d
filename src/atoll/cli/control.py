"""What is done to containers that run, and watched of them."""

from __future__ import annotations

from typing import Annotated

import typer

from atoll.cli import completing
from atoll.cli.options import AsJson, Name, Names, Socket, ask, moment_ns

app = typer.Typer()

Times = Annotated[str, typer.Option("--since", metavar="TIME", help="Like 10m, or 2026-01-31T12:00:00Z.")]


@app.command("kill")
def kill(
    names: Names,
    signal: Annotated[str, typer.Option("--signal", "-s", help="A name or a number.")] = "KILL",
    everything: Annotated[bool, typer.Option("--all-processes", help="Not the main process alone.")] = False,
    socket: Socket = None,
) -> None:
    """Send containers a signal."""
    from atoll.cli import controlling as work

    number = work.signal_number(signal)
    ask(socket, lambda client: work.kill(client, names, number, everything=everything))


@app.command("restart")
def restart(
    names: Names,
    timeout: Annotated[float, typer.Option("--time", "-t", min=0, help="Seconds until it is killed.")] = 10.0,
    socket: Socket = None,
) -> None:
    """Stop containers and begin their commands anew, with the same files and log; one that has ended is started."""
    from atoll.cli import controlling as work

    ask(socket, lambda client: work.restart(client, names, timeout))


@app.command("pause")
def pause(names: Names, socket: Socket = None) -> None:
    """Freeze every process of containers."""
    from atoll.cli import controlling as work

    ask(socket, lambda client: work.pause(client, names))


@app.command("resume")
def resume(names: Names, socket: Socket = None) -> None:
    """Let paused containers go on."""
    from atoll.cli import controlling as work

    ask(socket, lambda client: work.resume(client, names))


@app.command("update")
def update(
    names: Names,
    cpus: Annotated[float | None, typer.Option("--cpus", help="Limit, in CPUs.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", "-m", metavar="SIZE", help="Limit, as in 64MiB.")] = None,
    pids: Annotated[int | None, typer.Option("--pids", metavar="NUMBER", help="Limit, in processes.")] = None,
    socket: Socket = None,
) -> None:
    """Change limits of containers while they run; those not named stay."""
    from atoll.cli import controlling as work

    if cpus is None and memory is None and pids is None:
        raise typer.BadParameter("name a limit: --cpus, --memory or --pids")
    ask(socket, lambda client: work.update(client, names, cpus=cpus, memory=memory, pids=pids))


@app.command("wait")
def wait(names: Names, socket: Socket = None) -> None:
    """Wait for the ends of containers; print their exit codes."""
    from atoll.cli import controlling as work

    ask(socket, lambda client: work.wait(client, names))


@app.command("top")
def top(name: Name, as_json: AsJson = False, socket: Socket = None) -> None:
    """The processes of a container, by their pids on the host."""
    from atoll.cli import controlling as work

    ask(socket, lambda client: work.top(client, name, as_json=as_json))


@app.command("stats")
def stats(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="Pods or containers; all by default.", autocompletion=completing.containers
        ),
    ] = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Once, after one interval.")] = False,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Between two looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
    socket: Socket = None,
) -> None:
    """What containers use, as a table that is kept up to date."""
    from atoll.cli import live

    ask(socket, lambda client: live.stats(client, names or [], once=no_stream, interval_s=interval, as_json=as_json))


@app.command("events")
def events(
    since: Times = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="End there.")] = "",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", metavar="KEY=VALUE", help="By type, pod or container; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
    socket: Socket = None,
) -> None:
    """What happens to pods and containers, and since a time what has happened since the daemon's start."""
    from atoll.cli import live

    begin, end = moment_ns(since) if since else None, moment_ns(until) if until else None
    wanted = live.Filter.parse(filters or [])
    ask(socket, lambda client: live.events(client, since_ns=begin, until_ns=end, wanted=wanted, as_json=as_json))


@app.command("port-forward")
def port_forward(
    name: Name,
    ports: Annotated[list[str], typer.Argument(metavar="[LOCAL:]PORT", help="As in 8080:80, or :80 for any free one.")],
    address: Annotated[str, typer.Option("--address", help="Where to listen.")] = "127.0.0.1",
    socket: Socket = None,
) -> None:
    """Lead local ports to ports of a pod, until Ctrl-C."""
    from atoll.cli import forwarding

    wanted = [forwarding.parse(port) for port in ports]
    ask(socket, lambda client: forwarding.forward(client, name, wanted, address))


@app.command("cp")
def cp(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A path, NAME:PATH, or - for a tar on stdin.", autocompletion=completing.sides
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A path, NAME:PATH, or - for a tar on stdout.", autocompletion=completing.sides
        ),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    socket: Socket = None,
) -> None:
    """Copy files and folders into a container or out of it."""
    from atoll.cli import copying

    one, other = copying.Place.parse(source), copying.Place.parse(target)
    copying.require(one, other)
    ask(socket, lambda client: copying.copy(client, one, other, quiet=quiet))


@app.command("prune")
def prune(
    images: Annotated[bool, typer.Option("--images", help="Also images that no container uses.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask.")] = False,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Remove pods in which nothing runs, and with --images what no container uses."""
    from atoll.cli import pruning

    pruning.confirm(images=images, force=force)
    ask(socket, lambda client: pruning.prune(client, images=images, as_json=as_json))
