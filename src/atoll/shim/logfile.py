"""A shim's log: `<bundle>/log`, a fifo that the daemon reads or a bounded file.

Writing never blocks and never fails the shim: a line that a full fifo does not take is dropped, a
file that reached its limit is moved to `log.1` first, replacing an older one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from collections.abc import Generator
from contextvars import ContextVar

FILE = "log"
FILE_LIMIT_BYTES = 1 << 20
LINE_LIMIT_BYTES = 4096


class LogHandler(logging.Handler):
    """Writes records as lines `time level message`, one write(2) each."""

    def __init__(self, path: str, prefix: str) -> None:
        super().__init__()
        self._path = path
        self._prefix = prefix
        self._fd, self._is_file, self._size = _open(path)

    @property
    def fd(self) -> int:
        """The descriptor written to now."""
        return self._fd

    def close(self) -> None:
        """Close the file; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        flat = text.replace("\n", "\\n")
        line = f"{when}.{int(record.msecs):03d}Z {record.levelname.lower()} {self._prefix} {flat}"
        data = line.encode("utf-8", "backslashreplace")[:LINE_LIMIT_BYTES] + b"\n"
        # A full fifo or disk costs this line and nothing else.
        with contextlib.suppress(OSError):
            if self._is_file and self._size + len(data) > FILE_LIMIT_BYTES:
                self._rotate()
            self._size += os.write(self._fd, data)

    def _rotate(self) -> None:
        os.replace(self._path, f"{self._path}.1")
        fresh, self._is_file, self._size = _open(self._path)
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)


def _open(path: str) -> tuple[int, bool, int]:
    # Both ways, so that a fifo can be opened without its reader and a write never raises SIGPIPE (fifo(7)).
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    status = os.fstat(fd)
    return fd, stat.S_ISREG(status.st_mode), status.st_size


def configure(bundle: str, prefix: str, *, debug: bool) -> int:
    """Send this process's log to `<bundle>/log`, and nothing elsewhere: its descriptor. Raises `OSError`."""
    handler = LogHandler(f"{bundle}/{FILE}", prefix)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.raiseExceptions = False
    return handler.fd


class HostLog(logging.Handler):
    """The logs of a process with many shims: each record goes to the log of the shim in whose context it is made.

    What is nobody's, and what the interpreter writes to stderr, goes to the log of the shim that is there longest.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logs: list[LogHandler] = []

    def install(self) -> None:
        """Take every record of this process, and let go of the parent's streams."""
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(logging.INFO)
        logging.raiseExceptions = False
        for number in range(3):
            self._redirect(number, None)

    @contextlib.contextmanager
    def of(self, bundle: str, prefix: str, *, debug: bool) -> Generator[None]:
        """Within, in this context and those made from it, the log is `<bundle>/log`. Raises `OSError`."""
        handler = LogHandler(f"{bundle}/{FILE}", prefix)
        handler.setLevel(logging.DEBUG if debug else logging.INFO)
        token = _current.set(handler)
        self._logs.append(handler)
        self._changed()
        try:
            yield
        finally:
            _current.reset(token)
            self._logs.remove(handler)
            self._changed()
            handler.close()

    def emit(self, record: logging.LogRecord) -> None:
        handler = _current.get() or (self._logs[0] if self._logs else None)
        if handler is not None and record.levelno >= handler.level:
            handler.emit(record)

    def _changed(self) -> None:
        logging.getLogger().setLevel(min((handler.level for handler in self._logs), default=logging.INFO))
        self._redirect(2, self._logs[0].fd if self._logs else None)

    @staticmethod
    def _redirect(number: int, fd: int | None) -> None:
        if fd is not None:
            os.dup2(fd, number)
            return
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, number)
        os.close(null)


_current: ContextVar[LogHandler | None] = ContextVar("log of a shim", default=None)
