"""What processes hold: descriptors, sockets and threads (proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

MAX_PROCESSES = 1024
"""Of more nothing is counted: each descriptor is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """`max_open_files` is the soft limit of the first of them, None where it is not told or is none."""

    descriptors: int
    sockets: int
    threads: int
    max_open_files: int | None


def by(pids: Sequence[int], first: int) -> Held | None:
    """What these processes hold together, those that have gone left out; None for too many of them."""
    if len(pids) > MAX_PROCESSES:
        return None
    descriptors = sockets = threads = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            threads += os.stat(f"/proc/{pid}/task").st_nlink - 2
        found = _targets(pid)
        descriptors += len(found)
        sockets += sum(target.startswith("socket:") for target in found)
    return Held(descriptors=descriptors, sockets=sockets, threads=threads, max_open_files=_max_open_files(first))


def _targets(pid: int) -> list[str]:
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry.path))
    return found


def _max_open_files(pid: int) -> int | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/limits", encoding="ascii") as file:
        for line in file:
            if line.startswith("Max open files"):
                soft = line.split()[3]
                return int(soft) if soft.isdigit() else None
    return None
