"""The cgroups right below one, stopped and let go each by itself.

So a pod is stopped whose containers somebody else runs: SIGKILL of one of them ends it, also where a version 1 freezer
holds it, while one that the pod's own cgroup held could not be let go alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from atoll import errors
from atoll.linux import freezer
from atoll.linux.cgroup import Cgroup

FREEZE_TIMEOUT_S = 5.0


def standing(group: Cgroup) -> tuple[str, ...]:
    """The children that nobody has frozen, by name."""
    return tuple(name for name in _names(group) if not freezer.is_asked(_folders(group, name)))


def freeze(group: Cgroup, names: Iterable[str]) -> None:
    """Stop every process in these children, and wait until all stand; what is gone is fine. Blocks.

    Raises `FailedPrecondition` where this host has no freezer, and `DeadlineExceeded`; then all of them go on.
    """
    children = [_folders(group, name) for name in names]
    if not any(map(freezer.has_freezer, children)):
        raise errors.FailedPrecondition(f"cgroup {group.path}: no cgroup below it has a freezer")
    deadline = time.monotonic() + FREEZE_TIMEOUT_S
    late = [freezer.Freezing(folders) for folders in children]
    while late := [child for child in late if not child.poll()]:
        if time.monotonic() >= deadline:
            thaw(group, names)
            raise errors.DeadlineExceeded(f"cgroup {group.path}: did not freeze within {FREEZE_TIMEOUT_S:g} s")
        time.sleep(freezer.PAUSE_S)


def thaw(group: Cgroup, names: Iterable[str]) -> None:
    """Let these children go on; idempotent."""
    for name in names:
        freezer.thaw(_folders(group, name))


def _names(group: Cgroup) -> list[str]:
    names: set[str] = set()
    for folder in group.folders:
        if folder.is_dir():
            names.update(child.name for child in folder.iterdir() if child.is_dir())
    return sorted(names)


def _folders(group: Cgroup, name: str) -> tuple[Path, ...]:
    return tuple(folder / name for folder in group.folders)
