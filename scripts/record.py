#!/usr/bin/env python3
"""Record docs/assets/terminal.svg, which the README shows: the commands below, run in a terminal for real.

    scripts/record.py                                   as root; with a daemon of its own, which leaves nothing
    scripts/record.py --socket /run/atoll/atoll.sock    with the daemon there
    scripts/record.py --output FILE

Every command must end with status 0. What it writes goes through a terminal emulator (pyte); each screen that stands
for a moment becomes a frame of an SVG that moves by CSS alone. Waits are cut to `LONGEST_WAIT_S`, so that the length
and the size hardly depend on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

import pyte
from pyte.screens import Char

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUT = REPOSITORY / "docs" / "assets" / "terminal.svg"
ATOLL = Path(sys.executable).with_name("atoll")

COMMANDS = (
    "atoll run -d --name web --memory 64m atoll/busybox httpd -f -v -p 80 -h /etc",
    "atoll exec web wget -qO- http://127.0.0.1/hostname",
    "atoll logs web",
    "atoll ps",
    "atoll why web",
    "atoll fsck",
    "atoll rm -f web",
    "atoll fsck",
)
COLUMNS, ROWS = 104, 30
PROMPT = "\x1b[1;32m$\x1b[0m "

READY_WITHIN_S = 20.0
COMMAND_WITHIN_S = 60.0
FRAME_S = 0.1
"""What is written within so long is one frame."""
LONGEST_WAIT_S = 1.0
TYPED_S, READ_S, END_S = 0.12, 1.8, 4.0
"""For each word of a command; to read what it wrote; before it begins again."""
MAX_BYTES = 300_000

CELL_W, CELL_H, MARGIN = 8.4, 18, 12
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
PAPER, INK = "#16181d", "#d7dae0"
COLOURS = {
    "black": "#4b5263", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef",
    "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d7dae0",
}  # fmt: skip


class Recording:
    """A terminal's screens, each with how long it stands."""

    def __init__(self) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.frames: list[tuple[tuple[str, ...], float]] = []
        self._stream = pyte.ByteStream(self.screen)

    def write(self, data: bytes) -> None:
        self._stream.feed(data)

    def stand(self, seconds: float) -> None:
        """The screen as it is, for so long; joined with the one before where nothing has changed."""
        lines = tuple(self._line(number) for number in range(ROWS))
        if self.frames and self.frames[-1][0] == lines:
            self.frames[-1] = (lines, self.frames[-1][1] + seconds)
        else:
            self.frames.append((lines, seconds))

    def _line(self, number: int) -> str:
        """One line as SVG text; empty where nothing is on it."""
        row = self.screen.buffer[number]
        cells = [row[column] for column in range(COLUMNS)]
        runs: list[str] = []
        column = 0
        for style, group in groupby(cells, key=_style):
            text = "".join(cell.data for cell in group)
            if text.strip():
                runs.append(f'<tspan x="{column * CELL_W:.1f}"{style}>{escape(text.rstrip())}</tspan>')
            column += len(text)
        return "".join(runs)


def _style(cell: Char) -> str:
    colour = COLOURS.get(cell.fg.removeprefix("bright"), f"#{cell.fg}" if cell.fg != "default" else "")
    return (f' fill="{colour}"' if colour else "") + (' font-weight="bold"' if cell.bold else "")


