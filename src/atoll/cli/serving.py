"""`atoll serve`: run the daemon.

A line that names only places is read here: the grammar of the whole command line costs a sixth of a daemon's start.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll import errors

COMMAND = "serve"
PLACES = ("--root", "--state", "--socket", "--config")
VARIABLES = ("ATOLL_SOCKET", "ATOLL_CONFIG")
"""What may stand for an option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a daemon is told on its command line; empty or None for what its file says, or the default."""

    root: Path | None = None
    state: Path | None = None
    socket: Path | None = None
    config: Path | None = None
    log_level: str = ""
    idle_exit_s: float | None = None
    private: bool = False


def plain(arguments: Sequence[str]) -> Asked | None:
    """What is asked for by a line of `serve` that names places only; None where it says more, or may have a mistake."""
    if list(arguments[:1]) != [COMMAND] or len(arguments) % 2 == 0 or any(name in os.environ for name in VARIABLES):
        return None
    names, values = arguments[1::2], arguments[2::2]
    if not set(names) <= set(PLACES) or len(set(names)) < len(names):
        return None
    if any(not value or value.startswith("-") for value in values):
        return None
    given = {name: Path(value) for name, value in zip(names, values, strict=True)}
    root, state, socket, config = (given.get(name) for name in PLACES)
    return Asked(root=root, state=state, socket=socket, config=config)


def run(asked: Asked) -> int:
    """Run a daemon to its end; its exit code. Raises `AtollError`."""
    gc.disable()  # what is imported stays
    import msgspec

    from atoll import config as configuration
    from atoll.daemon.main import serve as serve_daemon

    gc.freeze()
    gc.enable()
    flags: dict[str, str | float] = folders(asked.root, asked.state)
    if asked.socket is not None:
        flags["socket"] = str(asked.socket.absolute())
    if asked.log_level:
        flags["log_level"] = asked.log_level
    if asked.idle_exit_s is not None:
        flags["idle_exit_s"] = asked.idle_exit_s

    def read() -> configuration.Config:
        return configuration.check(msgspec.structs.replace(configuration.load(asked.config), **flags), "atoll serve")

    return serve_daemon(read, config_file=configuration.file_of(asked.config), private=asked.private)


def folders(root: Path | None, state: Path | None) -> dict[str, str | float]:
    """`--root` and `--state` as the keys of the config file, with its rule; `InvalidArgument` where it is broken."""
    given = {key: path for key, path in (("root", root), ("state", state)) if path is not None}
    for key, path in given.items():
        if not path.is_absolute():
            raise errors.InvalidArgument(f"--{key} {path}: must be an absolute path, as in --{key} {path.absolute()}")
    return {key: str(path) for key, path in given.items()}
