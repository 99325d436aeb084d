"""What went through the interfaces of a network namespace, without entering it (proc(5), "/proc/pid/net/dev")."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from atoll.linux import netns
from atoll.linux.netlink import LinkCounters

_FIELDS = {
    0: "rx_bytes",
    1: "rx_packets",
    2: "rx_errors",
    3: "rx_dropped",
    8: "tx_bytes",
    9: "tx_packets",
    10: "tx_errors",
    11: "tx_dropped",
}


def counters(pid: int, path: Path) -> dict[str, LinkCounters]:
    """By the interface's name, in the kernel's order, of the namespace pinned at `path`, which process `pid` is in.

    Where the process has gone, or is 0, a thread of its own looks inside. Raises `OSError` where the namespace is gone.
    """
    if pid and _is_in(pid, path):
        try:
            return parse(_read(f"/proc/{pid}/net/dev"))
        except OSError as error:
            # It has ended since it was looked at; one that is ending has no namespace any more: EINVAL.
            if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL):
                raise
    return netns.inside(path, lambda: parse(_read("/proc/thread-self/net/dev")))


def _is_in(pid: int, path: Path) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(path).st_ino
    except (FileNotFoundError, ProcessLookupError):
        return False


def _read(path: str) -> str:
    """The whole file, which is told in pieces of a page."""
    with open(path, "rb", buffering=0) as file:
        return file.readall().decode("utf-8", "surrogateescape")


def parse(text: str) -> dict[str, LinkCounters]:
    """The text of `net/dev`; a line of another form is passed over, such as the two of the heading."""
    found: dict[str, LinkCounters] = {}
    for line in text.splitlines():
        name, colon, rest = line.rpartition(":")
        numbers = rest.split()
        if colon and len(numbers) >= 16:
            found[name.strip()] = LinkCounters(**{field: int(numbers[at]) for at, field in _FIELDS.items()})
    return found
