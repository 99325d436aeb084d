"""The work of an upload or a download, for a thread that may wait for disks and for the agent."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.files import wire
from atoll.files.receiving import Receiver
from atoll.files.root import Root
from atoll.files.sending import Sender, count

PLAIN_MODE = 0o777


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A path of this host and one of the container; `into`: the local one ends in a slash."""

    local: Path
    remote: bytes
    into: bool = False


def _nothing() -> None:
    """Nobody is told."""


class Transfers:
    """One transfer. `progress` is (files, bytes, last path); `told` is called, on the thread, when it changes."""

    def __init__(self, *, counts: bool) -> None:
        self._counts = counts
        self.total_files = self.total_size = 0
        self.progress: tuple[int, int, bytes] | None = None
        self.told: Callable[[], None] = _nothing

    # --- here to there ---

    def upload(self, channel: wire.Channel, wanted: Wanted) -> wire.Done:
        """Raises `OSError` with a path for one of this host, `ConnectionError` where the agent has gone."""
        held = os.open(wanted.local, os.O_PATH | os.O_CLOEXEC)
        try:
            if self._counts:
                self.total_files, self.total_size = count(held)
            is_folder = stat.S_ISDIR(os.fstat(held).st_mode)
            channel.send(wire.Upload(wanted.remote, os.fsencode(wanted.local.resolve().name), is_folder))
            sender = Sender(channel, lambda _: True, lambda: self._hear(channel))
            with self._refused(channel):
                sender.send(held, str(wanted.local))
                channel.send(wire.End(sender.skipped))
            while True:
                message = self._next(channel)
                if isinstance(message, wire.Done):
                    self._tell(message.files, message.size, sender.last)
                    return message
        finally:
            os.close(held)

    @contextlib.contextmanager
    def _refused(self, channel: wire.Channel):
        """Of a socket that broke while it was written to, read why."""
        try:
            yield
        except BrokenPipeError:
            while True:
                self._next(channel)

    def _hear(self, channel: wire.Channel) -> None:
        while channel.has_more():
            self._next(channel)

    def _next(self, channel: wire.Channel) -> wire.Any:
        found = channel.receive()
        if found is None:
            raise ConnectionResetError
        message, fds = found
        for fd in fds:
            os.close(fd)
        match message:
            case wire.Failed(code, text):
                raise errors.from_status(code, text)
            case wire.Progress(files, size, path):
                self._tell(files, size, path)
            case _:
                pass
        return message

    # --- there to here ---

    def download(self, channel: wire.Channel, wanted: Wanted) -> wire.Done:
        """The same errors."""
        channel.send(wire.Download(wanted.remote, self._counts))
        begun = self._next(channel)
        if not isinstance(begun, wire.Begun):
            raise errors.Unknown(f"files: answered with {type(begun).__name__}")
        self.total_files, self.total_size = begun.files, begun.size
        folder, top = self._target(wanted, begun)
        held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        receiver = Receiver(Root(held), top, modes=PLAIN_MODE)
        receiver.told = lambda: self._tell(receiver.files, receiver.size, receiver.last)
        try:
            while (found := channel.receive()) is not None:
                message, fds = found
                match message:
                    case wire.Items(items):
                        receiver.take(items, fds)
                    case wire.Data():
                        receiver.data(message)
                    case wire.Done(_, _, skipped):
                        receiver.finish()
                        return wire.Done(receiver.files, receiver.size, skipped)
                    case wire.Failed(code, text):
                        raise errors.from_status(code, text)
                    case _:
                        raise errors.Unknown(f"files: answered with {type(message).__name__}")
            raise ConnectionResetError
        finally:
            receiver.close()
            os.close(held)

    @staticmethod
    def _target(wanted: Wanted, begun: wire.Begun) -> tuple[Path, str]:
        """The folder to be the root of all that is written, and the path in it."""
        local = wanted.local
        if begun.is_folder:
            local.mkdir(parents=True, exist_ok=True)
            return local, ""
        if wanted.into or local.is_dir():
            local.mkdir(parents=True, exist_ok=True)
            name = os.fsdecode(begun.name)
            if "/" in name or name in ("", ".", ".."):
                raise errors.Unknown(f"files: {name!r} is no name of a file")
            return local, name
        local.parent.mkdir(parents=True, exist_ok=True)
        return local.parent, local.name

    def _tell(self, files: int, size: int, path: bytes) -> None:
        self.progress = (files, size, path)
        self.told()
