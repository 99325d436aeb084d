"""What a sandbox has on its host, seen from outside: processes in its namespaces, mounts, cgroups, sockets.

`LinuxHost` reads /proc and the cgroup mounts and changes nothing. A controller in memory brings a `Host` of its own.
Source: namespaces(7), cgroups(7), proc_pid_mountinfo(5), proc_net(5).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from atoll.linux import process
from atoll.linux.mounts import read_mountinfo

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
CGROUPS = Path("/sys/fs/cgroup")
ENDED = "ZX"
FROZEN_STATES = "Tt"
"""States of /proc/<pid>/stat: dead and not reaped; stopped by a signal or a tracer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How a sandbox can be told on its host, noted while it ran.

    `namespaces` are its own (kind, inode), `processes` those in them and its own one (pid, start time), `mounts` the
    points where its namespaces are pinned. An inode is given away again once its namespace is gone, so only the
    processes that were seen are looked for later.
    """

    sandbox_id: str
    pid: int = 0
    namespaces: frozenset[tuple[str, int]] = frozenset()
    processes: frozenset[tuple[int, int]] = frozenset()
    mounts: frozenset[str] = frozenset()
    socket: str = ""

    def __or__(self, later: Trace) -> Trace:
        """The later one with what the earlier one saw."""
        return replace(later, processes=self.processes | later.processes, mounts=self.mounts | later.mounts)


class Host(Protocol):
    """Sees what sandboxes have. Methods take some milliseconds and never change anything."""

    async def trace(self, sandbox_id: str, pid: int, socket: str, kinds: frozenset[str]) -> Trace:
        """How a running sandbox can be told; `kinds` are those of the namespaces that it alone has."""
        ...

    async def again(self, trace: Trace) -> Trace:
        """A trace with what the sandbox has got since; unchanged where its process has ended."""
        ...

    async def is_alive(self, pid: int) -> bool:
        """Whether there is such a process, and it has not ended."""
        ...

    async def own_namespaces(self, pid: int) -> frozenset[str]:
        """The kinds of namespaces in which a process is, and the one who asks is not."""
        ...

    async def members(self, trace: Trace) -> tuple[int, ...]:
        """The pids in the namespaces of a running sandbox, and its own one; sorted."""
        ...

    async def is_frozen(self, pid: int) -> bool:
        """Whether the process is in a frozen cgroup, or stopped."""
        ...

    async def pids_limits(self, pid: int, cgroup: str) -> frozenset[int]:
        """The limits of processes of `cgroup` and of the ones that a process is in, up to the root."""
        ...

    async def left(self, trace: Trace) -> tuple[str, ...]:
        """What is there of the sandbox now, a line for each thing."""
        ...


class LinuxHost:
    """The host that this process runs on.

    Cgroups with one of `owned_cgroups` in their path were given to the sandboxes by their user, and stay.
    """

    def __init__(self, owned_cgroups: tuple[str, ...] = ()) -> None:
        self._owned_cgroups = owned_cgroups

    async def trace(self, sandbox_id: str, pid: int, socket: str, kinds: frozenset[str]) -> Trace:
        return await asyncio.to_thread(_trace, sandbox_id, pid, socket, kinds)

    async def again(self, trace: Trace) -> Trace:
        return await asyncio.to_thread(_again, trace)

    async def is_alive(self, pid: int) -> bool:
        seen = await asyncio.to_thread(process.stat, pid) if pid > 0 else None
        return seen is not None and seen.state not in ENDED

    async def own_namespaces(self, pid: int) -> frozenset[str]:
        return frozenset(kind for kind, _ in await asyncio.to_thread(_own_namespaces, pid))

    async def members(self, trace: Trace) -> tuple[int, ...]:
        return tuple(sorted(pid for pid, _ in await asyncio.to_thread(_processes, trace.pid, trace.namespaces)))

    async def is_frozen(self, pid: int) -> bool:
        return await asyncio.to_thread(_is_frozen, pid)

    async def pids_limits(self, pid: int, cgroup: str) -> frozenset[int]:
        return await asyncio.to_thread(_pids_limits, pid, cgroup)

    async def left(self, trace: Trace) -> tuple[str, ...]:
        return await asyncio.to_thread(self._left, trace)

    def _left(self, trace: Trace) -> tuple[str, ...]:
        alive = [seen for seen in map(process.stat, sorted(pid for pid, _ in trace.processes)) if seen is not None]
        alive = [seen for seen in alive if (seen.pid, seen.start_ticks) in trace.processes and seen.state not in ENDED]
        points = {mount.mount_point for mount in read_mountinfo()}
        mounts = sorted(point for point in points if point in trace.mounts or trace.sandbox_id in point)
        cgroups = [path for path in _cgroups() if trace.sandbox_id in path.name]
        return (
            *(f"process {seen.pid} ({seen.command})" for seen in alive),
            *(f"mount {point}" for point in mounts),
            *(f"cgroup {path}" for path in cgroups if not self._is_owned(str(path))),
            *(f"socket {name}" for name in sorted(_sockets()) if name == trace.socket or trace.sandbox_id in name),
        )

    def _is_owned(self, path: str) -> bool:
        # A cgroup hierarchy of version 1 has its folder before the path: freezer/<path>.
        return any(owned in path for owned in self._owned_cgroups)


def _trace(sandbox_id: str, pid: int, socket: str, kinds: frozenset[str]) -> Trace:
    namespaces = frozenset((kind, inode) for kind, inode in _own_namespaces(pid) if kind in kinds)
    pinned = {f"{kind}:[{inode}]" for kind, inode in namespaces}
    return Trace(
        sandbox_id=sandbox_id,
        pid=pid,
        namespaces=namespaces,
        processes=_processes(pid, namespaces),
        mounts=frozenset(mount.mount_point for mount in read_mountinfo() if mount.root in pinned),
        socket=socket,
    )


def _again(trace: Trace) -> Trace:
    now = _trace(trace.sandbox_id, trace.pid, trace.socket, frozenset(kind for kind, _ in trace.namespaces))
    # A pid, and the inode of a namespace, may have been given to somebody else.
    its_own = {one for one in trace.processes if one[0] == trace.pid}
    return trace | now if its_own <= now.processes and now.namespaces == trace.namespaces else trace


def _own_namespaces(pid: int) -> frozenset[tuple[str, int]]:
    """The namespaces of a process that are not those of this one."""
    here = _namespaces(os.getpid())
    return frozenset((kind, inode) for kind, inode in _namespaces(pid).items() if here.get(kind) != inode)


def _namespaces(pid: int) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for kind in NAMESPACES:
        try:
            found[kind] = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
        except OSError:
            continue  # it has ended, or this kernel lacks the kind
    return found


def _processes(pid: int, namespaces: frozenset[tuple[str, int]]) -> frozenset[tuple[int, int]]:
    """Pid and start time of every process in one of the namespaces, and of `pid`."""
    wanted: dict[str, set[int]] = {}
    for kind, inode in namespaces:
        wanted.setdefault(kind, set()).add(inode)
    found = {pid} if pid > 0 else set[int]()
    if wanted:
        found.update(one for one in _pids() if _is_in(one, wanted))
    seen = [process.stat(one) for one in found]
    return frozenset((one.pid, one.start_ticks) for one in seen if one is not None and one.state not in ENDED)


def _is_in(pid: int, wanted: Mapping[str, set[int]]) -> bool:
    for kind, inodes in wanted.items():
        try:
            if os.stat(f"/proc/{pid}/ns/{kind}").st_ino in inodes:
                return True
        except OSError:
            return False  # it has ended
    return False


def _is_frozen(pid: int) -> bool:
    seen = process.stat(pid)
    if seen is not None and seen.state in FROZEN_STATES:
        return True
    folders = _folders(pid, "freezer")
    return any(
        _read(folder / "freezer.state").strip() == "FROZEN" or "frozen 1" in _read(folder / "cgroup.events")
        for folder in folders
    )


def _pids_limits(pid: int, cgroup: str) -> frozenset[int]:
    found: set[int] = set()
    named = [root / cgroup.strip("/") for root in (CGROUPS / "pids", CGROUPS, CGROUPS / "unified")]
    for folder in (*named, *_folders(pid, "pids")):
        while folder.is_relative_to(CGROUPS):
            limit = _read(folder / "pids.max").strip()
            if limit.isdecimal():
                found.add(int(limit))
            folder = folder.parent
    return frozenset(found)


def _folders(pid: int, controller: str) -> list[Path]:
    """The folders of a process's cgroup where that controller, or version 2, may be."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += [CGROUPS / path[1:], CGROUPS / "unified" / path[1:]]
        elif controller in controllers.split(","):
            found.append(CGROUPS / controllers / path[1:])
            found.append(CGROUPS / controller / path[1:])
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _cgroups() -> Iterator[Path]:
    folders = [CGROUPS]
    while folders:
        folder = folders.pop()
        try:
            # A folder counts its subfolders among its links: most need not be read.
            if os.stat(folder).st_nlink <= 2:
                continue
            with os.scandir(folder) as entries:
                found = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # it has gone
        yield from found
        folders += found


def _sockets() -> set[str]:
    """The names of the unix sockets of this network namespace that are bound; an abstract one begins with @."""
    found: set[str] = set()
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(None, 7)
            if len(fields) == 8:
                found.add(fields[7].rstrip("\n"))
    return found


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())
