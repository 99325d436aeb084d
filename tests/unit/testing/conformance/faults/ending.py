"""Faults of stop, shutdown and wait; a docstring says which."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from atoll import errors
from atoll.concurrency import Latch
from atoll.sandbox.controller import (
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Sandbox,
)
from atoll.testing.fake import FakeController, FakeSandbox


class StopIsNotIdempotent(FakeController):
    """A second stop is an error."""

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        if sandbox_id in self._sandboxes and self._sandboxes[sandbox_id].exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is stopped")
        await super().stop(sandbox_id, timeout_s)


class StopNeedsTheId(FakeController):
    """Stop of an unknown ID is NotFound."""

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        self._get(sandbox_id)
        await super().stop(sandbox_id, timeout_s)


class StopChangesTheExit(FakeController):
    """A second stop puts in a new exit time."""

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        found = self._sandboxes.get(sandbox_id)
        if found is not None and found.exit.is_set:
            found.exit = Latch[ExitStatus]()
        await super().stop(sandbox_id, timeout_s)


class StopReturnsEarly(FakeController):
    """When stop returns one process still runs."""

    def _end(self, found: FakeSandbox) -> None:
        pids = self.host.of(found.sandbox.id)
        last = self.host.processes[pids[-1]] if len(pids) > 1 else None
        super()._end(found)
        if last is not None:
            self.host.processes[last.pid] = last


class ShutdownNeedsTheId(FakeController):
    """Shutdown of an unknown ID is NotFound, and so is a second one."""

    async def shutdown(self, sandbox_id: str) -> None:
        self._get(sandbox_id)
        await super().shutdown(sandbox_id)


class ShutdownKeepsTheId(FakeController):
    """After shutdown the ID is still known."""

    async def shutdown(self, sandbox_id: str) -> None:
        await self.stop(sandbox_id)
        self.host.free(sandbox_id)


class ShutdownLeavesAProcess(FakeController):
    """Shutdown forgets a process."""

    def _forget(self, sandbox_id: str) -> None:
        kept = {pid: self.host.processes[pid] for pid in self.host.of(sandbox_id)}
        super()._forget(sandbox_id)
        self.host.processes.update(kept)

    def _end(self, found: FakeSandbox) -> None:
        status = 137 if found.is_running else 0
        found.exit.set(ExitStatus(exit_status=status, exited_at=datetime.now(UTC)))

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await super().stop(sandbox_id, timeout_s)
        self.host.kill(sandbox_id)


class ShutdownLeavesAMount(FakeController):
    """Shutdown forgets a mount."""

    def _forget(self, sandbox_id: str) -> None:
        mounts = dict(self.host.mounts)
        super()._forget(sandbox_id)
        self.host.mounts.update(mounts)


class ShutdownLeavesACgroup(FakeController):
    """Shutdown forgets a cgroup."""

    def _forget(self, sandbox_id: str) -> None:
        cgroups = dict(self.host.cgroups)
        super()._forget(sandbox_id)
        self.host.cgroups.update(cgroups)


class ShutdownLeavesASocket(FakeController):
    """Shutdown forgets the socket of the task API."""

    def _forget(self, sandbox_id: str) -> None:
        sockets = dict(self.host.sockets)
        super()._forget(sandbox_id)
        self.host.sockets.update(sockets)


class ShutdownLeavesWaiters(FakeController):
    """A wait that is under way at shutdown never ends."""

    async def shutdown(self, sandbox_id: str) -> None:
        self._forget(sandbox_id)


class RemembersAFirstLife(FakeController):
    """A second sandbox of one ID tells when the first one ended."""

    _ended: Mapping[str, datetime] = {}

    async def shutdown(self, sandbox_id: str) -> None:
        found = self._sandboxes.get(sandbox_id)
        if found is not None and found.exit.value is not None:
            self._ended = {**self._ended, sandbox_id: found.exit.value.exited_at}
        await super().shutdown(sandbox_id)

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        status = await super().status(sandbox_id, verbose)
        return replace(status, exited_at=status.exited_at or self._ended.get(sandbox_id))


class WaitForgets(FakeController):
    """The first waiter takes the exit status with it."""

    async def wait(self, sandbox_id: str) -> ExitStatus:
        ended = await super().wait(sandbox_id)
        self._get(sandbox_id).exit = Latch[ExitStatus]()
        return ended


class WaitAnswersEarly(FakeController):
    """Wait answers at once, whether or not the sandbox has ended."""

    async def wait(self, sandbox_id: str) -> ExitStatus:
        found = self._get(sandbox_id)
        return found.exit.value or ExitStatus(exit_status=0, exited_at=datetime.now(UTC))


class WaitLosesTheStatus(FakeController):
    """Every exit status is 255."""

    async def wait(self, sandbox_id: str) -> ExitStatus:
        return replace(await super().wait(sandbox_id), exit_status=255)


class ExitIsNow(FakeController):
    """The exit time is the time of the question."""

    async def wait(self, sandbox_id: str) -> ExitStatus:
        return replace(await super().wait(sandbox_id), exited_at=datetime.now(UTC))


class ExitIsInTheFuture(FakeController):
    """The exit time is in the future: a monotonic clock where the wall's belongs."""

    def _end(self, found: FakeSandbox) -> None:
        was_running = found.is_running
        self.host.kill(found.sandbox.id)
        later = datetime.now(UTC) + timedelta(hours=1)
        found.exit.set(ExitStatus(exit_status=137 if was_running else 0, exited_at=later))


class ExitIsRaw(FakeController):
    """The exit status is what waitpid gives, not decoded."""

    def _end(self, found: FakeSandbox) -> None:
        was_running = found.is_running
        self.host.kill(found.sandbox.id)
        found.exit.set(ExitStatus(exit_status=137 << 8 if was_running else 0, exited_at=datetime.now(UTC)))


class OneWaiterOnly(FakeController):
    """A second wait beside the first one is refused."""

    async def wait(self, sandbox_id: str) -> ExitStatus:
        found = self._get(sandbox_id)
        if sandbox_id in self._waited and not found.exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is waited for already")
        self._waited.add(sandbox_id)
        try:
            return await super().wait(sandbox_id)
        finally:
            self._waited.discard(sandbox_id)

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._waited: set[str] = set()


class WaitEndsTheSandbox(FakeController):
    """A wait that is given up takes the sandbox with it."""

    async def wait(self, sandbox_id: str) -> ExitStatus:
        try:
            return await super().wait(sandbox_id)
        except asyncio.CancelledError:
            await self.stop(sandbox_id)
            raise


class WaitBlocksAll(FakeController):
    """One lock for all sandboxes, held while a wait lasts."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._all = asyncio.Lock()

    async def wait(self, sandbox_id: str) -> ExitStatus:
        found = self._get(sandbox_id)
        if found.exit.is_set:
            return await super().wait(sandbox_id)
        async with self._all:
            return await super().wait(sandbox_id)

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        async with self._all:
            await super().create(sandbox, options)


class MissesEndsFromOutside(FakeController):
    """Nobody sees that a process has ended by itself."""

    def end(self, sandbox_id: str, exit_status: int) -> None:
        self.host.kill(sandbox_id)
