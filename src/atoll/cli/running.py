"""`run`, `exec` and `attach`: a process with the user's streams or terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import completing, outcome
from atoll.cli.options import (
    COMMAND_LINE,
    DETACH_KEYS,
    DetachKeys,
    Interactive,
    Name,
    NetworkChoice,
    PullChoice,
    Socket,
    Terminal,
    User,
    Variables,
    Workdir,
    ask,
    own_words,
    pairs,
    variables,
    variables_of_file,
)

if TYPE_CHECKING:
    from atoll.client import Client

app = typer.Typer()

Ports = Annotated[
    list[str] | None,
    typer.Option("--publish", "-p", metavar="[IP:]HOST:POD[/udp]", help="Publish a port; may be repeated."),
]
Volumes = Annotated[
    list[str] | None,
    typer.Option("--volume", "-v", metavar="HOST:TARGET[:ro]", help="Mount a folder; may be repeated."),
]
EnvFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--env-file", metavar="FILE", help="Variables, one a line; may be repeated, --env wins.", readable=False
    ),
]
Labels = Annotated[list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="May be repeated.")]
Tmpfs = Annotated[
    list[str] | None,
    typer.Option("--tmpfs", metavar="TARGET[:OPTIONS]", help="A file system in memory, as in /run:size=64m,mode=1777."),
]
Ulimits = Annotated[
    list[str] | None, typer.Option("--ulimit", metavar="NAME=SOFT[:HARD]", help="As in nofile=1024:4096.")
]
CapAdd = Annotated[list[str] | None, typer.Option("--cap-add", metavar="CAPABILITY", help="As in NET_ADMIN, or ALL.")]
CapDrop = Annotated[list[str] | None, typer.Option("--cap-drop", metavar="CAPABILITY", help="As in CHOWN, or ALL.")]
ImageName = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE", help="As in atoll/busybox or docker.io/library/alpine:3.", autocompletion=completing.images
    ),
]
RunCommand = Annotated[list[str] | None, typer.Argument(metavar="COMMAND", help="In place of the image's own.")]
RunName = Annotated[str, typer.Option("--name", help="Of the container and its pod.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Leave it running and print its ID.")]
Cpus = Annotated[float | None, typer.Option("--cpus", help="Limit, in CPUs.")]
Memory = Annotated[str | None, typer.Option("--memory", "-m", metavar="SIZE", help="Limit, as in 64MiB.")]
Pids = Annotated[
    int | None, typer.Option("--pids", "--pids-limit", metavar="NUMBER", help="Limit, in processes and threads.")
]
Network = Annotated[NetworkChoice, typer.Option("--network", help="How it is connected.")]
Init = Annotated[bool, typer.Option("--init", help="A first process that reaps, so that the command need not.")]
Remove = Annotated[
    bool | None,
    typer.Option(
        "--rm/--keep",
        help="Remove the pod at the end, or leave it; with -d the daemon does. \\[default: --rm; with -d --keep]",
    ),
]
Ttl = Annotated[
    float | None, typer.Option("--ttl", metavar="SECONDS", help="The daemon removes the pod after so long.")
]
Idle = Annotated[
    float | None,
    typer.Option("--idle", metavar="SECONDS", help="The same after so long without an exec, attach or followed log."),
]


@app.command("run", context_settings=COMMAND_LINE)
def run(
    image: ImageName,
    command: RunCommand = None,
    name: RunName = "",
    detach: Detach = False,
    interactive: Interactive = False,
    tty: Terminal = False,
    publish: Ports = None,
    env: Variables = None,
    env_file: EnvFiles = None,
    volume: Volumes = None,
    tmpfs: Tmpfs = None,
    label: Labels = None,
    cpus: Cpus = None,
    memory: Memory = None,
    pids: Pids = None,
    ulimit: Ulimits = None,
    network: Network = NetworkChoice.default,
    user: User = "",
    workdir: Workdir = "",
    entrypoint: Annotated[str, typer.Option("--entrypoint", help="In place of the image's own.")] = "",
    hostname: Annotated[str, typer.Option("--hostname", help="\\[default: the name]")] = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="Read-only root file system.")] = False,
    cap_add: CapAdd = None,
    cap_drop: CapDrop = None,
    init: Init = False,
    runtime: Annotated[str, typer.Option("--runtime", help="A runtime handler of the config file.")] = "",
    pull: Annotated[PullChoice, typer.Option("--pull", help="When to fetch the image.")] = PullChoice.missing,
    remove: Remove = None,
    ttl: Ttl = None,
    idle: Idle = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    timings: Annotated[bool, typer.Option("--timings", help="Then tell how long each step took.")] = False,
    detach_keys: DetachKeys = DETACH_KEYS,
    socket: Socket = None,
) -> None:
    """Run a container in a pod of its own."""
    from atoll.cli.run import RunOptions, run_and_report
    from atoll.cli.terminal import detach_sequence
    from atoll.client import request

    container = request.ContainerOptions(
        image=image,
        command=tuple(own_words(command)),
        entrypoint=(entrypoint,) if entrypoint else (),
        name=name,
        env={**variables_of_file(env_file), **variables(env)},
        labels=pairs("label", label),
        annotations=request.limits_and_mounts(ulimits=ulimit or (), tmpfs=tmpfs or ()),
        cap_add=tuple(cap_add or ()),
        cap_drop=tuple(cap_drop or ()),
        share_pid=init,
        cwd=workdir,
        user=user,
        mounts=tuple(request.parse_mount(one) for one in volume or ()),
        cpus=cpus,
        memory=memory,
        pids=pids,
        tty=tty,
        stdin=interactive,
        read_only=read_only,
    )
    options = RunOptions(
        container=container,
        network=network.value,
        ports=tuple(request.parse_publish(one) for one in publish or ()),
        runtime=runtime,
        hostname=hostname,
        init=init,
        detach=detach,
        detach_keys=detach_sequence(detach_keys),
        keep=remove is False,
        remove_at_end=detach and remove is True,
        ttl=ttl,
        idle=idle,
        pull=pull.value,
        quiet=quiet,
    )
    options.check()
    ask(socket, lambda client: run_and_report(client, options, timings=timings))


@app.command("exec", context_settings=COMMAND_LINE)
def execute(
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="With its arguments.")],
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Leave it to the daemon and print its ID for `atoll process`.")
    ] = False,
    interactive: Interactive = False,
    tty: Terminal = False,
    env: Variables = None,
    user: User = "",
    workdir: Workdir = "",
    env_file: EnvFiles = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Kill its tree after so many seconds.")] = None,
    detach_keys: DetachKeys = DETACH_KEYS,
    socket: Socket = None,
) -> None:
    """Run one more command in a container."""
    from atoll.cli import keeping, terminal
    from atoll.cli import run as running
    from atoll.client.container import command_error
    from atoll.client.model import Cause
    from atoll.errors import AtollError

    words, keys = own_words(command), terminal.detach_sequence(detach_keys)
    if not words:
        raise typer.BadParameter("missing argument 'COMMAND'")
    variable = {**variables_of_file(env_file), **variables(env)}

    async def work(client: Client) -> int:
        container = await client.container(name)
        if detach:
            spawned = await container.spawn(
                words, timeout=timeout, env=variable, cwd=workdir, user=user, tty=tty, stdin=interactive
            )
            print(spawned.id)
            return 0
        if tty:
            running.require_terminal()
            end = await keeping.run(
                name,
                container.spawn(
                    words,
                    timeout=timeout,
                    env=variable,
                    cwd=workdir,
                    user=user,
                    tty=True,
                    stdin=interactive,
                    size=terminal.size(),
                ),
                stdin=interactive,
                keys=keys,
            )
            if end is None:
                return 0
        else:
            process = container.exec_stream(
                words, timeout=timeout, env=variable, cwd=workdir, user=user, stdin=interactive
            )
            try:
                end = await running.execute(process, stdin=interactive)
            except AtollError as error:
                raise command_error(error) from None
        if end.cause is Cause.TIMEOUT:
            outcome.say(f"exec in {name}: was killed, for it took longer than --timeout {timeout:g} s")
        return end.code

    ask(socket, work)


@app.command("attach")
def attach(
    name: Name,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Pass on no input.")] = False,
    detach_keys: DetachKeys = DETACH_KEYS,
    socket: Socket = None,
) -> None:
    """Join the streams of a container that runs; ends with its exit code, or with 0 by the keys that detach."""
    from atoll.cli import terminal
    from atoll.cli.attaching import attach as join

    keys = terminal.detach_sequence(detach_keys)
    ask(socket, lambda client: join(client, name, stdin=not no_stdin, detach_keys=keys))
