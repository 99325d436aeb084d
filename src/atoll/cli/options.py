"""What several commands take, and how a command reaches the daemon; nothing heavy is imported here."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import completing, outcome

if TYPE_CHECKING:
    from atoll.client import Client

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
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME", help="Names, IDs or unique beginnings of IDs.", autocompletion=completing.containers
    ),
]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A name, an ID or its unique beginning.", autocompletion=completing.containers),
]

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
User = Annotated[str, typer.Option("--user", "-u", metavar="UID[:GID]", help="Run as.")]
Workdir = Annotated[str, typer.Option("--workdir", "-w", help="Folder to start in.")]

DETACH_KEYS = "ctrl-p,ctrl-q"
DetachKeys = Annotated[
    str, typer.Option("--detach-keys", metavar="KEYS", help="Leave a terminal without ending what runs in it.")
]


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


def variables_of_file(files: Sequence[Path] | None) -> dict[str, str]:
    """The variables of files, a line each as for `--env`, without empty ones and `#`; the last one of a name counts."""
    from atoll import errors

    found: dict[str, str] = {}
    for file in files or ():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise errors.NotFound(f"env file {file}: cannot be read: {getattr(error, 'strerror', error)}") from error
        found |= variables([line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")])
    return found


def pairs(what: str, given: Sequence[str] | None) -> dict[str, str]:
    """`KEY=VALUE` of each; a bare `KEY` has an empty value. Raises `InvalidArgument` for one without a key."""
    from atoll import errors

    found: dict[str, str] = {}
    for one in given or ():
        key, _, value = one.partition("=")
        if not key:
            raise errors.InvalidArgument(f"{what} {one!r}: must be like KEY=VALUE")
        found[key] = value
    return found


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
