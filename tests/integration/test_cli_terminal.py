"""`atoll run -it` and `atoll exec -it` in a real terminal: prompt, keys, size, Ctrl-C, Ctrl-D."""

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
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon

WITHIN_S = 20.0


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atoll.cli.main", *arguments],
            env={**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket)},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no thread of ours runs here
        )
        self.slave = slave
        self.seen = b""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def until(self, text: bytes) -> bytes:
        """Read until `text` is shown; what came before it."""
        deadline = time.monotonic() + WITHIN_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} is not shown, but {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(text)
        return before

    def ends(self) -> int:
        return self.process.wait(WITHIN_S)


@contextmanager
def terminal(daemon: Daemon, *arguments: str) -> Iterator[Terminal]:
    made = Terminal(daemon, *arguments)
    try:
        yield made
        assert termios.tcgetattr(made.slave) == made.before, "the terminal is left as it was found"
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.master)
        os.close(made.slave)


def test_a_shell_in_a_terminal(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", "--network", "none", "atoll/busybox", "sh") as shell:
        shell.until(b"# ")
        shell.type(b"stty size; echo do''ne\n")
        assert b"24 80" in shell.until(b"done")
        shell.resize(132, 40)
        shell.type(b"sleep 0.5; stty size; echo ag''ain\n")
        assert b"40 132" in shell.until(b"again")
        shell.type(b"trap 'echo c''aught' INT; echo re''ady; sleep 1000\n")
        shell.until(b"ready")
        time.sleep(0.5)
        shell.type(b"\x03")
        shell.until(b"caught")
        shell.until(b"# ")
        shell.type(b"\x04")
        assert shell.ends() in (0, 130)
    assert daemon.run("ps", "-aq").stdout == ""


def test_an_exec_in_a_terminal(daemon: Daemon) -> None:
    daemon.run("run", "-d", "--network", "none", "--name", "x", "atoll/busybox", "sleep", "1000")
    with terminal(daemon, "exec", "-it", "x", "sh") as shell:
        shell.until(b"# ")
        shell.type(b"tty; stty size; exit 5\n")
        shell.until(b"/dev/pts/")
        shell.until(b"24 80")
        assert shell.ends() == 5
    daemon.run("rm", "-f", "x")


def test_a_table_fits_a_narrow_terminal(daemon: Daemon) -> None:
    daemon.run("run", "-d", "--network", "none", "--name", "x" * 50, "atoll/busybox", "sleep", "1000")
    with terminal(daemon, "ps") as narrow:
        head = narrow.until(b"\r\n")
        row = narrow.until(b"\r\n")
        assert narrow.ends() == 0
    for line in (head, row):
        assert len(re.sub(r"\x1b\[[0-9;]*m", "", line.decode())) <= 80
    assert "…" in row.decode()
    daemon.run("rm", "-fa")


def test_a_terminal_that_is_none_is_refused(daemon: Daemon) -> None:
    done = daemon.run("run", "-t", "--network", "none", "atoll/busybox", "sh")
    assert (done.returncode, done.stdout) == (125, "")
    assert "must be a terminal" in done.stderr
    assert daemon.run("ps", "-aq").stdout == ""
