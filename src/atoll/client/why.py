"""What a pod does and waits on now: `client.why`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from atoll.api import atoll_why_v1_pb2 as pb
from atoll.blocker import Blocker
from atoll.client import wire
from atoll.client.model import moment

CALL_TIMEOUT_S = 30.0
EXPLAIN = wire.Method("atoll.why.v1.Why", "Explain", pb.ExplainRequest, pb.ExplainResponse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an operation; `duration_s` is None while it lasts, and `since_s` then how long it has.

    `frames` are the daemon's functions that it is in, the innermost last.
    """

    operation: str
    subject: str
    name: str
    started_at: datetime | None
    duration_s: float | None
    since_s: float
    waits_on: str
    error: str
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """A pod now; `state` is also `being made` or `gone`. `debts` tell what is still to be freed, and why it is not."""

    pod_id: str
    name: str
    state: str
    reason: str
    steps: tuple[Step, ...]
    processes: tuple[Blocker, ...]
    debts: tuple[str, ...]

    @property
    def waiting(self) -> tuple[Step, ...]:
        """The steps that last."""
        return tuple(step for step in self.steps if step.duration_s is None)

    @classmethod
    def read(cls, answer: pb.ExplainResponse) -> Self:
        return cls(
            pod_id=answer.pod_id,
            name=answer.name,
            state=answer.state,
            reason=answer.reason,
            steps=tuple(_step(step, answer.now) for step in answer.steps),
            processes=tuple(
                Blocker(
                    pid=one.pid,
                    parent=one.parent,
                    role=one.role,
                    command=one.command,
                    state=one.state,
                    wait_channel=one.wait_channel,
                    age_s=one.age_s,
                )
                for one in answer.processes
            ),
            debts=tuple(answer.debts),
        )


def _step(step: pb.Step, now: int) -> Step:
    return Step(
        operation=step.operation,
        subject=step.subject,
        name=step.name,
        started_at=moment(step.started_at),
        duration_s=step.duration / 1e9 if step.duration >= 0 else None,
        since_s=max(0, now - step.started_at) / 1e9,
        waits_on=step.waits_on,
        error=step.error,
        frames=tuple(step.frames),
    )


async def explain(connection: wire.Wire, pod: str) -> Why:
    answer = await connection.call(EXPLAIN, pb.ExplainRequest(pod=pod), timeout_s=CALL_TIMEOUT_S)
    return Why.read(answer)
