"""A sandboxer in thirty lines: a sandbox is one process of this host. It keeps the whole contract of `Controller`."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

from atoll import errors
from atoll.concurrency import Latch, TaskOwner
from atoll.identifiers import require_identifier
from atoll.sandbox import controller as c


@dataclass
class Sleeper:
    instance: c.ControllerInstance | None = None
    process: asyncio.subprocess.Process | None = None
    ended: Latch[c.ExitStatus] = field(default_factory=Latch[c.ExitStatus])


class ProcessSandboxer(c.Controller):
    """Runs `sleep infinity` for each sandbox; `owner` owns what watches them."""

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._made: dict[str, Sleeper] = {}

    def _get(self, sandbox_id: str) -> Sleeper:
        if sandbox_id not in self._made:
            raise errors.NotFound(f"sandbox {sandbox_id}: there is no such sandbox")
        return self._made[sandbox_id]

    async def create(self, sandbox: c.Sandbox, options: c.CreateOptions) -> None:
        if require_identifier(sandbox.id, "sandbox id") in self._made:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is there already")
        self._made[sandbox.id] = Sleeper()

    async def start(self, sandbox_id: str) -> c.ControllerInstance:
        found = self._get(sandbox_id)
        if found.process is not None or found.ended.is_set:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: was started before")
        found.process = await asyncio.create_subprocess_exec("sleep", "infinity")
        self._owner.spawn(self._watch(found, found.process), name=f"sandbox/{sandbox_id}/wait")
        made = c.ControllerInstance(sandbox_id=sandbox_id, pid=found.process.pid, created_at=datetime.now(UTC))
        found.instance = made
        return made

    async def _watch(self, found: Sleeper, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        found.ended.set(c.ExitStatus(exit_status=code if code >= 0 else 128 - code, exited_at=datetime.now(UTC)))

    async def platform(self, sandbox_id: str) -> c.Platform:
        self._get(sandbox_id)
        return c.Platform(os="linux", architecture="amd64")

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        if (found := self._made.get(sandbox_id)) is None or found.ended.is_set:
            return
        if found.process is None:
            found.ended.set(c.ExitStatus(exit_status=0, exited_at=datetime.now(UTC)))
        else:
            found.process.kill()
        await found.ended.wait()

    async def wait(self, sandbox_id: str) -> c.ExitStatus:
        return await self._get(sandbox_id).ended.wait()

    async def status(self, sandbox_id: str, verbose: bool = False) -> c.ControllerStatus:
        found = self._get(sandbox_id)
        end, runs = found.ended.value, found.instance is not None and not found.ended.is_set
        return c.ControllerStatus(
            sandbox_id=sandbox_id,
            state=c.State.READY if runs else c.State.NOTREADY,
            pid=found.instance.pid if found.instance and runs else 0,
            created_at=found.instance.created_at if found.instance else None,
            exited_at=end.exited_at if end else None,
        )

    async def shutdown(self, sandbox_id: str) -> None:
        await self.stop(sandbox_id)
        self._made.pop(sandbox_id, None)
