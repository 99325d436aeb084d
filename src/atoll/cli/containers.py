"""`run`, `exec` and what is done with containers and pods that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import outcome
from atoll.cli.options import (
    COMMAND_LINE,
    AsJson,
    Interactive,
    Name,
    Names,
    NetworkChoice,
    Ports,
    PullChoice,
    Quiet,
    Socket,
    Terminal,
    User,
    Variables,
    Volumes,
    Workdir,
    ask,
    moment_ns,
    own_words,
    variables,
)

if TYPE_CHECKING:
    from atoll.client import Client, Container, Pod

app = typer.Typer()


@app.command("run", context_settings=COMMAND_LINE)
def run(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="As in atoll/busybox or docker.io/library/alpine:3.")],
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND", help="In place of the image's own.")] = None,
    name: Annotated[str, typer.Option("--name", help="Of the container and its pod.")] = "",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running and print its ID.")] = False,
    interactive: Interactive = False,
    tty: Terminal = False,
    publish: Ports = None,
    env: Variables = None,
    volume: Volumes = None,
    cpus: Annotated[float | None, typer.Option("--cpus", help="Limit, in CPUs.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", "-m", metavar="SIZE", help="Limit, as in 64MiB.")] = None,
    pids: Annotated[
        int | None, typer.Option("--pids-limit", metavar="NUMBER", help="Limit, in processes and threads.")
    ] = None,
    network: Annotated[NetworkChoice, typer.Option("--network", help="How it is connected.")] = NetworkChoice.default,
    user: User = "",
    workdir: Workdir = "",
    entrypoint: Annotated[str, typer.Option("--entrypoint", help="In place of the image's own.")] = "",
    hostname: Annotated[str, typer.Option("--hostname", help="\\[default: the name]")] = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="Read-only root file system.")] = False,
    runtime: Annotated[str, typer.Option("--runtime", help="A runtime handler of the config file.")] = "",
    pull: Annotated[PullChoice, typer.Option("--pull", help="When to fetch the image.")] = PullChoice.missing,
    remove: Annotated[
        bool | None,
        typer.Option("--rm/--keep", help="Remove the pod at the end, or leave it. \\[default: --rm; with -d --keep]"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    timings: Annotated[bool, typer.Option("--timings", help="Then tell how long each step took.")] = False,
    socket: Socket = None,
) -> None:
    """Run a container in a pod of its own."""
    if detach and remove:
        raise typer.BadParameter("-d with --rm: nobody waits for its end; leave --rm out, and `atoll rm` it later")

    from atoll.cli import work
    from atoll.cli.run import RunOptions
    from atoll.cli.run import run as run_it
    from atoll.client import request

    options = RunOptions(
        container=request.ContainerOptions(
            image=image,
            command=tuple(own_words(command)),
            entrypoint=(entrypoint,) if entrypoint else (),
            name=name,
            env=variables(env),
            cwd=workdir,
            user=user,
            mounts=tuple(request.parse_mount(one) for one in volume or ()),
            cpus=cpus,
            memory=memory,
            pids=pids,
            tty=tty,
            stdin=interactive,
            read_only=read_only,
        ),
        network=network.value,
        ports=tuple(request.parse_publish(one) for one in publish or ()),
        runtime=runtime,
        hostname=hostname,
        detach=detach,
        keep=remove is False,
        pull=pull.value,
        quiet=quiet,
    )

    options.check()

    async def report(pod: Pod, container: Container) -> None:
        if detach:
            print(container.id)
        if timings:
            work.print_phases(await pod.phases())

    ask(socket, lambda client: run_it(client, options, report))


@app.command("exec", context_settings=COMMAND_LINE)
def execute(
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="With its arguments.")],
    interactive: Interactive = False,
    tty: Terminal = False,
    env: Variables = None,
    user: User = "",
    workdir: Workdir = "",
    timeout: Annotated[float | None, typer.Option("--timeout", help="Kill its tree after so many seconds.")] = None,
    socket: Socket = None,
) -> None:
    """Run one more command in a container."""
    from atoll.cli import run as running
    from atoll.cli import terminal
    from atoll.client.container import command_error
    from atoll.client.model import Cause
    from atoll.errors import AtollError

    words = own_words(command)
    if not words:
        raise typer.BadParameter("missing argument 'COMMAND'")

    async def work(client: Client) -> int:
        container = await client.container(name)
        if tty:
            running.require_terminal()
        process = container.exec_stream(
            words,
            timeout=timeout,
            env=variables(env),
            cwd=workdir,
            user=user,
            tty=tty,
            stdin=interactive,
            size=terminal.size() if tty else None,
        )
        try:
            end = await running.execute(process, tty=tty, stdin=interactive)
        except AtollError as error:
            raise command_error(error) from None
        if end.cause is Cause.TIMEOUT:
            outcome.say(f"exec in {name}: was killed, for it took longer than --timeout {timeout:g} s")
        return end.code

    ask(socket, work)


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
    names: Names,
    timings: Annotated[bool, typer.Option("--timings", help="With the phases of every operation.")] = False,
    socket: Socket = None,
) -> None:
    """Everything about pods and containers, as JSON."""
    from atoll.cli import work

    ask(socket, lambda client: work.inspect(client, names, timings=timings))


@app.command("logs")
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Only so many lines.")] = None,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Like 10m, or 2026-01-31T12:00:00Z.")] = "",
    times: Annotated[bool, typer.Option("--timestamps", "-t", help="When each line was written.")] = False,
    socket: Socket = None,
) -> None:
    """What a container wrote: its stdout to stdout, its stderr to stderr."""
    from atoll.cli import work

    since_ns = moment_ns(since) if since else None
    ask(
        socket,
        lambda client: work.logs(client, name, follow=follow, tail=tail, since_ns=since_ns, times=times),
    )


@app.command("phases")
def phases(name: Name, as_json: AsJson = False, socket: Socket = None) -> None:
    """What each operation on a pod did, how long it took, what it waits on."""
    from atoll.cli import work

    ask(socket, lambda client: work.phases(client, name, as_json=as_json))


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
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also what runs.")] = False,
    every: Annotated[bool, typer.Option("--all", "-a", help="Every pod that has ended; with -f every pod.")] = False,
    socket: Socket = None,
) -> None:
    """Remove containers or pods."""
    from atoll.cli import work

    if bool(names) == every:
        raise typer.BadParameter("name what to remove, or use --all")
    ask(socket, lambda client: work.remove(client, names or [], force=force, every=every))
