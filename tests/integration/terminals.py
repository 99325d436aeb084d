"""A command in a terminal of its own, typed to and read from as a person would."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.integration.daemons import Daemon

WITHIN_S = 30.0
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`atoll` in a terminal; `seen` is what was shown and not waited for yet."""

    def __init__(self, daemon: Daemon, *arguments: str, width: int = 80, env: Mapping[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        self.resize(width, 24)
        self.before = termios.tcgetattr(slave)
        plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atoll.cli.main", *arguments],
            env={**plain, "TERM": "xterm-256color", "ATOLL_SOCKET": str(daemon.roots.socket), **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no thread of ours runs here
        )
        self.slave = slave
        self.seen = b""
        self.shown = b""
        """Everything, from the first byte on."""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def until(self, text: bytes) -> bytes:
        """Read until `text` is shown; what came before it."""
        deadline = time.monotonic() + WITHIN_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} is not shown, but {self.seen[-500:]!r}"
            self._read()
        before, _, self.seen = self.seen.partition(text)
        return before

    def _read(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            data = os.read(self.master, 65536)
            self.seen += data
            self.shown += data

    def ends(self) -> int:
        """Its exit status, everything that it shows having been read."""
        deadline = time.monotonic() + WITHIN_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on, having shown {self.shown[-500:]!r}"
            self._read()
        while select.select([self.master], [], [], 0)[0]:
            self._read()
        return self.process.returncode

    @property
    def has_style(self) -> bool:
        return _COLOUR.search(self.shown) is not None

    @property
    def lines(self) -> list[str]:
        """What was shown, without colours and movements of the cursor."""
        return _ESCAPE.sub(b"", self.shown).decode(errors="replace").replace("^C", "").replace("\r", "\n").split("\n")


@contextmanager
def terminal(
    daemon: Daemon, *arguments: str, width: int = 80, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Start `atoll` in a terminal, which must be left as it was found."""
    made = Terminal(daemon, *arguments, width=width, env=env)
    try:
        yield made
        assert termios.tcgetattr(made.slave) == made.before, "the terminal is left as it was found"
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.master)
        os.close(made.slave)
