"""One pool in memory: its members, and whether one may be handed out.

booting ──ready──> ready ──acquire──> nobody's: a pod with a lease
                     └──ended, broken, of an old spec──> going ──removed──> gone
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine.pod import Pod
from atoll.engine.pool_store import GOING, MemberRecord, PoolRecord
from atoll.sandbox.controller import State as PodState

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
"""Before the next member is made where the last one failed, or ended at once."""
SHORT_LIFE_S = 5.0
"""A member that ends before it is so old counts as a failure of the spec."""


class Pulse:
    """The ends of some processes, seen at once and without a wait: their pidfds."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        """Raises `ProcessLookupError` where one has ended."""
        self._fds: list[int] = []
        self._poll = select.poll()
        try:
            for pid in pids:
                self._fds.append(os.pidfd_open(pid))
                self._poll.register(self._fds[-1], select.POLLIN)
        except OSError:
            self.close()
            raise

    def beats(self) -> bool:
        """Whether every process lives."""
        return bool(self._fds) and not self._poll.poll(0)

    def close(self) -> None:
        """Idempotent."""
        while self._fds:
            os.close(self._fds.pop())


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """A member that is ready, or was."""

    record: MemberRecord
    pod: Pod
    container: Container
    pulse: Pulse
    ready_at: float = field(default_factory=time.monotonic)

    @classmethod
    def take_up(cls, record: MemberRecord, pod: Pod, container: Container) -> Member | None:
        """The member, if its container runs; None where it does not, or its process cannot be told for sure."""
        pids = (container.status.get().pid, pod.instance.pid if pod.instance is not None else 0)
        if not _runs(pod, container) or not all(pids):
            return None
        try:
            pulse = Pulse(pids)
        except OSError:
            return None
        member = cls(record=record, pod=pod, container=container, pulse=pulse)
        # A pid may have become another process's between the status and the pidfd: then its cgroup is another too.
        if not _is_of(pids[0], container.id) or not member.is_fit:
            pulse.close()
            return None
        return member

    @property
    def is_fit(self) -> bool:
        """Whether it may be handed out now: pod and container run, and the kernel says that their processes live."""
        return _runs(self.pod, self.container) and self.pulse.beats()


@dataclass(slots=True, kw_only=True, eq=False)
class Pool:
    """A pool: `ready` has the oldest member first; `booting` and `going` are counted only."""

    record: PoolRecord
    ready: deque[Member] = field(default_factory=deque[Member])
    booting: int = 0
    workers: int = 0
    failures: int = 0
    error: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_going(self) -> bool:
        return self.record.size == GOING

    @property
    def lacks(self) -> int:
        """How many members are to be made beside those being made."""
        return max(0, self.record.size - len(self.ready) - self.booting)

    @property
    def pause_s(self) -> float:
        """How long nothing is to be made, after failures."""
        return min(FIRST_PAUSE_S * 2 ** (self.failures - 1), LAST_PAUSE_S) if self.failures else 0.0

    def failed(self, why: str) -> None:
        self.failures += 1
        self.error = why

    def succeeded(self) -> None:
        self.failures, self.error = 0, ""


def _runs(pod: Pod, container: Container) -> bool:
    is_open = pod.state is PodState.READY and not pod.closing
    has_shim = pod.shim is not None and not pod.shim.client.is_closed
    return is_open and has_shim and container.status.get().state is State.RUNNING


def _is_of(pid: int, container_id: str) -> bool:
    with contextlib.suppress(OSError):
        return container_id in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
    return False
