"""atoll.why.v1.Why: what a pod does and waits on now."""

from __future__ import annotations

import time

from atoll import errors
from atoll.api import atoll_why_v1_pb2 as pb
from atoll.engine import waits
from atoll.engine.engine import Engine
from atoll.engine.phases import Phase, Story


class WhyService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Explain(self, request: pb.ExplainRequest, context: object) -> pb.ExplainResponse:
        found = await waits.account(self._engine, self._find(request.pod))
        frames = {id(one.phase): one.frames for one in found.waiting}
        return pb.ExplainResponse(
            pod_id=found.pod_id,
            name=found.name,
            state=found.state,
            reason=found.reason,
            now=time.time_ns(),
            steps=[_step(story, phase, frames.get(id(phase), ())) for story in found.stories for phase in story.phases],
            processes=[
                pb.Process(
                    pid=one.pid,
                    parent=one.parent,
                    role=one.role,
                    command=one.command,
                    state=one.state,
                    wait_channel=one.wait_channel,
                    age_s=one.age_s,
                )
                for one in found.processes
            ],
            debts=found.debts,
        )

    def _find(self, text: str) -> str:
        """The pod that is meant: one that is there, being made or gone, the latest of its name."""
        if not text:
            raise errors.InvalidArgument("why: names no pod")
        try:
            return self._engine.pods.get(text).id
        except errors.NotFound:
            found = self._engine.parts.stories.seek(text)
        if not found:
            raise errors.NotFound(
                f"pod {text!r}: there is none, and no story of one; `atoll ps -a` shows what there is"
            )
        return found[-1]


def _step(story: Story, phase: Phase, frames: tuple[str, ...]) -> pb.Step:
    return pb.Step(
        operation=story.operation,
        subject=story.subject,
        name=phase.name,
        started_at=phase.started_at_ns,
        duration=phase.duration_ns,
        waits_on=phase.waits_on,
        error=phase.error,
        frames=frames,
    )
