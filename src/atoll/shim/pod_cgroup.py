"""The cgroup of a pod, the parent of its containers' cgroups.

Whoever asked for the pod may have made it (a kubelet does, with the limits), or name one that is not there
yet: then the shim makes it, with the pod's limits, and removes it at the end. Where several pods name one, the last of
them removes it: what was made carries a mark. A systemd slice is left to systemd, which makes it with the first
container.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from atoll import errors
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup, Limits
from atoll.oci.config import LinuxContainerResources
from atoll.oci.spec import Resources
from atoll.sandbox.config import LinuxPodConfig
from atoll.sandbox.resources import NOTHING, UpdatedResources, in_cri_words, merged

DELETE_TIMEOUT_S = 1.0
DELETE_PAUSE_S = 0.005
SHARED_TIMEOUT_S = 0.1
"""Where it may be another pod's too, who has its processes in it."""
MADE = "trusted.atoll.made"
"""The mark of a cgroup that a pod has made, an extended attribute: it goes with the cgroup."""
_CPU_LIST = re.compile(r"[0-9,-]{0,4096}")


class PodCgroup:
    """One pod's cgroup. `exclusive`: nothing but this pod may be in it, so that whatever is in it may be killed."""

    def __init__(self, path: str, *, exclusive: bool) -> None:
        """Nothing is made yet; `InvalidArgument` for a path that could leave the hierarchies."""
        self._cgroup = Cgroup(path, cgroup_layout.of_host())
        self.exclusive = exclusive

    @property
    def path(self) -> str:
        """Below the hierarchies' roots, with a slash in front."""
        return self._cgroup.path

    @property
    def folders(self) -> tuple[Path, ...]:
        """Its folder in each hierarchy."""
        return self._cgroup.folders

    @property
    def is_slice(self) -> bool:
        """Whether systemd makes and removes it."""
        return self.path.endswith(".slice")

    @property
    def is_made(self) -> bool:
        """Whether it is there because a pod made it."""
        return any(_is_marked(folder) for folder in self.folders)

    def exists(self) -> bool:
        """Whether it is there in any hierarchy."""
        return self._cgroup.exists()

    def create(self, linux: LinuxPodConfig | None) -> None:
        """Make it in every hierarchy, with the limits of the pod and its overhead.

        Raises `OSError`, and `FailedPrecondition` for a limit whose controller the host lacks.
        """
        self._cgroup.create()
        for folder in self.folders:
            with contextlib.suppress(OSError):  # a kernel without attributes here: then its first pod alone removes it
                os.setxattr(folder, MADE, b"1")
        if linux is not None and linux.resources is not None:
            self._cgroup.set_limits(limits(linux.resources, linux.overhead or LinuxContainerResources()))

    def apply(self, limits: Limits) -> None:
        """Change its limits, all or none. Raises `InvalidArgument` for a value that the kernel refuses.

        `FailedPrecondition` where it is not there, where the host lacks a controller, and where more is in use.
        """
        if not self.exists():
            raise errors.FailedPrecondition(f"cgroup {self.path}: is not there, so it cannot be limited")
        try:
            self._cgroup.set_limits(limits)
        except OSError as error:
            kind = errors.FailedPrecondition if error.errno in (errno.EBUSY, errno.ENOENT) else errors.InvalidArgument
            raise kind(f"{error.filename}: {error.strerror}") from error

    def kill(self) -> None:
        """SIGKILL every process in it and below."""
        self._cgroup.kill()

    async def remove(self) -> None:
        """Remove it with what is below, within a second; idempotent.

        Where a process is left in it: `FailedPrecondition`, or it stays where it may be another pod's too. Other
        pods of the process go on meanwhile.
        """
        deadline = time.monotonic() + (DELETE_TIMEOUT_S if self.exclusive else SHARED_TIMEOUT_S)
        while True:
            try:
                self._cgroup.delete(0)
            except errors.FailedPrecondition:
                if time.monotonic() >= deadline:
                    if self.exclusive:
                        raise
                    return
                await asyncio.sleep(DELETE_PAUSE_S)
            else:
                return

    def remove_now(self) -> None:
        """As `remove`; blocks."""
        try:
            self._cgroup.delete(DELETE_TIMEOUT_S)
        except errors.FailedPrecondition:
            if self.exclusive:
                raise


def _is_marked(folder: Path) -> bool:
    try:
        return bool(os.getxattr(folder, MADE))
    except OSError:
        return False


def limits(resources: LinuxContainerResources, overhead: LinuxContainerResources) -> Limits:
    """What a pod may use: its containers' sum and its overhead; without a sum a limit stays, -1 lifts it."""

    def total(sum_: int, more: int) -> int | None:
        return None if sum_ == 0 else -1 if sum_ < 0 else sum_ + max(0, more)

    same_period = overhead.cpu_period in (0, resources.cpu_period)
    return Limits(
        cpu_shares=total(resources.cpu_shares, overhead.cpu_shares),
        cpu_quota_us=total(resources.cpu_quota, overhead.cpu_quota if same_period else 0),
        cpu_period_us=resources.cpu_period or None,
        cpuset_cpus=resources.cpuset_cpus or None,
        cpuset_mems=resources.cpuset_mems or None,
        memory_bytes=total(resources.memory_limit_in_bytes, overhead.memory_limit_in_bytes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PodResources:
    """The limits of a pod as they are now, and those that an update asked for."""

    overhead: LinuxContainerResources
    resources: LinuxContainerResources
    limits: Limits = field(default_factory=Limits)

    def updated(self, spec: Resources | None, update: UpdatedResources | None) -> PodResources:
        """What an OCI spec says, taken as it is, and above it what an update says; `InvalidArgument`."""
        overhead, resources, wanted = self.overhead, self.resources, Limits()
        if spec is not None:
            asked = in_cri_words(spec)
            resources = merged(resources, asked)
            wanted = replace(_checked(asked, NOTHING), pids=(spec.pids.limit if spec.pids is not None else 0) or None)
        if update is not None:
            overhead, resources = merged(overhead, update.overhead), merged(resources, update.resources)
            wanted = _above(wanted, _checked(resources, overhead))
        return PodResources(overhead=overhead, resources=resources, limits=wanted)


def _checked(resources: LinuxContainerResources, overhead: LinuxContainerResources) -> Limits:
    for name, value in (("cpuset_cpus", resources.cpuset_cpus), ("cpuset_mems", resources.cpuset_mems)):
        if not _CPU_LIST.fullmatch(value):
            raise errors.InvalidArgument(f"{name}: {value[:60]!r} is no list such as 0-3,7")
    swap = resources.memory_swap_limit_in_bytes
    both = swap + max(0, overhead.memory_limit_in_bytes) if swap > 0 else swap or None
    return replace(limits(resources, overhead), memory_and_swap_bytes=both)


def _above(below: Limits, above: Limits) -> Limits:
    found = {each.name: getattr(above, each.name) for each in fields(Limits)}
    return replace(below, **{name: value for name, value in found.items() if value is not None})
