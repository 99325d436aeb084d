"""Which operation a process is ready for.

CREATED ──start──> RUNNING ──exit──> STOPPED ──delete──> (forgotten)
   │                │    ↑
   │             pause  resume          a container's init only
   │                ↓    │
   │               PAUSED ──exit──> STOPPED
   └──exit or delete──> STOPPED
"""

from __future__ import annotations

from enum import IntEnum

from atoll.api import containerd_task_types_pb2 as types_pb2


class Phase(IntEnum):
    """Where a process is; the numbers are those of containerd.v1.types.Status."""

    CREATED = types_pb2.CREATED
    RUNNING = types_pb2.RUNNING
    STOPPED = types_pb2.STOPPED
    PAUSED = types_pb2.PAUSED


def can_start(phase: Phase) -> bool:
    return phase is Phase.CREATED


def can_exec(init: Phase) -> bool:
    """Whether the container of this init takes another process."""
    return init in (Phase.CREATED, Phase.RUNNING)


def can_pause(phase: Phase) -> bool:
    return phase is Phase.RUNNING


def can_resume(phase: Phase) -> bool:
    return phase is Phase.PAUSED


def can_checkpoint(phase: Phase) -> bool:
    return phase in (Phase.RUNNING, Phase.PAUSED)


def can_update(phase: Phase) -> bool:
    return phase is not Phase.STOPPED


def can_delete(phase: Phase) -> bool:
    return phase in (Phase.CREATED, Phase.STOPPED)
