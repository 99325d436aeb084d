"""Whether the kernel has killed processes of a container for want of memory."""

from __future__ import annotations

from pathlib import Path

from atoll import errors
from atoll.shim import cgroups, records


def oom_kills(bundle: Path) -> int:
    """How many it has killed since the container was started, by its cgroup; 0 where nobody counts. Blocks."""
    try:
        task = records.read(bundle / records.TASK, records.TaskRecord)
    except errors.DataLoss:
        return 0
    return cgroups.oom_kills(tuple(Path(folder) for folder in task.cgroups)) if task is not None else 0
