"""Faults of create and start; a docstring says which."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from atoll import errors
from atoll.concurrency import Latch
from atoll.sandbox.controller import (
    CleanupFailed,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Sandbox,
)
from atoll.testing.fake import STUCK, FakeController, FakeSandbox


class CreateReplacesSilently(FakeController):
    """A create of an ID that is there takes its place."""

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        self._sandboxes.pop(sandbox.id, None)
        await super().create(sandbox, options)


class TakesAnyId(FakeController):
    """An ID that is no name is taken, and forgotten."""

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        try:
            await super().create(sandbox, options)
        except errors.InvalidArgument as error:
            if "sandbox id" not in str(error):
                raise


class RefusesLongIds(FakeController):
    """An ID of more than 63 characters, as of a hostname, is refused."""

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        if len(sandbox.id) > 63:
            raise errors.InvalidArgument(f"sandbox {sandbox.id}: the ID is too long")
        await super().create(sandbox, options)


class CreateRuns(FakeController):
    """The workload runs from create on."""

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        await super().create(sandbox, options)
        self._early = await super().start(sandbox.id)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = self._get(sandbox_id).instance
        return instance if instance is not None else await super().start(sandbox_id)


class IgnoresOptions(FakeController):
    """Options of a type that it does not know are dropped in silence."""

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        await super().create(sandbox, replace(options, options=None))


class ParsesStrangeExtensions(FakeController):
    """An extension that it cannot decode fails the create."""

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        if "metadata" in sandbox.extensions:
            raise errors.Internal(f"sandbox {sandbox.id}: cannot decode the metadata")
        await super().create(sandbox, options)


class StartsTwice(FakeController):
    """A start of one that runs answers as the first."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = self._get(sandbox_id).instance
        if instance is not None and self._get(sandbox_id).is_running:
            return instance
        return await super().start(sandbox_id)


class RestartsTheDead(FakeController):
    """A start of what was stopped runs it again."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        found = self._get(sandbox_id)
        if found.exit.is_set:
            found.exit, found.instance = Latch[ExitStatus](), None
        return await super().start(sandbox_id)


class FailedStartLeaves(FakeController):
    """A start that fails leaves its process behind, and says nothing of it."""

    async def _undo(self, found: FakeSandbox, cause: BaseException) -> None:
        self._sandboxes.pop(found.sandbox.id)


class CleanupErrorHides(FakeController):
    """A start that fails and cannot be undone raises the first error alone."""

    async def _undo(self, found: FakeSandbox, cause: BaseException) -> None:
        try:
            await super()._undo(found, cause)
        except CleanupFailed:
            return


class ForgetsWhatIsStuck(FakeController):
    """A start that fails and cannot be undone makes the ID unknown, and nobody can free the rest."""

    async def _undo(self, found: FakeSandbox, cause: BaseException) -> None:
        try:
            await super()._undo(found, cause)
        finally:
            if STUCK in found.options.annotations:
                self._sandboxes.pop(found.sandbox.id, None)


class CancelledStartIsHalf(FakeController):
    """A start whose caller went away leaves a sandbox with a process that no status knows of."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        found = self._get(sandbox_id)
        if found.instance is None and not found.exit.is_set and not found.broken:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.host.spawn(sandbox_id)
                self.host.mounts[f"/run/lost/{sandbox_id}"] = ""
                self._sandboxes.pop(sandbox_id, None)
                raise
        return await super().start(sandbox_id)


class StartIsNotOrdered(FakeController):
    """Two starts at once both succeed."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        found = self._get(sandbox_id)
        if found.instance is None and not found.exit.is_set:
            await asyncio.sleep(0.005)
            if found.instance is not None:
                return found.instance
        return await super().start(sandbox_id)


class PidIsZero(FakeController):
    """Start and status answer no pid."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        return replace(await super().start(sandbox_id), pid=0)

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        return replace(await super().status(sandbox_id, verbose), pid=0)


class PidIsOfTheHost(FakeController):
    """The pid is of a process in the host's namespaces."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = await super().start(sandbox_id)
        process = self.host.processes[instance.pid]
        self.host.processes[instance.pid] = replace(process, namespaces=frozenset())
        return instance


class PidIsDead(FakeController):
    """The pid is of a process that has ended."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = await super().start(sandbox_id)
        other = self.host.join(instance.pid)
        del self.host.processes[other]
        found = self._get(sandbox_id)
        found.instance = replace(instance, pid=other)
        return found.instance


class SandboxesShareNamespaces(FakeController):
    """Every sandbox is in the IPC namespace of the first one."""

    _shared = ("ipc", 7)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = await super().start(sandbox_id)
        process = self.host.processes[instance.pid]
        mixed = frozenset(one for one in process.namespaces if one[0] != "ipc") | {self._shared}
        self.host.processes[instance.pid] = replace(process, namespaces=mixed)
        return instance


class AddressWithoutProtocol(FakeController):
    """The address is a URL without <protocol>+."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = await super().start(sandbox_id)
        self._get(sandbox_id).instance = plain = replace(instance, address=instance.address.removeprefix("ttrpc+"))
        return plain


class VersionIsZero(FakeController):
    """The version of the task API is forgotten."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        self._get(sandbox_id)
        instance = await super().start(sandbox_id)
        self._get(sandbox_id).instance = plain = replace(instance, version=0)
        return plain


class NobodyListens(FakeController):
    """The address is told before anybody serves it."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = await super().start(sandbox_id)
        del self.host.sockets[instance.address.removeprefix("ttrpc+unix://")]
        return instance


class DropsLabels(FakeController):
    """Start answers no labels, so that containerd drops the record's."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        return replace(await super().start(sandbox_id), labels={})


class CreatedAtDiffers(FakeController):
    """Status tells another created_at than start."""

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        status = await super().status(sandbox_id, verbose)
        if status.created_at is None:
            return status
        return replace(status, created_at=status.created_at + timedelta(milliseconds=1))


class CreatedAtIsOld(FakeController):
    """Start tells the time of the record and not its own."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = await super().start(sandbox_id)
        self._get(sandbox_id).instance = old = replace(instance, created_at=datetime.fromtimestamp(0, UTC))
        return old
