"""Plugins that the daemon starts itself: executables `NN-NAME` in one folder, with their configuration in another.

    <plugin_path>/NN-NAME                the program; the lower its index NN, the earlier it is asked
    <plugin_config_path>/NN-NAME.conf    what Configure tells it; else
    <plugin_config_path>/NAME.conf       the same for whatever index

The program finds the socket that it is connected by already in `NRI_PLUGIN_SOCKET`, a number of a descriptor, and its
name and index in `NRI_PLUGIN_NAME` and `NRI_PLUGIN_IDX`; of the daemon's environment it gets PATH alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.nri.plugin import Identity

log = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 1 << 20
END_TIMEOUT_S = 1.0
"""How long a plugin may take to end after SIGTERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A program that is there to be started."""

    identity: Identity
    path: Path
    config: str


class Process:
    """A started plugin; `end` it, or it is a child of the daemon for ever."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        """Not for callers: use `launch`."""
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    async def end(self) -> None:
        """SIGTERM, then SIGKILL to its process group; returns when it is reaped. Idempotent."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._child.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            deadline = asyncio.get_running_loop().time() + END_TIMEOUT_S
            pause_s = 0.002
            while self._child.poll() is None and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.05)
        if self._child.poll() is None:
            log.error("nri: plugin process %d does not end", self._child.pid)


def find(plugin_path: Path, config_path: Path) -> list[Installed]:
    """The programs of a folder by their index; none where there is no folder. What is no plugin is left out, and told.

    Blocks for as long as the disk takes.
    """
    found: list[Installed] = []
    try:
        entries = sorted(plugin_path.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        log.error("nri: %s: cannot be read: %s", plugin_path, error.strerror)
        return []
    for path in entries:
        if not path.is_file() or not os.access(path, os.X_OK):
            continue
        index, _, name = path.name.partition("-")
        try:
            identity = Identity.checked(index, name)
            found.append(Installed(identity=identity, path=path, config=_config(config_path, identity)))
        except errors.InvalidArgument as error:
            log.error("nri: %s: is not started: %s", path, error)
    return found


def _config(folder: Path, identity: Identity) -> str:
    for name in (f"{identity}.conf", f"{identity.name}.conf"):
        try:
            with (folder / name).open("rb") as file:
                content = file.read(MAX_CONFIG_BYTES + 1)
            if len(content) > MAX_CONFIG_BYTES:
                raise errors.InvalidArgument(f"{folder / name}: is larger than {MAX_CONFIG_BYTES} bytes")
            return content.decode()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise errors.InvalidArgument(f"{folder / name}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise errors.InvalidArgument(f"{folder / name}: is not UTF-8") from None
    return ""


def launch(plugin: Installed) -> tuple[socket.socket, Process]:
    """Start a plugin; our end of its socket, which the caller closes. Raises `FailedPrecondition` where that fails."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        child = subprocess.Popen(
            [str(plugin.path)],
            stdin=subprocess.DEVNULL,
            pass_fds=(its.fileno(),),
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "NRI_PLUGIN_NAME": plugin.identity.name,
                "NRI_PLUGIN_IDX": plugin.identity.index,
                "NRI_PLUGIN_SOCKET": str(its.fileno()),
            },
            process_group=0,
        )
    except OSError as error:
        ours.close()
        raise errors.FailedPrecondition(f"{plugin.path}: cannot be executed: {error.strerror}") from error
    finally:
        its.close()
    return ours, Process(child)
