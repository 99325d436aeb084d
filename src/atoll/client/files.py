"""The files of a container, running or not: `container.files`.

A path is one of the container: absolute, or relative to its root. Links in it are followed inside the container, never
out of it. Nothing but regular files and folders is read or written; devices, FIFOs and sockets are refused, and what
the kernel only shows as files (/proc, /sys) is for `exec`. New files belong to whom the container runs as, or `owner`.
Every call ends: where the daemon or the container does with `Unavailable` or `Aborted`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import posixpath
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from atoll import errors
from atoll.api import atoll_files_v1_pb2 as pb
from atoll.client.model import moment
from atoll.client.transfers import Transfers, Wanted
from atoll.client.wire import FILES_OPEN, Wire
from atoll.concurrency import TaskOwner
from atoll.files import wire

READ_LIMIT_BYTES = 256 << 20
"""Most that `read` gives; `download` has no limit."""
OPEN_TIMEOUT_S = 60.0
END_TIMEOUT_S = 2.0
WRITE_PART_BYTES = 1 << 20
M = TypeVar("M", bound=wire.Message)


class FileKind(StrEnum):
    """`OTHER` is a device, a FIFO or a socket."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    OTHER = "other"


_KINDS = {wire.FILE: FileKind.FILE, wire.FOLDER: FileKind.FOLDER, wire.SYMLINK: FileKind.SYMLINK}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """A file as stat(2) has it. `mode` is the permission bits; `uid` and `gid` as the container calls them.

    `link` is where a symbolic link leads, as written in it.
    """

    name: str
    kind: FileKind
    mode: int
    size: int
    uid: int
    gid: int
    modified_at: datetime | None
    link: str = ""

    @property
    def is_folder(self) -> bool:
        return self.kind is FileKind.FOLDER

    @classmethod
    def read(cls, entry: wire.Entry) -> FileStat:
        return cls(
            name=os.fsdecode(entry.name),
            kind=_KINDS.get(entry.kind, FileKind.OTHER),
            mode=entry.mode,
            size=entry.size,
            uid=entry.uid,
            gid=entry.gid,
            modified_at=moment(entry.mtime_ns),
            link=os.fsdecode(entry.link),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """What an upload or download moved: files and links, and their bytes.

    `skipped` are the first of those that are neither file, folder nor link, relative to the source.
    """

    files: int
    size: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress:
    """How far a transfer is; `path` is the last file, relative to the source. The totals are those at its beginning."""

    files: int
    size: int
    total_files: int
    total_size: int
    path: str = ""


class FileChangeKind(StrEnum):
    CREATED = "created"
    MODIFIED = "modified"
    ATTRIBUTES = "attributes"
    DELETED = "deleted"
    MOVED_FROM = "moved from"
    MOVED_TO = "moved to"


_CHANGES = (
    (0x100, FileChangeKind.CREATED),
    (0x80, FileChangeKind.MOVED_TO),
    (0x40 | 0x800, FileChangeKind.MOVED_FROM),
    (0x200 | 0x400, FileChangeKind.DELETED),
    (0x2, FileChangeKind.MODIFIED),
    (0x4, FileChangeKind.ATTRIBUTES),
)
_IN_ISDIR = 0x40000000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """Something happened to `path`, which is relative to what is watched; empty for that itself."""

    kind: FileChangeKind
    path: str
    is_folder: bool

    @classmethod
    def read(cls, change: wire.Change) -> FileChange | None:
        kind = next((kind for bits, kind in _CHANGES if change.bits & bits), None)
        if kind is None:
            return None
        return cls(kind=kind, path=os.fsdecode(change.path), is_folder=bool(change.bits & _IN_ISDIR))


OnTransfer = Callable[[TransferProgress], Awaitable[None] | None]


class Files:
    """What may be done with the files of one container; see the module."""

    def __init__(self, connection: Wire, container_id: str) -> None:
        self._wire = connection
        self._id = container_id

    # --- one file ---

    async def read(self, path: str, *, limit: int = READ_LIMIT_BYTES) -> bytes:
        """A file's content; raises `ResourceExhausted` for more than `limit` bytes, `NotFound`."""
        parts: list[bytes] = []
        async with self._open() as agent:
            await agent.send(wire.Read(_path(path), limit + 1))
            while (part := await agent.expect(wire.Data)).more:
                parts.append(part.data)
        data = b"".join(parts)
        if len(data) > limit:
            raise errors.ResourceExhausted(f"{path}: has more than {limit} bytes; raise `limit`, or use download")
        return data

    async def read_text(self, path: str, *, encoding: str = "utf-8", limit: int = READ_LIMIT_BYTES) -> str:
        """A file's content as text; bytes that are none in `encoding` are replaced."""
        return (await self.read(path, limit=limit)).decode(encoding, errors="replace")

    async def write(
        self, path: str, data: bytes | str, *, mode: int | None = None, append: bool = False, owner: str = ""
    ) -> None:
        """Write a file: the one that is there, which keeps its owner and mode, or a new one (0644)."""
        view = memoryview(data.encode() if isinstance(data, str) else data)
        async with self._open(owner) as agent:
            await agent.send(wire.Write(_path(path), -1 if mode is None else _mode(mode), append))
            for at in range(0, len(view), WRITE_PART_BYTES):
                await agent.send(wire.Data(view[at : at + WRITE_PART_BYTES].tobytes()))
            await agent.send(wire.Data(b"", more=False))
            await agent.expect(wire.Done)

    async def stat(self, path: str, *, follow: bool = True) -> FileStat:
        """What is at `path`; a link itself where not `follow`. Raises `NotFound`."""
        async with self._open() as agent:
            await agent.send(wire.Stat(_path(path), follow))
            return FileStat.read(await agent.expect(wire.Entry))

    async def exists(self, path: str) -> bool:
        """Whether there is anything at `path`, links followed."""
        try:
            await self.stat(path)
        except (errors.NotFound, errors.FailedPrecondition) as error:
            if isinstance(error, errors.NotFound) and "container" not in error.message.partition(":")[0]:
                return False
            if isinstance(error, errors.FailedPrecondition) and error.message.endswith("not a directory"):
                return False
            raise
        return True

    async def list(self, path: str = "/") -> tuple[FileStat, ...]:
        """What is in a folder, by name; links are not followed."""
        found: list[FileStat] = []
        async with self._open() as agent:
            await agent.send(wire.List(_path(path)))
            more = True
            while more:
                part = await agent.expect(wire.Entries)
                found += [FileStat.read(entry) for entry in part.entries]
                more = part.more
        return tuple(sorted(found, key=lambda one: one.name))

    async def mkdir(self, path: str, *, parents: bool = False, mode: int = 0o755, owner: str = "") -> None:
        """Make a folder; with `parents` those above it too, and it may be there. Raises `AlreadyExists`, `NotFound`."""
        async with self._open(owner) as agent:
            await agent.send(wire.Mkdir(_path(path), _mode(mode), parents))
            await agent.expect(wire.Done)

    async def remove(self, path: str, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file, a link, an empty folder, or with `recursive` a folder and all in it."""
        try:
            async with self._open() as agent:
                await agent.send(wire.Remove(_path(path), recursive))
                await agent.expect(wire.Done)
        except errors.NotFound as error:
            if not missing_ok or not error.message.startswith("/"):
                raise

    async def rename(self, path: str, target: str) -> None:
        """Give a file or folder another name, on its file system; a file that has it is replaced."""
        async with self._open() as agent:
            await agent.send(wire.Rename(_path(path), _path(target)))
            await agent.expect(wire.Done)

    # --- trees ---

    async def upload(
        self, source: str | Path, target: str, *, owner: str = "", on_progress: OnTransfer | None = None
    ) -> Transferred:
        """Copy a local file or folder into the container.

        The content of a folder comes to lie in the folder `target`, a file at `target`, or in it where that is a folder
        or ends in `/`; folders that are missing are made. Modes and times are kept, links stay links. What has the same
        name is replaced; a folder is filled up. Where it fails or is cancelled, what was copied until then stays.
        """
        wanted = Wanted(local=Path(source), remote=_path(target))
        return await self._transfer(Transfers.upload, wanted, owner, on_progress)

    async def download(self, source: str, target: str | Path, *, on_progress: OnTransfer | None = None) -> Transferred:
        """Copy a file or folder of the container to this host: as `upload`, the other way round.

        The files are the caller's; modes are kept without setuid, setgid and sticky. No name or link in the container
        leads out of `target`.
        """
        wanted = Wanted(local=Path(target), remote=_path(source), into=os.fspath(target).endswith("/"))
        return await self._transfer(Transfers.download, wanted, "", on_progress)

    async def _transfer(
        self,
        work: Callable[[Transfers, wire.Channel, Wanted], wire.Done],
        wanted: Wanted,
        owner: str,
        on_progress: OnTransfer | None,
    ) -> Transferred:
        transfers = Transfers(counts=on_progress is not None)
        async with self._connected(owner) as (connection, ending):
            connection.setblocking(True)
            channel = wire.Channel(connection)
            loop = asyncio.get_running_loop()
            news = asyncio.Event()

            def told() -> None:
                loop.call_soon_threadsafe(news.set)

            transfers.told = told
            running = loop.run_in_executor(None, work, transfers, channel, wanted)
            try:
                await _followed(running, news, transfers, on_progress)
            finally:
                if not running.done():
                    transfers.told = _left
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                    await asyncio.wait({running})
                    running.exception()  # of the socket that was closed under it
                channel.close()
            try:
                done = running.result()
            except (ConnectionError, EOFError) as error:
                raise await _why(ending) from error
            except OSError as error:
                raise _local(error) from error
        return Transferred(files=done.files, size=done.size, skipped=tuple(os.fsdecode(one) for one in done.skipped))

    # --- changes ---

    async def watch(self, path: str = "/", *, recursive: bool = False) -> AsyncGenerator[FileChange]:
        """Changes of a file or of what is in a folder, from the first `anext` on, in their order, until it is closed.

        With `recursive` of all folders below, also of those that come to be: of a new folder everything in it is told,
        some of it perhaps twice. Raises `ResourceExhausted` where changes came too fast and some were lost.
        """
        async with self._open() as agent:
            await agent.send(wire.Watch(_path(path), recursive))
            while True:
                for change in (await agent.expect(wire.Changes)).changes:
                    if (told := FileChange.read(change)) is not None:
                        yield told

    # --- the agent ---

    @asynccontextmanager
    async def _open(self, owner: str = "") -> AsyncGenerator[_Agent]:
        async with self._connected(owner) as (connection, ending):
            yield _Agent(connection, ending)

    @asynccontextmanager
    async def _connected(self, owner: str) -> AsyncGenerator[tuple[socket.socket, asyncio.Task[errors.AtollError]]]:
        """The socket of an agent, and a task that ends with why the agent did."""
        answers = self._wire.stream(FILES_OPEN, pb.OpenRequest(container_id=self._id, owner=owner))
        async with contextlib.aclosing(answers), TaskOwner("files") as tasks:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                first = await anext(answers)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with connection:
                connection.setblocking(False)
                try:
                    await asyncio.get_running_loop().sock_connect(connection, first.socket)
                except OSError as error:
                    raise errors.Unavailable(
                        f"{first.socket}: cannot be connected to ({error.strerror}); a client of files is on the "
                        "daemon's host and sees its folders"
                    ) from error
                ending = tasks.spawn(_end(answers), name="files/end")
                try:
                    yield connection, ending
                finally:
                    connection.close()
                    # The agent ends by that, and the call with it; then nothing of either is left.
                    await asyncio.wait({ending}, timeout=END_TIMEOUT_S)


async def _end(answers: AsyncGenerator[pb.OpenResponse]) -> errors.AtollError:
    try:
        async for _ in answers:
            pass
    except errors.AtollError as error:
        return error
    return errors.Unavailable("files: their process in the daemon ended before it had answered; try again")


async def _why(ending: asyncio.Task[errors.AtollError]) -> errors.AtollError:
    """Why the socket broke: the daemon says, or is gone itself."""
    done, _ = await asyncio.wait({ending}, timeout=OPEN_TIMEOUT_S)
    return ending.result() if done else errors.Unavailable("files: the connection to their process broke")


def _left() -> None:
    """Called between the pieces of a copy whose caller has gone."""
    raise ConnectionAbortedError


async def _followed(
    running: asyncio.Future[wire.Done], news: asyncio.Event, transfers: Transfers, on_progress: OnTransfer | None
) -> None:
    """Wait for the end and tell what comes meanwhile."""
    while not running.done():
        async with TaskOwner("files") as tasks:
            waiting = tasks.spawn(news.wait(), name="files/news")
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        news.clear()
        if on_progress is not None and transfers.progress is not None:
            files, size, path = transfers.progress
            told = on_progress(
                TransferProgress(
                    files=files,
                    size=size,
                    total_files=transfers.total_files,
                    total_size=transfers.total_size,
                    path=os.fsdecode(path),
                )
            )
            if inspect.isawaitable(told):
                await told


class _Agent:
    """An agent's socket on the loop, a message at a time."""

    def __init__(self, connection: socket.socket, ending: asyncio.Task[errors.AtollError]) -> None:
        self._connection = connection
        self._ending = ending
        self._loop = asyncio.get_running_loop()

    async def send(self, message: wire.Message) -> None:
        # What was refused in the middle is read to its end by the agent, so this does not wait for ever.
        try:
            await self._loop.sock_sendall(self._connection, wire.encode(message))
        except OSError as error:
            raise await _why(self._ending) from error

    async def expect(self, kind: type[M]) -> M:
        """The next message, of that kind; raises what the agent refuses with."""
        length, _ = wire.sizes(await self._exactly(wire.HEADER.size))
        message = wire.decode(await self._exactly(length))
        if isinstance(message, wire.Failed):
            raise errors.from_status(message.code, message.message)
        if not isinstance(message, kind):
            raise errors.Unknown(f"files: answered with {type(message).__name__} instead of {kind.__name__}")
        return message

    async def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = await self._loop.sock_recv(self._connection, min(size - len(parts), 1 << 20))
            except OSError as error:
                raise await _why(self._ending) from error
            if not part:
                raise await _why(self._ending)
            parts += part
        return bytes(parts)


def _path(path: str) -> bytes:
    if not isinstance(path, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without types
        raise errors.InvalidArgument(f"path {path!r}: must be a text")
    if "\0" in path:
        raise errors.InvalidArgument(f"path {path!r}: has a zero byte in it")
    if len(os.fsencode(path)) > 4096:
        raise errors.InvalidArgument(f"path {path[:80]!r}...: is longer than 4096 bytes")
    normal = posixpath.normpath(path) if ".." not in path.split("/") else path
    return os.fsencode(normal + "/" if path.endswith("/") and not normal.endswith("/") else normal)


def _mode(mode: int) -> int:
    if mode != stat.S_IMODE(mode):
        raise errors.InvalidArgument(f"mode {mode:o}: must be between 0 and 7777, in octal")
    return mode


def _local(error: OSError) -> errors.AtollError:
    """The error for a file of this host."""
    kinds: dict[type[OSError], type[errors.AtollError]] = {
        FileNotFoundError: errors.NotFound,
        PermissionError: errors.PermissionDenied,
        FileExistsError: errors.AlreadyExists,
        NotADirectoryError: errors.FailedPrecondition,
        IsADirectoryError: errors.FailedPrecondition,
    }
    kind = next((kind for one, kind in kinds.items() if isinstance(error, one)), errors.Unknown)
    return kind(f"{os.fsdecode(error.filename or 'here')}: on this host: {(error.strerror or str(error)).lower()}")
