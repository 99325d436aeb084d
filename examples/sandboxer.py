"""A sandboxer of one's own: a sandbox is one process of this host. It keeps the whole contract of `Controller`."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.identifiers import require_identifier
from atoll.sandbox import controller as c


class ProcessSandboxer(c.Controller):
    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner  # of the tasks that see each process end
        self._known: dict[str, c.ControllerStatus] = {}
        self._made: dict[str, tuple[asyncio.subprocess.Process, asyncio.Task[c.ExitStatus]]] = {}

    async def create(self, sandbox: c.Sandbox, options: c.CreateOptions) -> None:
        if require_identifier(sandbox.id, "sandbox id") in self._known:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is there already")
        process = await asyncio.create_subprocess_exec("sleep", "infinity")
        end = self._owner.spawn(self._end(sandbox.id, process), name=f"sandbox/{sandbox.id}/wait")
        self._made[sandbox.id] = process, end
        self._known[sandbox.id] = c.ControllerStatus(sandbox_id=sandbox.id, state=c.State.NOTREADY)

    async def _end(self, sandbox_id: str, process: asyncio.subprocess.Process) -> c.ExitStatus:
        code, at = await process.wait(), datetime.now(UTC)
        self._known[sandbox_id] = replace(self._known[sandbox_id], state=c.State.NOTREADY, pid=0, exited_at=at)
        return c.ExitStatus(exit_status=code if code >= 0 else 128 - code, exited_at=at)

    async def start(self, sandbox_id: str) -> c.ControllerInstance:
        status, at = await self.status(sandbox_id), datetime.now(UTC)
        if status.created_at or status.exited_at:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: was started or stopped before")
        pid = self._made[sandbox_id][0].pid
        self._known[sandbox_id] = replace(status, state=c.State.READY, pid=pid, created_at=at)
        return c.ControllerInstance(sandbox_id=sandbox_id, pid=pid, created_at=at)

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        if sandbox_id in self._made:
            process, end = self._made[sandbox_id]
            if process.returncode is None:
                process.kill()
            await asyncio.shield(end)

    async def wait(self, sandbox_id: str) -> c.ExitStatus:
        await self.status(sandbox_id)
        return await asyncio.shield(self._made[sandbox_id][1])

    async def status(self, sandbox_id: str, verbose: bool = False) -> c.ControllerStatus:
        if sandbox_id not in self._known:
            raise errors.NotFound(f"sandbox {sandbox_id}: there is none")
        return self._known[sandbox_id]

    async def platform(self, sandbox_id: str) -> c.Platform:
        await self.status(sandbox_id)
        return c.Platform(os="linux", architecture="amd64")

    async def shutdown(self, sandbox_id: str) -> None:
        await self.stop(sandbox_id)
        self._made.pop(sandbox_id, None)
        self._known.pop(sandbox_id, None)
