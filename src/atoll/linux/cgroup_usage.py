"""What the processes of a cgroup have used, read from its files: version 1, version 2 and hybrid hosts.

A file that this kernel or this hierarchy lacks leaves its figures None; in a hybrid layout pressure is
told by the version 2 folder. Source: Documentation/admin-guide/cgroup-v1, cgroup-v2.rst and accounting/psi.rst of the
kernel.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from atoll.linux import cgroup_files as files
from atoll.linux.cgroup_layout import Hierarchies, Layout

NS_PER_US = 1000
LINKS_OF_A_LEAF = 2
"""Of a cgroup's folder without another in it; each adds one (kernfs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The folders of one cgroup by what they tell, empty where the host or the cgroup has none."""

    is_v2: bool
    cpu: str = ""
    cpuacct: str = ""
    memory: str = ""
    pids: str = ""
    blkio: str = ""
    hugetlb: str = ""
    unified: str = ""

    def __bool__(self) -> bool:
        return bool(self.cpuacct or self.memory or self.unified)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes; `working_set` is what cannot be had back without harm; limits are None where there is none."""

    usage: int
    working_set: int
    rss: int
    limit: int | None
    page_faults: int
    major_page_faults: int
    swap: int | None = None
    swap_limit: int | None = None

    @property
    def available(self) -> int | None:
        """What is left below the limit."""
        return None if self.limit is None else max(self.limit - self.working_set, 0)

    @property
    def swap_available(self) -> int | None:
        if self.swap is None or self.swap_limit is None:
            return None
        return max(self.swap_limit - self.swap, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One sample."""

    cpu_ns: int | None = None
    memory: Memory | None = None
    cpu_pressure: files.Pressure | None = None
    memory_pressure: files.Pressure | None = None
    io_pressure: files.Pressure | None = None


def places(folders: Iterable[str], hierarchies: Hierarchies) -> Places:
    """The cgroup whose folder in each hierarchy is one of `folders`."""
    by_mount = {
        mount: folder for folder in folders for mount in map(str, hierarchies.mounts) if _is_below(folder, mount)
    }

    def at(controller: str) -> str:
        mount = hierarchies.v1.get(controller)
        return "" if mount is None else by_mount.get(str(mount), "")

    unified = by_mount.get(str(hierarchies.unified), "") if hierarchies.unified is not None else ""
    if hierarchies.layout is Layout.V2:
        return Places(is_v2=True, unified=unified)
    return Places(
        is_v2=False,
        cpu=at("cpu"),
        cpuacct=at("cpuacct"),
        memory=at("memory"),
        pids=at("pids"),
        blkio=at("blkio"),
        hugetlb=at("hugetlb"),
        unified=unified,
    )


def _is_below(folder: str, mount: str) -> bool:
    return folder.startswith(mount) and folder[len(mount) : len(mount) + 1] == "/"


def read(where: Places) -> Usage | None:
    """A sample; None where the cgroup is gone. Takes some tens of microseconds."""
    cpu_ns = _v2_cpu(where) if where.is_v2 else files.number(where.cpuacct, "cpuacct.usage")
    memory = _v2_memory(where) if where.is_v2 else _v1_memory(where)
    if cpu_ns is None and memory is None:
        return None
    return Usage(
        cpu_ns=cpu_ns,
        memory=memory,
        cpu_pressure=files.pressure(where.unified, "cpu.pressure"),
        memory_pressure=files.pressure(where.unified, "memory.pressure"),
        io_pressure=files.pressure(where.unified, "io.pressure"),
    )


def processes(where: Places) -> list[int]:
    """The pids in the cgroup and below it; none where it is gone."""
    folder = where.unified if where.is_v2 else where.pids or where.cpuacct or where.memory
    return _below(folder) if folder else []


def _below(folder: str) -> list[int]:
    found = files.pids(folder)
    with contextlib.suppress(OSError):
        if os.stat(folder).st_nlink == LINKS_OF_A_LEAF:
            return found
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found += _below(entry.path)
    return found


# version 1


def _v1_memory(where: Places) -> Memory | None:
    usage = files.number(where.memory, "memory.usage_in_bytes")
    if usage is None:
        return None
    stat = files.flat(files.text(where.memory, "memory.stat"))
    limit, both = stat.get("hierarchical_memory_limit"), stat.get("hierarchical_memsw_limit")
    swap_limit = None
    if both is not None and limit is not None and both < files.UNLIMITED_BYTES:
        swap_limit = max(both - limit, 0)
    return Memory(
        usage=usage,
        working_set=max(usage - stat.get("total_inactive_file", 0), 0),
        rss=stat.get("total_rss", 0),
        limit=limit if limit is not None and limit < files.UNLIMITED_BYTES else None,
        page_faults=stat.get("total_pgfault", 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        swap=stat.get("total_swap"),
        swap_limit=swap_limit,
    )


# version 2


def _v2_cpu(where: Places) -> int | None:
    used = files.flat(files.text(where.unified, "cpu.stat")).get("usage_usec")
    return None if used is None else used * NS_PER_US


def _v2_memory(where: Places) -> Memory | None:
    usage = files.number(where.unified, "memory.current")
    if usage is None:
        return None
    stat = files.flat(files.text(where.unified, "memory.stat"))
    return Memory(
        usage=usage,
        working_set=max(usage - stat.get("inactive_file", 0), 0),
        rss=stat.get("anon", 0),
        limit=files.limit(where.unified, "memory.max"),
        page_faults=stat.get("pgfault", 0),
        major_page_faults=stat.get("pgmajfault", 0),
        swap=files.number(where.unified, "memory.swap.current"),
        swap_limit=files.limit(where.unified, "memory.swap.max"),
    )
