"""CRI log lines as they are read: `<time> <stdout|stderr> <F|P> <content>`, a line each.

The daemon sends a log by blocks of whole lines, as the file has them; whoever wants lines takes them out here. What is
no such line is passed over (Kubernetes, "CRI container logging").
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

_STREAMS = {b"stdout": "stdout", b"stderr": "stderr"}


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a container's log without its newline; `partial` where the line goes on in the next one."""

    stream: str
    time_ns: int
    content: bytes
    partial: bool = False

    @property
    def time(self) -> datetime | None:
        """In UTC, to the microsecond."""
        return datetime.fromtimestamp(self.time_ns // 1000 / 1e6, UTC) if self.time_ns > 0 else None

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")


def lines(block: bytes) -> list[LogLine]:
    """The lines of a block in their order. Neighbours mostly have one time, which is read once."""
    found: list[LogLine] = []
    stamp, time_ns = b"", None
    for raw in block.split(b"\n"):
        parts = raw.split(b" ", 3)
        if len(parts) != 4:
            continue
        if parts[0] != stamp:
            stamp = parts[0]
            time_ns = _time(stamp)
        stream = _STREAMS.get(parts[1])
        if time_ns is not None and stream is not None:
            found.append(LogLine(stream, time_ns, parts[3], parts[2] == b"P"))
    return found


def line(raw: bytes) -> LogLine | None:
    """One line without its line break; None for what is none."""
    found = lines(raw)
    return found[0] if found else None


def _time(stamp: bytes) -> int | None:
    try:
        return parse_time(stamp.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        return None


def parse_time(text: str) -> int:
    """RFC 3339 with up to nine digits of a second, in ns since the epoch; raises `ValueError`."""
    head, dot, rest = text.partition(".")
    if not dot:
        return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000
    digits = len(rest) - len(rest.lstrip("0123456789"))
    fraction, zone = rest[:digits], rest[digits:]
    seconds = int(datetime.fromisoformat(head + zone).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9])
