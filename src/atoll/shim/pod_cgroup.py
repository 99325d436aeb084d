"""The cgroup of a pod, the parent of its containers' cgroups.

Whoever asked for the pod may have made it (a kubelet does, with the limits), or name one that is not there
yet: then the shim makes it, with the pod's limits, and removes it at the end. A systemd slice is left to
systemd, which makes it with the first container.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from atoll import errors
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup, Limits
from atoll.oci.config import LinuxContainerResources
from atoll.sandbox.config import LinuxPodConfig

DELETE_TIMEOUT_S = 1.0
DELETE_PAUSE_S = 0.005


class PodCgroup:
    """One pod's cgroup. `exclusive`: nothing but this pod may be in it, so that whatever is in it may be killed."""

    def __init__(self, path: str, *, exclusive: bool) -> None:
        """Nothing is made yet; `InvalidArgument` for a path that could leave the hierarchies."""
        self._cgroup = Cgroup(path, cgroup_layout.detect())
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

    def exists(self) -> bool:
        """Whether it is there in any hierarchy."""
        return self._cgroup.exists()

    def create(self, linux: LinuxPodConfig | None) -> None:
        """Make it in every hierarchy, with the limits of the pod and its overhead.

        Raises `OSError`, and `FailedPrecondition` for a limit whose controller the host lacks.
        """
        self._cgroup.create()
        if linux is not None and linux.resources is not None:
            self._cgroup.set_limits(limits(linux.resources, linux.overhead or LinuxContainerResources()))

    def kill(self) -> None:
        """SIGKILL every process in it and below."""
        self._cgroup.kill()

    async def remove(self) -> None:
        """Remove it with what is below, within a second; idempotent.

        Raises `FailedPrecondition` where a process is left in it. Other pods of the process go on meanwhile.
        """
        deadline = time.monotonic() + DELETE_TIMEOUT_S
        while True:
            try:
                self._cgroup.delete(0)
            except errors.FailedPrecondition:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(DELETE_PAUSE_S)
            else:
                return

    def remove_now(self) -> None:
        """As `remove`; blocks."""
        self._cgroup.delete(DELETE_TIMEOUT_S)


def limits(resources: LinuxContainerResources, overhead: LinuxContainerResources) -> Limits:
    """What a pod may use: its containers' sum and its overhead; without a sum there is no limit."""

    def total(sum_: int, more: int) -> int | None:
        return sum_ + more if sum_ > 0 else None

    same_period = overhead.cpu_period in (0, resources.cpu_period)
    return Limits(
        cpu_shares=total(resources.cpu_shares, overhead.cpu_shares),
        cpu_quota_us=total(resources.cpu_quota, overhead.cpu_quota if same_period else 0),
        cpu_period_us=resources.cpu_period or None,
        cpuset_cpus=resources.cpuset_cpus or None,
        cpuset_mems=resources.cpuset_mems or None,
        memory_bytes=total(resources.memory_limit_in_bytes, overhead.memory_limit_in_bytes),
    )
