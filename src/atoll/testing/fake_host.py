"""A host in memory: what sandboxes of the fake controller have there, and how it looks from outside."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from atoll.testing.conformance.host import Trace

FIRST_PID = 1000
FIRST_INODE = 4_026_540_000
KINDS = ("ipc", "mnt", "net", "pid", "uts")


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeProcess:
    """A process: whose it is, in which namespaces of its own (kind, inode), and since which tick."""

    pid: int
    sandbox_id: str
    namespaces: frozenset[tuple[str, int]]
    since: int
    is_frozen: bool = False


@dataclass(slots=True)
class FakeHost:
    """Processes by pid; mounts, cgroups and sockets by name, each with the ID of its sandbox. Implements `Host`."""

    processes: dict[int, FakeProcess] = field(default_factory=dict[int, FakeProcess])
    mounts: dict[str, str] = field(default_factory=dict[str, str])
    cgroups: dict[str, str] = field(default_factory=dict[str, str])
    sockets: dict[str, str] = field(default_factory=dict[str, str])
    limits: dict[str, int] = field(default_factory=dict[str, int])
    _pids: itertools.count[int] = field(default_factory=lambda: itertools.count(FIRST_PID))
    _inodes: itertools.count[int] = field(default_factory=lambda: itertools.count(FIRST_INODE))

    def prepare(self, sandbox_id: str) -> None:
        """What a created sandbox has: a mount and a cgroup."""
        self.mounts[f"/run/fake/{sandbox_id}/shm"] = sandbox_id
        self.cgroups[f"/fake/{sandbox_id}"] = sandbox_id

    def spawn(self, sandbox_id: str, kinds: tuple[str, ...] = KINDS) -> int:
        """The first process of a sandbox, in new namespaces; its pid."""
        return self._add(sandbox_id, frozenset((kind, next(self._inodes)) for kind in kinds))

    def join(self, pid: int) -> int:
        """One more process in the namespaces of `pid`; its pid."""
        first = self.processes[pid]
        return self._add(first.sandbox_id, first.namespaces)

    def _add(self, sandbox_id: str, namespaces: frozenset[tuple[str, int]]) -> int:
        pid = next(self._pids)
        self.processes[pid] = FakeProcess(pid=pid, sandbox_id=sandbox_id, namespaces=namespaces, since=pid)
        return pid

    def of(self, sandbox_id: str) -> tuple[int, ...]:
        """The pids of a sandbox, its first one first."""
        return tuple(pid for pid, one in sorted(self.processes.items()) if one.sandbox_id == sandbox_id)

    def freeze(self, pid: int, is_frozen: bool) -> None:
        self.processes[pid] = replace(self.processes[pid], is_frozen=is_frozen)

    def kill(self, sandbox_id: str) -> None:
        """End every process of a sandbox."""
        for pid in self.of(sandbox_id):
            del self.processes[pid]

    def free(self, sandbox_id: str) -> None:
        """Take away everything of a sandbox."""
        self.kill(sandbox_id)
        self.limits.pop(sandbox_id, None)
        for table in (self.mounts, self.cgroups, self.sockets):
            for name in [name for name, owner in table.items() if owner == sandbox_id]:
                del table[name]

    async def trace(self, sandbox_id: str, pid: int, socket: str, kinds: frozenset[str]) -> Trace:
        first = self.processes.get(pid)
        here = first.namespaces if first is not None else frozenset[tuple[str, int]]()
        namespaces = frozenset((kind, inode) for kind, inode in here if kind in kinds)
        return self._seen(Trace(sandbox_id=sandbox_id, pid=pid, namespaces=namespaces, socket=socket))

    def _seen(self, trace: Trace) -> Trace:
        found = [one for one in self.processes.values() if one.pid == trace.pid or one.namespaces & trace.namespaces]
        return replace(trace, processes=frozenset((one.pid, one.since) for one in found))

    async def again(self, trace: Trace) -> Trace:
        return trace | self._seen(trace)

    async def is_alive(self, pid: int) -> bool:
        return pid in self.processes

    async def own_namespaces(self, pid: int) -> frozenset[str]:
        process = self.processes.get(pid)
        return frozenset(kind for kind, _ in process.namespaces) if process is not None else frozenset()

    async def members(self, trace: Trace) -> tuple[int, ...]:
        return tuple(sorted(pid for pid, _ in self._seen(trace).processes))

    async def is_frozen(self, pid: int) -> bool:
        return self.processes[pid].is_frozen

    async def pids_limits(self, pid: int, cgroup: str) -> frozenset[int]:
        limit = self.limits.get(self.processes[pid].sandbox_id)
        return frozenset() if limit is None else frozenset({limit})

    async def left(self, trace: Trace) -> tuple[str, ...]:
        alive = [pid for pid, _ in sorted(trace.processes) if pid in self.processes]
        tables = (("mount", self.mounts), ("cgroup", self.cgroups), ("socket", self.sockets))
        things = [
            f"{what} {name}" for what, table in tables for name, owner in table.items() if owner == trace.sandbox_id
        ]
        return (*(f"process {pid}" for pid in alive), *things)
