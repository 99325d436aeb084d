"""CRI log lines: how output becomes lines, and the file they go to.

A line is `<time> <stdout|stderr> <F|P> <content>`; F ends a line of the container, P says that more of it
follows or that the stream ended without a newline. The time is RFC 3339 with nanoseconds as Go prints it:
local, with its offset, without trailing zeros (Kubernetes, "CRI container logging").
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from atoll import errors

DEFAULT_MAX_LINE_BYTES = 16384
# Without a limit a line is still held in pieces of this size: the container decides how long its lines are.
UNLIMITED_PIECE_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
RETRY_OPEN_S = 1.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)


class Clock:
    """The present as the time of a log line; what changes once a second is formatted once a second."""

    __slots__ = ("_head", "_now_ns", "_second", "_zone")

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._second = -1
        self._head = ""
        self._zone = ""

    def stamp(self) -> bytes:
        """The time now, for example `2016-10-06T00:17:09.669794202Z`."""
        second, nanosecond = divmod(self._now_ns(), 1_000_000_000)
        if second != self._second:
            moment = time.localtime(second)
            self._head = time.strftime("%Y-%m-%dT%H:%M:%S", moment)
            self._zone = _offset(moment.tm_gmtoff)
            self._second = second
        fraction = f".{nanosecond:09d}".rstrip("0") if nanosecond else ""
        return f"{self._head}{fraction}{self._zone}".encode()


def _offset(seconds: int) -> str:
    if seconds == 0:
        return "Z"
    hours, minutes = divmod(abs(seconds) // 60, 60)
    return f"{'-' if seconds < 0 else '+'}{hours:02d}:{minutes:02d}"


class LineFormatter:
    """Cuts one stream's output into log lines; a line's unfinished end waits for its rest.

    The contents are the same for every way to cut the output into chunks. A line longer than `max_line`
    bytes becomes pieces of exactly that size and a last one of 1 to `max_line` bytes; 0 or less means no limit.
    A terminal ends its lines with CRLF whatever a program writes, so of a terminal's output the CR is no content
    (`crlf`). Any other output can be had back from the log byte for byte.
    """

    __slots__ = ("_carry", "_crlf", "_full", "_limit", "_partial")

    def __init__(self, stream: str, max_line: int = DEFAULT_MAX_LINE_BYTES, *, crlf: bool = False) -> None:
        self._crlf = crlf
        self._limit = max_line if max_line > 0 else UNLIMITED_PIECE_BYTES
        self._full = f" {stream} F ".encode()
        self._partial = f" {stream} P ".encode()
        self._carry = b""

    @property
    def carried_bytes(self) -> int:
        """Size of the unfinished line."""
        return len(self._carry)

    def feed(self, chunk: bytes, stamp: bytes) -> bytes:
        """The log lines that `chunk` completes, each with the time `stamp`."""
        data = self._carry + chunk if self._carry else chunk
        if self._crlf and b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        limit, end = self._limit, len(data)
        parts: list[bytes] = []
        start = position = 0  # data[start:position] is whole lines, none too long
        while position < end:
            newline = data.rfind(b"\n", position, position + limit + 1)
            if newline >= 0:
                position = newline + 1
                continue
            rest = end - position
            # The last byte may be the first half of CRLF, which is no content.
            if rest <= limit or (self._crlf and rest == limit + 1 and data[-1] == 0x0D):
                break
            self._add_lines(parts, data[start:position], stamp)
            parts += (stamp, self._partial, data[position : position + limit], b"\n")
            start = position = position + limit
        self._add_lines(parts, data[start:position], stamp)
        self._carry = data[position:]
        return b"".join(parts)

    def finish(self, stamp: bytes) -> bytes:
        """What is left when the stream has ended: a partial line, or nothing."""
        rest, self._carry = self._carry, b""
        parts: list[bytes] = []
        while rest:
            parts += (stamp, self._partial, rest[: self._limit], b"\n")
            rest = rest[self._limit :]
        return b"".join(parts)

    def _add_lines(self, parts: list[bytes], lines: bytes, stamp: bytes) -> None:
        if lines:
            head = stamp + self._full
            parts += (head, lines[:-1].replace(b"\n", b"\n" + head), b"\n")


class LogFile:
    """The file that the streams of one container share; each `write` is whole lines.

    A write never fails and never waits for room: what the disk refuses is dropped and counted in
    `dropped_bytes`, told once, and writing goes on as soon as the disk takes lines again, behind a line of
    stderr that says how many were lost and why. The file never holds half a line.
    """

    def __init__(self, path: Path, below: int = 1) -> None:
        """Open `path` for appending, as `open_log`; `FailedPrecondition` names what is in the way."""
        self._path = path
        self._below = below
        self._fd: int | None = open_log(path, below)
        self._retry_at = 0.0
        self._failing = False
        self._closed = False
        self._clock = Clock()
        self._lost_lines = 0
        self._why_lost = ""
        self.dropped_bytes = 0

    @property
    def path(self) -> Path:
        return self._path

    def write(self, lines: bytes) -> None:
        """Append `lines`."""
        if lines and not self._closed:
            self._append(lines)

    def _append(self, lines: bytes) -> None:
        if self._fd is None and not self._open_again():
            self._drop(lines)
            return
        assert self._fd is not None
        mark = self._mark()
        text = mark + lines if mark else lines
        written = 0
        try:
            while written < len(text):
                written += os.write(self._fd, memoryview(text)[written:] if written else text)
        except OSError as error:
            self._refused(error, text, written, len(mark))
        else:
            self._accepted()

    def reopen(self, path: Path | None = None) -> None:
        """Go on in `path`, or in a new file at the same path after a rotation renamed the old one.

        Every line goes to exactly one of the two files. Where the new one cannot be opened the old
        one stays in use and `FailedPrecondition` is raised.
        """
        if self._closed:
            raise errors.FailedPrecondition(f"{self._path}: the log is closed")
        target = path or self._path
        fresh = open_log(target, self._below)
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._path = fresh, target

    def close(self) -> None:
        """Close the file; idempotent. What was lost at the very end is told now, where there is room again."""
        if self._lost_lines and not self._closed:
            self._append(b"")
        self._closed = True
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open_again(self) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY_OPEN_S
        try:
            self._fd = open_log(self._path, self._below)
        except errors.FailedPrecondition:
            return False
        return True

    def _mark(self) -> bytes:
        """The line that stands for those lost since the last one written; empty where none were."""
        if not self._lost_lines:
            return b""
        told = f" stderr F atoll: {self._lost_lines} lines were lost: {self._why_lost}\n"
        return self._clock.stamp() + told.encode()

    def _drop(self, lines: bytes) -> None:
        self.dropped_bytes += len(lines)
        self._lost_lines += lines.count(b"\n")

    def _accepted(self) -> None:
        if self._failing:
            self._failing = False
            lost, size = self._lost_lines, self.dropped_bytes
            log.warning("%s: log lines are written again, %d were lost, %d bytes in all", self._path, lost, size)
        self._lost_lines = 0

    def _refused(self, error: OSError, text: bytes, written: int, mark_size: int) -> None:
        """Drop what is not whole in the file: of `text`, whose first `mark_size` bytes stand for earlier losses."""
        assert self._fd is not None
        whole = text.rfind(b"\n", 0, written) + 1
        if whole >= mark_size:
            self._lost_lines = 0
        self._why_lost = (error.strerror or str(error)).lower()
        self._drop(text[max(whole, mark_size) :])
        if written > whole:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - (written - whole))
        if error.errno not in NO_ROOM:
            os.close(self._fd)
            self._fd = None
            self._retry_at = time.monotonic() + RETRY_OPEN_S
        if not self._failing:
            self._failing = True
            log.warning("%s: dropping log lines: %s", self._path, error.strerror)


def open_log(path: Path, below: int = 1) -> int:
    """A descriptor that appends to the regular file `path` (0640), its folders made (0755).

    The last `below` names are no symbolic links: they are below a folder that the pod's users may be able to write to.
    """
    names = path.parts[-below:]
    trusted = path.parents[len(names) - 1]
    try:
        trusted.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd = os.open(trusted, _FOLDER & ~os.O_NOFOLLOW)
        try:
            for name in names[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=fd)
                fd = _stepped(fd, os.open(name, _FOLDER, dir_fd=fd))
            fd = _stepped(fd, os.open(names[-1], _APPEND, 0o640, dir_fd=fd))
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        # A folder that is a link is no folder for the kernel: open(2), O_DIRECTORY with O_NOFOLLOW.
        is_link = error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and _has_link(trusted, names))
        raise errors.FailedPrecondition(
            f"log file {path}: {'is a symbolic link, or below one' if is_link else error.strerror}"
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise errors.FailedPrecondition(f"log file {path}: is not a regular file")
    return fd


def _stepped(before: int, fd: int) -> int:
    os.close(before)
    return fd


def _has_link(trusted: Path, names: tuple[str, ...]) -> bool:
    return any(trusted.joinpath(*names[:number]).is_symlink() for number in range(1, len(names) + 1))


class LogSink:
    """One stream's way into a log file; takes everything, at once."""

    __slots__ = ("_clock", "_file", "_formatter")

    def __init__(self, file: LogFile, stream: str, max_line: int, clock: Clock, *, crlf: bool = False) -> None:
        self._file = file
        self._formatter = LineFormatter(stream, max_line, crlf=crlf)
        self._clock = clock

    @property
    def is_blocked(self) -> bool:
        return False

    @property
    def is_idle(self) -> bool:
        return True

    def connect(self, changed: Callable[[], None]) -> None:
        """Nothing to tell: a log never blocks."""

    def write(self, chunk: bytes) -> None:
        self._file.write(self._formatter.feed(chunk, self._clock.stamp()))

    def end(self) -> None:
        """Write the unfinished line; the file stays open for the other stream."""
        if self._formatter.carried_bytes:
            self._file.write(self._formatter.finish(self._clock.stamp()))

    def close(self) -> None:
        self.end()
