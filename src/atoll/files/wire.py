"""What goes over the socket between a client and the agent: frames of msgpack, some with descriptors.

    frame      4 bytes of length (little endian), 4 bytes of how many descriptors come with it, the message
    client     one request; for an upload then `Items`... and `End`
    agent      one answer, or a stream of them that ends with `Done`; `Failed` at any place ends it

Paths are bytes, as the kernel has them. A file whose `Item` says `fd` is the next descriptor of its frame, open for
reading at its beginning; of one with `more` the rest follows in `Data`. Both ends are bounded: a frame has at most
`MAX_FRAME_BYTES` and `MAX_FDS` descriptors.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct

import msgspec

from atoll import errors
from atoll.unreadable import UNREADABLE

MAX_FRAME_BYTES = 4 << 20
MAX_FDS = 64
BATCH_BYTES = 512 << 10
"""Of contents in one frame, about."""
BATCH_ITEMS = 512
INLINE_BYTES = 128 << 10
"""A file up to this size goes with its `Item`."""
SOCKET_BUFFER_BYTES = 4 << 20
HEADER = struct.Struct("<II")
FILE, FOLDER, SYMLINK, OTHER = 0, 1, 2, 3


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of the messages."""


# --- what a client asks ---


class Stat(Message, frozen=True, tag="stat"):
    path: bytes
    follow: bool = True


class List(Message, frozen=True, tag="list"):
    path: bytes


class Read(Message, frozen=True, tag="read"):
    """Answered with `Data`..., the last one without `more`."""

    path: bytes
    limit: int
    offset: int = 0


class Write(Message, frozen=True, tag="write"):
    """The content follows in `Data`, the last one without `more`. `mode` -1: as it is, or 0644 for a new one."""

    path: bytes
    mode: int = -1
    append: bool = False


class Mkdir(Message, frozen=True, tag="mkdir"):
    path: bytes
    mode: int = 0o755
    parents: bool = False


class Remove(Message, frozen=True, tag="remove"):
    path: bytes
    recursive: bool = False


class Rename(Message, frozen=True, tag="rename"):
    path: bytes
    target: bytes


class Upload(Message, frozen=True, tag="upload"):
    """`name` is that of the source, which is a folder or not: it decides where below `path` it comes to lie."""

    path: bytes
    name: bytes
    is_folder: bool


class Download(Message, frozen=True, tag="download"):
    """Answered with `Begun`, `Items`... and `Done`."""

    path: bytes
    count: bool = False


class Watch(Message, frozen=True, tag="watch"):
    """Answered with `Changes`... for ever; the first one is empty: from then on nothing is missed."""

    path: bytes
    recursive: bool = False


Request = Stat | List | Read | Write | Mkdir | Remove | Rename | Upload | Download | Watch


# --- what goes both ways ---


class Item(Message, frozen=True, tag="item"):
    """One file or folder below the top, which is the empty path. `data` is the content, or where a link leads."""

    path: bytes
    kind: int
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    data: bytes = b""
    fd: bool = False
    more: bool = False


class Items(Message, frozen=True, tag="items"):
    items: list[Item]


class Data(Message, frozen=True, tag="data"):
    data: bytes
    more: bool = True


class Done(Message, frozen=True, tag="done"):
    """All of it; `skipped` are the first of those that are neither file, folder nor link."""

    files: int = 0
    size: int = 0
    skipped: list[bytes] = []


class End(Message, frozen=True, tag="end"):
    skipped: list[bytes] = []


# --- what the agent answers ---


class Entry(Message, frozen=True, tag="entry"):
    """A file as stat(2) sees it, its owner as the container does."""

    name: bytes
    kind: int
    mode: int
    size: int
    uid: int
    gid: int
    mtime_ns: int
    link: bytes = b""


class Entries(Message, frozen=True, tag="entries"):
    entries: list[Entry]
    more: bool = False


class Begun(Message, frozen=True, tag="begun"):
    """What the source is; `files` and `size` together where they were to be counted, else 0."""

    name: bytes
    is_folder: bool
    files: int = 0
    size: int = 0


class Progress(Message, frozen=True, tag="progress"):
    files: int
    size: int
    path: bytes = b""


class Change(Message, frozen=True, tag="change"):
    """`bits` are those of inotify(7)."""

    path: bytes
    bits: int


class Changes(Message, frozen=True, tag="changes"):
    changes: list[Change]


class Failed(Message, frozen=True, tag="failed"):
    code: int
    message: str


Answer = Items | Data | Done | End | Entry | Entries | Begun | Progress | Changes | Failed
Any = Request | Answer

_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Any)
_encoder = msgspec.msgpack.Encoder()
_INT_BYTES = array.array("i").itemsize


def decode(data: bytes | bytearray | memoryview) -> Any:
    """One message; raises `InvalidArgument` for what is none."""
    try:
        return _decoder.decode(data)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"files: no such message: {error}") from error


def encode(message: Message, fds: int = 0) -> bytes:
    """The frame of a message."""
    data = _encoder.encode(message)
    return HEADER.pack(len(data), fds) + data


def sizes(header: bytes) -> tuple[int, int]:
    """The length and the descriptors that a header tells; raises `InvalidArgument` beyond the limits."""
    length, fds = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES or fds > MAX_FDS:
        raise errors.InvalidArgument(f"files: a frame of {length} bytes with {fds} descriptors is too big")
    return length, fds


class Channel:
    """One end of the socket for a thread that may wait. `OSError` where the other end has gone."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        self._buffer = bytearray()
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Send one frame, with copies of `fds`."""
        data = memoryview(encode(message, len(fds or ())))
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            data = data[self._end.sendmsg([data], rights) :]
        if data:
            self._end.sendall(data)

    def receive(self) -> tuple[Any, list[int]] | None:
        """The next message and its descriptors, which are the caller's; None at the end."""
        if not self._fill(HEADER.size):
            return None
        length, count = sizes(bytes(self._buffer[: HEADER.size]))
        if not self._fill(HEADER.size + length):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET), "files")
        message = decode(memoryview(self._buffer)[HEADER.size : HEADER.size + length].tobytes())
        del self._buffer[: HEADER.size + length]
        fds, self._fds = self._fds[:count], self._fds[count:]
        if len(fds) != count:
            for fd in fds:
                os.close(fd)
            raise errors.InvalidArgument("files: a frame came without its descriptors")
        return message, fds

    def has_more(self) -> bool:
        """Whether anything has come that was not received yet; does not wait."""
        if self._buffer:
            return True
        try:
            return bool(self._end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            room = socket.CMSG_SPACE(MAX_FDS * _INT_BYTES)
            data, rights, _, _ = self._end.recvmsg(1 << 20, room, socket.MSG_CMSG_CLOEXEC)
            for level, kind, packed in rights:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(packed[: len(packed) - len(packed) % _INT_BYTES])
                    self._fds += found
            if not data:
                return False
            self._buffer += data
        return True

    def close(self) -> None:
        """Close the socket and what came and nobody took. Idempotent."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._end.close()
