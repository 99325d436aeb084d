"""A private daemon for a socket where nobody answers: started detached, it ends by itself when idle.

Its output goes to `atoll.log` in the socket's folder. Starters take turns on a lock of that file,
so that two clients that come at once start one daemon.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket as sockets
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from atoll import errors

if TYPE_CHECKING:
    from atoll.ownership import Owner

START_TIMEOUT_S = 30.0
IDLE_EXIT_S = 60.0
POLL_S = 0.02
ASKED_TO_END = (0, -signal.SIGTERM)
"""How a private daemon ends that gave way to another one."""
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
                    f"{path}: is no socket; choose another path (--socket, ATOLL_SOCKET)"
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
    """Return when a daemon listens at `path`, starting one where none does and the place is nobody else's.

    Raises `Unavailable` with the daemon's own words where it does not come up within `START_TIMEOUT_S`, and where the
    place is that of a daemon with another root, state or config file, which is down; `PermissionDenied` for a user who
    may not start one.
    """
    if answers(path):
        return
    if os.geteuid() != 0:
        raise errors.PermissionDenied(
            f"no daemon answers at {path}, and only root can start one; run with sudo, or have root run `atoll serve`"
        )
    async with asyncio.timeout(START_TIMEOUT_S + 5):
        await asyncio.to_thread(_start, path, config)


def _start(path: Path, config: Path | None) -> None:
    wanted = _place(path, config)
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
                _launch(path, wanted, log)
    finally:
        os.close(log)


def _place(path: Path, config: Path | None) -> Owner:
    """What a private daemon at `path` would be; raises `Unavailable` where that is another daemon's place."""
    from atoll import config as configuration  # noqa: PLC0415 - most commands find a daemon, and are quicker without
    from atoll import ownership  # noqa: PLC0415

    chosen = configuration.load(config)
    wanted = ownership.owner_of(chosen, file=configuration.file_of(config), pid=0, private=True, socket=path)
    before = ownership.of_socket(path)
    if before is not None and not before.serves_as(wanted):
        raise errors.Unavailable(
            f"the daemon of {path} (root {before.root}) is down: start it again (`{before.command}`), or remove "
            f"{path}.owner if it is never to come back"
        )
    if before is None and path != chosen.socket_path:
        raise errors.Unavailable(
            f"no daemon answers at {path}, and a private one belongs at {chosen.socket_path}: use that "
            f"(--socket, ATOLL_SOCKET), or start one here (`atoll serve --root DIR --state DIR --socket {path}`)"
        )
    return wanted


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


def _launch(path: Path, wanted: Owner, log: int) -> None:
    """Start a daemon and wait for its answer; or for that of another one of this root that is coming up itself."""
    from atoll import ownership  # noqa: PLC0415 - as in `_place`

    begin = os.fstat(log).st_size
    process: subprocess.Popen[bytes] | None = None
    pause = threading.Event()
    waited = 0.0
    while not answers(path):
        status = process.poll() if process is not None else None
        if process is None or status is not None:
            holder = ownership.holder(Path(wanted.root))
            if holder is not None and holder.socket != str(path):
                raise errors.Unavailable(
                    f"no daemon answers at {path}: that of root {wanted.root} listens on {holder.socket}; use "
                    f"--socket {holder.socket}"
                )
            if holder is None and status not in (None, *ASKED_TO_END):
                raise errors.Unavailable(f"the daemon at {path} did not start: {_last_words(log, begin, status)}")
            if holder is None:
                process = _spawn(path, wanted)
        if waited >= START_TIMEOUT_S:
            if process is not None:
                process.kill()
            raise errors.Unavailable(
                f"the daemon at {path} was not ready within {START_TIMEOUT_S:g} s; see {path.parent / 'atoll.log'}"
            )
        pause.wait(POLL_S)
        waited += POLL_S


def _spawn(path: Path, wanted: Owner) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "atoll.cli.main", "serve", "--private", "--socket", str(path)]
    command += ["--idle-exit", f"{IDLE_EXIT_S:g}"]
    if wanted.config:
        command += ["--config", wanted.config]
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
    return process


def _last_words(log: int, begin: int, status: int | None) -> str:
    size = os.fstat(log).st_size
    text = os.pread(log, LOG_TAIL_BYTES, max(begin, size - LOG_TAIL_BYTES)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("atoll: ") if lines else f"it ended with status {status} and said nothing"
