"""ExecSync: a command in a running container, its output in the answer."""

from __future__ import annotations

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.cri.selection import find
from atoll.engine.engine import Engine
from atoll.engine.execs import Cause, ExecRequest


class Execs:
    """RPCs of execs that need no stream."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ExecSync(self, request: pb.ExecSyncRequest, context: object) -> pb.ExecSyncResponse:
        pod, container = find(self._engine, request.container_id)
        asked = ExecRequest(command=tuple(request.cmd), timeout_s=float(max(request.timeout, 0)))
        result = await self._engine.execs.sync(pod, container, asked)
        if result.cause is Cause.TIMED_OUT:
            raise errors.DeadlineExceeded(f"exec in {container.id[:13]}: timeout {request.timeout}s exceeded")
        return pb.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit.exit_status)
