"""Where the cgroup hierarchies of this host are, and which controller lives in which.

    V1      every controller in a version 1 hierarchy
    HYBRID  version 1 controllers, and a version 2 hierarchy beside them for process tracking
    V2      one unified hierarchy

Source: cgroups(7), Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from atoll import errors
from atoll.linux.mounts import MountInfo, read_mountinfo

MOUNT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = frozenset(
    (
        "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio",
        "perf_event", "rdma", "misc",
    )
)  # fmt: skip
PATH_LIMIT = 1024
_COMPONENT = re.compile(r"[^/\x00-\x1f\x7f]{1,255}")


class Layout(StrEnum):
    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchies:
    """The mounted hierarchies: `v1` by controller (`name=...` for one without), `unified` the version 2 mount."""

    layout: Layout
    v1: Mapping[str, Path]
    unified: Path | None
    unified_controllers: frozenset[str]

    @property
    def controllers(self) -> frozenset[str]:
        """Every controller that can be used on this host, wherever it lives."""
        return frozenset(name for name in self.v1 if not name.startswith("name=")) | self.unified_controllers

    @property
    def mounts(self) -> tuple[Path, ...]:
        """Each hierarchy's mount once; controllers may share one."""
        found = list(dict.fromkeys(self.v1.values()))
        if self.unified is not None:
            found.append(self.unified)
        return tuple(found)


def detect(table: Sequence[MountInfo] | None = None) -> Hierarchies:
    """Read the layout from the mount table. Raises `FailedPrecondition` where no hierarchy is mounted."""
    v1: dict[str, Path] = {}
    unified: Path | None = None
    for entry in read_mountinfo() if table is None else table:
        if entry.filesystem == "cgroup2":
            unified = unified or Path(entry.mount_point)
        elif entry.filesystem == "cgroup":
            for option in entry.super_options:
                if option in V1_CONTROLLERS or option.startswith("name="):
                    v1.setdefault(option, Path(entry.mount_point))
    layout = Layout.V2 if not v1 else Layout.V1 if unified is None else Layout.HYBRID
    if unified is None and not v1:
        raise errors.FailedPrecondition(f"{MOUNT}: no cgroup hierarchy is mounted; mount cgroup2 there")
    controllers = frozenset[str]()
    if unified is not None and (told := unified / "cgroup.controllers").exists():
        controllers = frozenset(told.read_text(encoding="ascii").split())
    return Hierarchies(layout=layout, v1=MappingProxyType(v1), unified=unified, unified_controllers=controllers)


@functools.cache
def of_host() -> Hierarchies:
    """`detect`, once a process: a mount table has an entry or more for each container of the node."""
    return detect()


def validated(path: str) -> str:
    """`path` as an absolute cgroup path without a trailing slash; raises `InvalidArgument` where it could leave
    the hierarchy, is the root, or is longer than the kernel's limits."""
    parts = [part for part in path.split("/") if part]
    if not parts or len(path) > PATH_LIMIT or any(p in (".", "..") or not _COMPONENT.fullmatch(p) for p in parts):
        raise errors.InvalidArgument(f"cgroup path {path[:200]!r}: must name a cgroup below the root, without dots")
    return "/" + "/".join(parts)
