"""Where the daemon is."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_SOCKET = Path("/run/atoll/atoll.sock")
SOCKET_VARIABLE = "ATOLL_SOCKET"
CONFIG_VARIABLE = "ATOLL_CONFIG"


def config_path(config: str | Path | None = None) -> Path | None:
    """The config file of a private daemon: as given, or of ATOLL_CONFIG."""
    chosen = config or os.environ.get(CONFIG_VARIABLE)
    return Path(chosen).absolute() if chosen else None


def socket_path(socket: str | Path | None = None, config: str | Path | None = None) -> Path:
    """The daemon's socket: as given, of ATOLL_SOCKET, of the config file, or the default."""
    if socket is not None:
        return Path(socket).absolute()
    if from_environment := os.environ.get(SOCKET_VARIABLE):
        return Path(from_environment).absolute()
    file = config_path(config)
    if file is not None:
        from atoll import config as configuration  # noqa: PLC0415 - costs as much as all else here

        return configuration.load(file).socket_path
    return DEFAULT_SOCKET
