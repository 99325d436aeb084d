"""The files of a cgroup: opened, read, and taken apart. One that is not there is empty."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass

UNLIMITED_BYTES = 1 << 62
"""A limit above this is none: version 1 writes the largest multiple of a page."""
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PressureLine:
    """Shares of time in percent over 10, 60 and 300 seconds, and the whole time in µs."""

    avg10: float
    avg60: float
    avg300: float
    total_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """How long some tasks, or all of them, waited for a resource."""

    some: PressureLine | None = None
    full: PressureLine | None = None


def text(folder: str, name: str) -> str:
    """The content; empty where there is no such file, or no folder."""
    if not folder:
        return ""
    try:
        fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        return os.read(fd, READ_BYTES).decode("ascii", "replace")
    except OSError as error:
        # ENODEV: the cgroup went while the file was open. EOPNOTSUPP: pressure is not counted (cgroup.pressure 0).
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            return ""
        raise
    finally:
        os.close(fd)


def pids(folder: str) -> list[int]:
    """The processes in the folder itself, not those below it; of one that has gone, none."""
    try:
        with open(f"{folder}/cgroup.procs", "rb") as file:  # which is told in pieces of a page
            return [int(line) for line in file]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.EOPNOTSUPP):
            return []
        raise


def number(folder: str, name: str) -> int | None:
    """The number in a file; None for `max` and where there is no such file."""
    found = text(folder, name).strip()
    return int(found) if found.isdigit() else None


def limit(folder: str, name: str) -> int | None:
    """As `number`; None too where it is so large that it limits nothing."""
    found = number(folder, name)
    return found if found is not None and found < UNLIMITED_BYTES else None


def flat(content: str) -> dict[str, int]:
    """The lines `key value`; others are passed over."""
    found: dict[str, int] = {}
    for line in content.splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def pairs(words: Iterable[str]) -> dict[str, str]:
    """The words `key=value`."""
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        found[key] = value
    return found


@functools.lru_cache(maxsize=64)
def parse_pressure(content: str) -> Pressure:
    """A `*.pressure` file; a line that is not there, or of another form, is None.

    Those of idle cgroups say the same, so the last ones are remembered.
    """
    lines: dict[str, PressureLine] = {}
    for line in content.splitlines():
        kind, *words = line.split() or [""]
        values = pairs(words)
        with contextlib.suppress(KeyError, ValueError):
            lines[kind] = PressureLine(
                avg10=float(values["avg10"]),
                avg60=float(values["avg60"]),
                avg300=float(values["avg300"]),
                total_us=int(values["total"]),
            )
    return Pressure(some=lines.get("some"), full=lines.get("full"))


def pressure(folder: str, name: str) -> Pressure | None:
    """As `parse_pressure`; None where it is not counted."""
    content = text(folder, name)
    return parse_pressure(content) if content else None
