"""The cgroups of a container or pod, found through one of its processes.

A cgroup is a tuple of absolute folders: one a version 1 hierarchy, or the single version 2 folder. Reading
takes whatever is there; a folder that went is an empty one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from pathlib import Path, PurePosixPath

from atoll.linux import cgroup, cgroup_layout, freezer, process

_hierarchies = functools.cache(cgroup_layout.detect)


def of_process(pid: int) -> tuple[Path, ...]:
    """The cgroups that a process was put into (proc(5), /proc/<pid>/cgroup); none where it is gone.

    Where a runtime left it in its parent's cgroup, which is ours or a root, that one is not its own: whoever
    kills or removes what this returns must not reach further than the container.
    """
    own = set(_folders("self"))
    return tuple(folder for folder in _folders(str(pid)) if folder not in own)


def of_path(path: str) -> tuple[Path, ...]:
    """The cgroups of an absolute path, in each hierarchy that has it, but for one that this process is in."""
    if not path.startswith("/") or len(PurePosixPath(path).parts) < 2 or ".." in PurePosixPath(path).parts:
        return ()
    own = set(_folders("self"))
    found = (mount / path[1:] for mount in _hierarchies().mounts)
    return tuple(folder for folder in found if folder.is_dir() and folder not in own)


def absent_parents(path: str) -> tuple[str, ...]:
    """The cgroups above `path` that are in no hierarchy, the innermost first: an OCI runtime makes them for it."""
    absent: list[str] = []
    for parent in PurePosixPath(path).parents if path.startswith("/") else ():
        if not parent.name or any((mount / str(parent)[1:]).is_dir() for mount in _hierarchies().mounts):
            break
        absent.append(str(parent))
    return tuple(absent)


def remove_empty(paths: tuple[str, ...]) -> None:
    """Remove cgroups, the innermost first, but for those that have something in them by now."""
    for path in paths:
        for mount in _hierarchies().mounts:
            with contextlib.suppress(OSError):
                (mount / path[1:]).rmdir()


def _folders(pid: str) -> tuple[Path, ...]:
    found = cgroup.memberships(pid, _hierarchies())
    return tuple(dict.fromkeys(mount / path for mount, path in found if path and not path.startswith("..")))


def _main(folders: tuple[Path, ...]) -> Path | None:
    """The folder that lists the processes: of version 2 if it is the only one, else of any version 1 controller."""
    for folder in folders:
        if (folder / "cgroup.procs").exists():
            return folder
    return None


def pids(folders: tuple[Path, ...]) -> list[int]:
    """The processes in the cgroup and below; never this one."""
    folder = _main(folders)
    return sorted(cgroup.pids_below(folder) - {os.getpid()}) if folder is not None else []


def signal_all(folders: tuple[Path, ...], number: int) -> int:
    """Send a signal to each process, once; how many took it."""
    count = 0
    for pid in pids(folders):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            count += 1
    return count


def kill(folders: tuple[Path, ...]) -> int:
    """SIGKILL every process, those forked meanwhile too: rounds until nobody new is found, at most 64."""
    killed: set[int] = set()
    for _ in range(64):
        fresh = set(pids(folders)) - killed
        if not fresh:
            break
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= fresh
    freezer.release_killed(folders)
    return len(killed)


def kill_tree(folders: tuple[Path, ...], root: int, init: int) -> int:
    """SIGKILL the process `root` and all in the cgroup that it started; how many. `init` is the container's first one.

    Its own are the members of its session, which outlive it, and whoever descends from one of these. Rounds, for
    those forked meanwhile, as in `kill`. The session is one that it leads or, as crun has it, that of the program which
    started it; never the container's own, nor ours.
    """
    sessions = {root}
    if (found := process.stat(root)) is not None:
        first = process.stat(init)
        sessions |= {found.session} - {0, init, os.getsid(0), first.session if first is not None else 0}
    killed: set[int] = set()
    for _ in range(64):
        fresh = _tree(folders, root, sessions) - killed
        if not fresh:
            break
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= fresh
    return len(killed)


def _tree(folders: tuple[Path, ...], root: int, sessions: set[int]) -> set[int]:
    seen = {found.pid: found for found in map(process.stat, pids(folders)) if found is not None and found.state != "Z"}
    members = {pid for pid, found in seen.items() if pid == root or found.session in sessions}
    while more := {pid for pid, found in seen.items() if found.parent in members} - members:
        members |= more
    return members


def oom_kills(folders: tuple[Path, ...]) -> int:
    """How many of its processes the kernel killed because memory ran out; 0 where nobody counts."""
    for folder in folders:
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                for line in (folder / name).read_text(encoding="ascii").splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value)
    return 0


def remove(folder: Path) -> None:
    """Remove a cgroup with everything below; idempotent. Raises `OSError` EBUSY where a process is left in it."""
    for parent, children, _ in os.walk(folder, topdown=False):
        for child in children:
            with contextlib.suppress(FileNotFoundError):
                Path(parent, child).rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
