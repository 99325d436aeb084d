"""What each command takes. Nothing heavy is imported before a command runs: start-up time is felt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import conformance, outcome

if TYPE_CHECKING:
    from atoll.client import Client, Container, Pod

app = typer.Typer(
    name="atoll",
    help="Pods and containers on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Options end at the image or the container: what follows belongs to the command that is run there.
COMMAND_LINE = {"allow_interspersed_args": False}


class NetworkChoice(StrEnum):
    default = "default"
    host = "host"
    none = "none"


class PullChoice(StrEnum):
    missing = "missing"
    always = "always"
    never = "never"


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        envvar="ATOLL_SOCKET",
        metavar="PATH",
        help="The daemon's socket \\[default: /run/atoll/atoll.sock].",
        show_default=False,
        readable=False,  # who may ask is told by the attempt
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the IDs.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Names, IDs or unique beginnings of IDs.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name, an ID or its unique beginning.")]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="ATOLL_CONFIG",
        metavar="FILE",
        help="\\[default: /etc/atoll/config.toml]",
        readable=False,
    ),
]
Root = Annotated[Path | None, typer.Option("--root", metavar="DIR", help="Durable state.")]
State = Annotated[Path | None, typer.Option("--state", metavar="DIR", help="Volatile state.")]
Interactive = Annotated[bool, typer.Option("--interactive", "-i", help="Pass on standard input.")]
Terminal = Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")]
Variables = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="A variable; may be repeated.")
]
Ports = Annotated[
    list[str] | None,
    typer.Option("--publish", "-p", metavar="[IP:]HOST:POD[/udp]", help="Publish a port; may be repeated."),
]
Volumes = Annotated[
    list[str] | None,
    typer.Option("--volume", "-v", metavar="HOST:TARGET[:ro]", help="Mount a folder; may be repeated."),
]
User = Annotated[str, typer.Option("--user", "-u", metavar="UID[:GID]", help="Run as.")]
Workdir = Annotated[str, typer.Option("--workdir", "-w", help="Folder to start in.")]


@app.callback()
def shared(socket: Socket = None) -> None:
    """`--socket` may stand before the command too."""
    if socket is not None:
        os.environ["ATOLL_SOCKET"] = str(socket)


def ask(socket: Path | None, work: Callable[[Client], Awaitable[int]]) -> None:
    """Run `work` with a connection and end with its code."""
    import asyncio
    import logging

    from atoll.client import connect

    # What goes wrong is told once, as an error; a library's log would tell it again, with a traceback.
    logging.getLogger("atoll").addHandler(logging.NullHandler())

    async def main() -> int:
        async with connect(socket) as client:
            return await work(client)

    try:
        code = asyncio.run(main())
    except BrokenPipeError:
        raise outcome.ReaderGone from None
    raise typer.Exit(code)


# --- run and look ---


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


def own_words(command: list[str] | None) -> list[str]:
    """The command without a `--` before it, which many write to end the options."""
    words = command or []
    return words[1:] if words[:1] == ["--"] else words


def variables(given: list[str] | None) -> dict[str, str]:
    """`KEY=VALUE` as it is, a bare `KEY` with its value here, as docker has it."""
    found: dict[str, str] = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if equals:
            found[key] = value
        elif key in os.environ:
            found[key] = os.environ[key]
    return found


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


def moment_ns(text: str) -> int:
    """A duration ago (`90s`, `10m`, `2h`, `1d`) or an RFC 3339 time, in ns since the epoch."""
    import re
    import time
    from datetime import UTC, datetime

    from atoll import errors

    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if ago is not None:
        seconds = float(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[ago[2]]
        return time.time_ns() - int(seconds * 1e9)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise errors.InvalidArgument(f"time {text!r}: must be like 10m or 2026-01-31T12:00:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e9)


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


# --- images ---


@app.command("pull")
def pull(
    reference: Annotated[str, typer.Argument(metavar="IMAGE")],
    username: Annotated[str, typer.Option("--username", "-u")] = "",
    password: Annotated[str, typer.Option("--password", envvar="ATOLL_REGISTRY_PASSWORD")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Fetch an image from its registry."""
    from atoll.cli import work

    ask(
        socket,
        lambda client: work.pull(client, reference, quiet=quiet, username=username, password=password, as_json=as_json),
    )


@app.command("images")
def images(as_json: AsJson = False, quiet: Quiet = False, socket: Socket = None) -> None:
    """List images."""
    from atoll.cli import work

    ask(socket, lambda client: work.images(client, as_json=as_json, quiet=quiet))


@app.command("load")
def load(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A docker or OCI archive, or an OCI layout.")],
    name: Annotated[str, typer.Option("--name", help="For an image that has no name in it.")] = "",
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Import images from a file."""
    from atoll.cli import work

    ask(socket, lambda client: work.load(client, path, name, as_json=as_json))


@app.command("rmi")
def rmi(
    names: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Names or IDs.")], socket: Socket = None
) -> None:
    """Remove images."""
    from atoll.cli import work

    ask(socket, lambda client: work.remove_images(client, names))


# --- the daemon and the host ---


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
    import msgspec

    from atoll import config as configuration
    from atoll.daemon.main import serve as serve_daemon

    flags: dict[str, str | float] = folders(root, state)
    if socket is not None:
        flags["socket"] = str(socket.absolute())
    if log_level is not None:
        flags["log_level"] = log_level.value
    if idle_exit is not None:
        flags["idle_exit_s"] = idle_exit

    def read() -> configuration.Config:
        return configuration.check(msgspec.structs.replace(configuration.load(config), **flags), "atoll serve")

    raise typer.Exit(serve_daemon(read, config_file=configuration.file_of(config), private=private))


def folders(root: Path | None, state: Path | None) -> dict[str, str | float]:
    """`--root` and `--state` as the keys of the config file, with its rule; `InvalidArgument` where it is broken."""
    from atoll import errors

    given = {key: path for key, path in (("root", root), ("state", state)) if path is not None}
    for key, path in given.items():
        if not path.is_absolute():
            raise errors.InvalidArgument(f"--{key} {path}: must be an absolute path, as in --{key} {path.absolute()}")
    return {key: str(path) for key, path in given.items()}


@app.command("fsck")
def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can be.")] = False,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Compare the books with the machine: 0 when all is clean, 1 when something was found."""
    from atoll.cli import work

    ask(socket, lambda client: work.fsck(client, repair=repair, as_json=as_json))


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
    flags = folders(root, state)
    if socket is not None:
        flags["socket"] = str(socket.absolute())
    chosen = configuration.check(msgspec.structs.replace(chosen, **flags), "atoll doctor")
    raise typer.Exit(asyncio.run(report(chosen, as_json=as_json)))


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


app.add_typer(conformance.app)


def run_app(arguments: list[str]) -> int:
    """Run one command line; its exit code. Raises `AtollError` and `outcome.Ended`."""
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="atoll", standalone_mode=False)
    except typer.Abort:
        return outcome.INTERRUPTED
    except typer.TyperException as error:
        return usage(error)
    return code if isinstance(code, int) else 0


def usage(error: typer.TyperException) -> int:
    """Tell what is wrong with a command line, on one line with the way to its help."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "atoll"
    message = str(getattr(error, "format_message", lambda: error)())
    with contextlib.suppress(AttributeError):
        message = message[0].lower() + message[1:] if message else "nothing to do"
    message = (
        message.removeprefix("invalid value: ").replace(": Value error, ", ": ").replace(": Input should", ": must")
    )
    outcome.say(f"{message.rstrip('.')}; see `{path} --help`")
    return outcome.USAGE