def main() -> int:
    arguments = _arguments()
    with contextlib.ExitStack() as stack:
        socket = arguments.socket or stack.enter_context(_daemon())
        recording = Recording()
        for command in COMMANDS:
            _type(recording, command)
            status = _run(recording, command.split(), socket)
            if status != 0:
                sys.exit(f"`{command}` ended with status {status}:\n" + "\n".join(recording.screen.display).rstrip())
            recording.stand(READ_S)
        recording.write(PROMPT.encode())
        recording.stand(END_S)
    svg = render(recording.frames)
    if len(svg) > MAX_BYTES:
        sys.exit(f"the recording has {len(svg)} bytes, more than {MAX_BYTES}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(svg)
    print(f"{arguments.output}: {len(recording.frames)} frames, {len(svg)} bytes")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", help="of a daemon that runs; without it one is started")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


def _type(recording: Recording, command: str) -> None:
    recording.write(PROMPT.encode())
    recording.stand(4 * TYPED_S)
    for word in command.split(" "):
        recording.write(word.encode() + b" ")
        recording.stand(TYPED_S)
    recording.write(b"\r\n")


def _run(recording: Recording, command: Sequence[str], socket: str) -> int:
    """Run it in a terminal of its own; its exit status."""
    environment = {
        "PATH": f"{ATOLL.parent}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8",
        "TERM": "xterm-256color", "ATOLL_SOCKET": socket,
    }  # fmt: skip
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        _watch(recording, ours)
        return process.wait(COMMAND_WITHIN_S)
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()


def _watch(recording: Recording, terminal: int) -> None:
    """What is written to the terminal, until nobody has it open."""
    deadline, last = time.monotonic() + COMMAND_WITHIN_S, time.monotonic()
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], FRAME_S)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: the last of them has closed it
            return
        now = time.monotonic()
        if now - last >= FRAME_S:
            recording.stand(min(now - last, LONGEST_WAIT_S))
            last = now
        recording.write(data)
    sys.exit(f"a command took longer than {COMMAND_WITHIN_S:g} s")


@contextlib.contextmanager
def _daemon() -> Iterator[str]:
    """A daemon with folders of its own; the path of its socket. Nothing of it is left behind."""
    name = f"atoll-record-{secrets.token_hex(3)}"
    base, state = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/var/tmp")), Path("/run") / name
    socket = state / "atoll.sock"
    config = base / "config.toml"
    number = secrets.randbelow(512)
    config.write_text(
        f'cgroup_parent = "/{name}"\n[network]\nconf_dir = "{base}/net.d"\n'
        f'default_subnet = "198.{18 + number // 256}.{number % 256}.0/24"\n'
    )
    command = [str(ATOLL), "serve", "--root", f"{base}/root", "--state", str(state), "--config", str(config)]
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the daemon does not start:\n{(base / 'log').read_text()}")
            time.sleep(0.05)
        yield str(socket)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        shutil.rmtree(base)
        shutil.rmtree(state, ignore_errors=True)


def render(frames: list[tuple[tuple[str, ...], float]]) -> bytes:
    """The frames one below the other in a window that jumps from one to the next; each distinct line is there once."""
    width, height = round(COLUMNS * CELL_W + 2 * MARGIN), ROWS * CELL_H + 2 * MARGIN
    total = sum(seconds for _, seconds in frames)
    distinct = {
        line: f"l{number}" for number, line in enumerate(dict.fromkeys(one for f, _ in frames for one in f if one))
    }
    steps: list[str] = []
    at = 0.0
    for number, (_, seconds) in enumerate(frames):
        steps.append(f"{at / total * 100:.3f}%{{transform:translateY(-{number * height}px)}}")
        at += seconds
    moves = f"@keyframes k{{{''.join(steps)}}}#s{{animation:k {total:.1f}s step-end infinite}}"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    look = f'font-family="{FONT}" font-size="14" fill="{INK}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {look}>',
        f"<title>Atoll in a terminal</title><style>text{{white-space:pre}}{moves}</style>",
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/><defs>',
        *(f'<text id="{name}" xml:space="preserve">{line}</text>' for line, name in distinct.items()),
        '</defs><g id="s">',
    ]
    for number, (lines, _) in enumerate(frames):
        top = number * height + MARGIN
        for row, line in enumerate(lines):
            if line:
                parts.append(f'<use href="#{distinct[line]}" x="{MARGIN}" y="{top + (row + 1) * CELL_H - 4}"/>')
    parts.append("</g></svg>\n")
    return "".join(parts).encode()


if __name__ == "__main__":
    sys.exit(main())
