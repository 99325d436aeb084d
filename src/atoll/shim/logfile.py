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
