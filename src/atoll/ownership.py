"""Whose a place is: which daemon serves a root and a socket, told in files that outlive the daemon.

    <root>/lock, <state>/lock    held while a daemon runs; in it the `Owner` that holds it
    <socket>.owner               the `Owner` of the last daemon that listened there; stays when it dies

A client reads them before it starts a private daemon, a daemon before it gives way or takes over.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
from pathlib import Path

import msgspec

from atoll import errors
from atoll.config import Config
from atoll.unreadable import UNREADABLE

LOCK = "lock"
MAX_BYTES = 64 << 10


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon and what it serves, by absolute paths; `config` is empty where it has no file."""

    pid: int
    private: bool
    root: str
    state: str
    socket: str
    config: str

    def serves_as(self, other: Owner) -> bool:
        """Whether both keep the same books by the same rules, so that one may stand in for the other."""
        return (self.root, self.state, self.config) == (other.root, other.state, other.config)

    @property
    def command(self) -> str:
        """The command line that starts it again."""
        words = ["atoll", "serve", "--root", self.root, "--state", self.state, "--socket", self.socket]
        return shlex.join([*words, "--config", self.config] if self.config else words)


def owner_of(config: Config, *, file: str, pid: int, private: bool, socket: Path) -> Owner:
    """The owner that a daemon with this configuration is."""
    return Owner(
        pid=pid,
        private=private,
        root=os.path.normpath(config.root),
        state=os.path.normpath(config.state),
        socket=str(socket),
        config=file,
    )


def of_socket(socket: Path) -> Owner | None:
    """The last daemon that listened at `socket` and may come back; None where there was none.

    Raises `FailedPrecondition` where a file tells something else.
    """
    path = _file_of(socket)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise errors.FailedPrecondition(f"{path}: cannot be read: {error.strerror}") from error
    owner = _parse(content)
    if owner is None:
        raise errors.FailedPrecondition(f"{path}: does not tell which daemon {socket} is of; remove it")
    return owner


def own_socket(socket: Path, owner: Owner) -> None:
    """Leave word of `owner` beside its socket. Atomic."""
    path = _file_of(socket)
    new = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        new.write_bytes(msgspec.json.encode(owner))
        os.rename(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise errors.FailedPrecondition(f"{path}: cannot be written: {error.strerror}") from error


def disown_socket(socket: Path, owner: Owner) -> None:
    """Take the word of `owner` away, and of nobody else. Idempotent."""
    with contextlib.suppress(OSError, errors.FailedPrecondition):
        if of_socket(socket) == owner:
            _file_of(socket).unlink()


def _file_of(socket: Path) -> Path:
    return socket.with_name(f"{socket.name}.owner")


# --- the lock of a folder ---


def write_lock(lock: int, owner: Owner) -> None:
    """Tell in a lock that is held who holds it. Raises `OSError`."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, msgspec.json.encode(owner), 0)


def holder_of(lock: int) -> Owner | None:
    """Who wrote itself into the lock, and has it open still."""
    owner = _parse(os.pread(lock, MAX_BYTES, 0))
    return owner if owner is not None and _has_open(owner.pid, os.fstat(lock)) else None


def holder(folder: Path) -> Owner | None:
    """The daemon that runs with this root or state folder, where it can be told."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return holder_of(lock)
    finally:
        os.close(lock)


def ask_to_end(lock: int, owner: Owner) -> None:
    """Send SIGTERM to the holder of the lock, and to no other process that may have its number by now."""
    try:
        pidfd = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return
    try:
        if holder_of(lock) == owner:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    finally:
        os.close(pidfd)


def _has_open(pid: int, file: os.stat_result) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        with contextlib.suppress(OSError):
            found = os.stat(f"{folder}/{name}")
            if (found.st_dev, found.st_ino) == (file.st_dev, file.st_ino):
                return True
    return False


def _parse(content: bytes) -> Owner | None:
    try:
        return msgspec.json.decode(content, type=Owner)
    except UNREADABLE:
        return None
