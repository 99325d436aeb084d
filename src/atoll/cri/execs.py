"""ExecSync: a command in a running container, its output in the answer."""

from __future__ import annotations

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.container.store import Container
from atoll.cri.selection import find
from atoll.engine.engine import Engine
from atoll.engine.execs import Cause, ExecRequest, ExecResult
from atoll.rpc import MAX_MESSAGE_BYTES

OUTPUT_BYTES = MAX_MESSAGE_BYTES - (64 << 10)
"""Of both streams in an answer; what is more of them is not told, as the exit code is more than the rest of it."""
TYPE_URL = "type.googleapis.com/"


class Execs:
    """RPCs of execs that need no stream."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ExecSync(self, request: pb.ExecSyncRequest, context: object) -> pb.ExecSyncResponse:
        pod, container = find(self._engine, request.container_id)
        asked = ExecRequest(command=tuple(request.cmd), timeout_s=float(max(request.timeout, 0)))
        result = await self._engine.execs.sync(pod, container, asked)
        if result.cause is Cause.TIMED_OUT:
            raise _timed_out(container, request, result)
        stdout = result.stdout[:OUTPUT_BYTES]
        stderr = result.stderr[: OUTPUT_BYTES - len(stdout)]
        return pb.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=result.exit.exit_status)


def _timed_out(container: Container, request: pb.ExecSyncRequest, result: ExecResult) -> errors.DeadlineExceeded:
    """The CRI has no answer with a timeout in it, so the end of each stream goes in the details of the status."""
    error = errors.DeadlineExceeded(f"exec in {container.id[:13]}: timeout {request.timeout}s exceeded")
    written = pb.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit.exit_status)
    error.details = ((TYPE_URL + pb.ExecSyncResponse.DESCRIPTOR.full_name, written.SerializeToString()),)
    return error
