"""The cgroup of a pod, the parent of its containers' cgroups.

Whoever asked for the pod may have made it (a kubelet does, with the limits), or name one that is not there
yet: then the shim makes it, with the pod's limits, and removes it at the end. A systemd slice is left to
systemd, which makes it with the first container.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from atoll.linux import cgroup_layout
from atoll.sandbox.config import LinuxPodConfig
from atoll.shim import cgroups


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCgroup:
    """One pod's cgroup: its path, and its folder in each hierarchy. `exclusive`: nothing but this pod may be in it."""

    path: str
    folders: tuple[Path, ...]
    exclusive: bool

    @classmethod
    def at(cls, path: str, *, exclusive: bool) -> PodCgroup | None:
        """The cgroup of that path below each hierarchy's root; None for a systemd slice. `InvalidArgument`."""
        checked = cgroup_layout.validated(path)
        if checked.endswith(".slice"):
            return None
        folders = tuple(mount / checked[1:] for mount in cgroup_layout.detect().mounts)
        return cls(path=checked, folders=folders, exclusive=exclusive)

    def exists(self) -> bool:
        """Whether it is there in any hierarchy."""
        return any(folder.is_dir() for folder in self.folders)

    def create(self, linux: LinuxPodConfig | None) -> None:
        """Make it in every hierarchy, with the limits of the pod and its overhead; raises `OSError`."""
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)

    def kill(self) -> None:
        """SIGKILL every process in it and below."""
        cgroups.kill(self.folders)

    def remove(self) -> None:
        """Remove it with what is below; idempotent. Raises `OSError` EBUSY where a process is left in it."""
        for folder in self.folders:
            _remove(folder)


def _remove(folder: Path) -> None:
    for parent, children, _ in os.walk(folder, topdown=False):
        for child in children:
            with contextlib.suppress(FileNotFoundError):
                Path(parent, child).rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
