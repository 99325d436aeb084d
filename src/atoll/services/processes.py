"""atoll.processes.v1.Processes: background processes, kept by the daemon."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from atoll.api import atoll_processes_v1_pb2 as pb
from atoll.api import atoll_v1_pb2 as own
from atoll.container.store import Container
from atoll.engine.engine import Engine
from atoll.engine.execs import ExecRequest
from atoll.engine.processes import Ended, Process
from atoll.services.process import time_limit


class ProcessesService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def _find(
        self, request: pb.ProcessRequest | pb.FollowRequest | pb.SignalRequest | pb.WriteRequest | pb.ResizeRequest
    ) -> tuple[Container, Process]:
        container = self._engine.containers.get(request.container_id)
        return container, self._engine.processes.get(container.id, request.id)

    async def _told(self, process: Process) -> pb.Process:
        spool, blocking = process.spool, self._engine.parts.blocking
        out, err = await blocking.run(lambda: (spool.kept("stdout"), spool.kept("stderr")))
        record = process.record
        return pb.Process(
            id=record.name,
            container_id=process.container_id,
            command=record.command,
            pid=record.pid,
            started_at=record.started_at_ns,
            exit=_exit(record.ended) if record.ended is not None else None,
            stdout=pb.Kept(begin=out[0], end=out[1]),
            stderr=pb.Kept(begin=err[0], end=err[1]),
            stdin=record.stdin,
            tty=record.tty,
        )

    async def Spawn(self, request: pb.SpawnRequest, context: object) -> pb.Process:
        container = self._engine.containers.get(request.container_id)
        wanted = ExecRequest(
            command=tuple(request.command),
            env=tuple(request.env),
            working_dir=request.working_dir,
            user=request.user,
            timeout_s=time_limit(request.timeout_s),
            stdin=request.stdin,
            tty=request.tty,
            width=request.size.width,
            height=request.size.height,
        )
        pod = self._engine.pods.get(container.sandbox_id)
        return await self._told(await self._engine.processes.spawn(pod, container, wanted, request.name))

    async def List(self, request: pb.ListRequest, context: object) -> pb.ListResponse:
        container_id = self._engine.containers.get(request.container_id).id if request.container_id else ""
        found = self._engine.processes.list(container_id)
        return pb.ListResponse(processes=[await self._told(one) for one in found])

    async def Get(self, request: pb.ProcessRequest, context: object) -> pb.Process:
        return await self._told(self._find(request)[1])

    async def Follow(self, request: pb.FollowRequest, context: object) -> AsyncGenerator[pb.FollowResponse]:
        _, process = self._find(request)
        starts = (request.stdout_from, request.stderr_from)
        following = self._engine.processes.follow(process, starts, wait=not request.no_wait)
        async with contextlib.aclosing(following) as parts:
            async for part in parts:
                if part.stream == "stdout":
                    yield pb.FollowResponse(offset=part.offset, stdout=part.data)
                else:
                    yield pb.FollowResponse(offset=part.offset, stderr=part.data)
        if process.record.ended is not None:
            yield pb.FollowResponse(exit=_exit(process.record.ended))

    async def Wait(self, request: pb.ProcessRequest, context: object) -> pb.Process:
        _, process = self._find(request)
        await process.over.wait()
        return await self._told(process)

    async def Signal(self, request: pb.SignalRequest, context: object) -> pb.SignalResponse:
        container, process = self._find(request)
        await self._engine.processes.kill(container, process, request.signal, tree=request.tree)
        return pb.SignalResponse()

    async def Write(self, request: pb.WriteRequest, context: object) -> pb.WriteResponse:
        container, process = self._find(request)
        with self._engine.parts.uses.using(container.sandbox_id):
            await self._engine.processes.write(process, request.data)
        return pb.WriteResponse()

    async def CloseStdin(self, request: pb.ProcessRequest, context: object) -> pb.CloseStdinResponse:
        container, process = self._find(request)
        await self._engine.processes.close_stdin(container, process)
        return pb.CloseStdinResponse()

    async def Resize(self, request: pb.ResizeRequest, context: object) -> pb.ResizeResponse:
        container, process = self._find(request)
        await self._engine.processes.resize(container, process, request.size.width, request.size.height)
        return pb.ResizeResponse()

    async def Forget(self, request: pb.ProcessRequest, context: object) -> pb.ForgetResponse:
        container, process = self._find(request)
        await self._engine.processes.forget(container, process)
        return pb.ForgetResponse()


_CAUSES = {
    "EXITED": own.Exit.EXITED,
    "SIGNALLED": own.Exit.SIGNALLED,
    "OOM_KILLED": own.Exit.OOM_KILLED,
    "TIMED_OUT": own.Exit.TIMED_OUT,
    "SECCOMP": own.Exit.SECCOMP,
}


def _exit(ended: Ended) -> own.Exit:
    return own.Exit(code=ended.code, cause=_CAUSES.get(ended.cause, own.Exit.UNKNOWN), exited_at=ended.at_ns)
