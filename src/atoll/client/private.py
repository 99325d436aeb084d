"""A private daemon for a socket where nobody answers: started detached, it ends by itself when idle.

Its output goes to `atoll.log` in the socket's folder. Starters take turns on a lock of that file,
so that two clients that come at once start one daemon.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket as sockets
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from atoll import errors
from atoll.client.places import DEFAULT_SOCKET

START_TIMEOUT_S = 30.0
IDLE_EXIT_S = 60.0
POLL_S = 0.02
LOG_TAIL_BYTES = 8192
LOG_LIMIT_BYTES = 4 << 20


def answers(path: Path) -> bool:
    """Whether somebody listens at `path`; `PermissionDenied` where this user may not ask."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            if path.exists() and not path.is_socket():
                raise errors.InvalidArgument(
                    f"{path}: is no socket; name the daemon's (--socket, ATOLL_SOCKET)"
                ) from None
            return False
        except PermissionError:
            raise errors.PermissionDenied(f"{path}: not for this user; run as root (sudo)") from None
        except BlockingIOError:
            return True  # its backlog is full: somebody is there and busy
        except OSError as error:
            raise errors.InvalidArgument(f"{path}: cannot be a socket: {error.strerror or error}") from None
    return True


async def ensure_daemon(path: Path, config: Path | None) -> None:
    """Return when a daemon listens at `path`, starting one where none does.

    Raises `Unavailable` with the daemon's own words where it does not come up within `START_TIMEOUT_S`,
    `PermissionDenied` for a user who may not start one.
    """
    if answers(path):
        return
    if os.geteuid() != 0:
        raise errors.PermissionDenied(
            f"no daemon answers at {path}, and only root can start one; run with sudo, or have root run `atoll serve`"
        )
    if path != DEFAULT_SOCKET and not path.parent.is_dir():
        raise errors.NotFound(f"no daemon answers at {path}, and there is no folder {path.parent} to start one in")
    async with asyncio.timeout(START_TIMEOUT_S + 5):
        await asyncio.to_thread(_start, path, config)


def _start(path: Path, config: Path | None) -> None:
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        log = os.open(path.parent / "atoll.log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.Unavailable(
            f"cannot start a daemon at {path}: {error.filename or path.parent}: {error.strerror}"
        ) from None
    try:
        with _turn(log, path):
            if not answers(path):
                if os.fstat(log).st_size > LOG_LIMIT_BYTES:
                    os.ftruncate(log, 0)
                _launch(path, config, log)
    finally:
        os.close(log)


@contextmanager
def _turn(log: int, path: Path) -> Generator[None]:
    """Hold the lock; a starter that waits is bounded by the bound of the one before it."""
    waited = 0.0
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if waited >= START_TIMEOUT_S:
                raise errors.Unavailable(
                    f"another client has been starting the daemon at {path} for too long"
                ) from None
            pause.wait(POLL_S)
            waited += POLL_S
    try:
        yield
    finally:
        fcntl.flock(log, fcntl.LOCK_UN)


def _launch(path: Path, config: Path | None, log: int) -> None:
    command = [sys.executable, "-m", "atoll.cli.main", "serve", "--socket", str(path)]
    command += ["--idle-exit", f"{IDLE_EXIT_S:g}"]
    if config is not None:
        command += ["--config", str(config.absolute())]
    begin = os.fstat(log).st_size
    # The lock belongs to the open file, which the daemon must not share: it gets one of its own.
    own_log = os.open(path.parent / "atoll.log", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=own_log, stderr=own_log, cwd="/", start_new_session=True
        )
    finally:
        os.close(own_log)
    # Reaps the daemon if it ends before we do; nobody joins it.
    threading.Thread(target=process.wait, name="atoll-private-daemon", daemon=True).start()
    ended = threading.Event()
    waited = 0.0
    while not answers(path):
        status = process.poll()
        if status is not None:
            raise errors.Unavailable(f"the daemon at {path} did not start: {_last_words(log, begin, status)}")
        if waited >= START_TIMEOUT_S:
            process.kill()
            raise errors.Unavailable(
                f"the daemon at {path} was not ready within {START_TIMEOUT_S:g} s; see {path.parent / 'atoll.log'}"
            )
        ended.wait(POLL_S)
        waited += POLL_S


def _last_words(log: int, begin: int, status: int) -> str:
    size = os.fstat(log).st_size
    text = os.pread(log, LOG_TAIL_BYTES, max(begin, size - LOG_TAIL_BYTES)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("atoll: ") if lines else f"it ended with status {status} and said nothing"
