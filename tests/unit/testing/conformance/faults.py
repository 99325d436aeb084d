"""Controllers that each break the contract in one way; the docstring says how."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
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
    Metric,
    Platform,
    Sandbox,
    State,
    TypedAny,
)
from atoll.testing.fake import STUCK, FakeController, FakeSandbox

# --- create and start ---


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


# --- the end ---


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


# --- wait ---


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


# --- questions ---


class KnowsEveryId(FakeController):
    """Status of an unknown ID answers NOTREADY."""

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        try:
            return await super().status(sandbox_id, verbose)
        except errors.NotFound:
            return ControllerStatus(sandbox_id=sandbox_id, state=State.NOTREADY)


class WrongCode(FakeController):
    """An unknown ID is Unknown, as a plain error of Go becomes."""

    def _get(self, sandbox_id: str) -> FakeSandbox:
        try:
            return super()._get(sandbox_id)
        except errors.NotFound as error:
            raise errors.Unknown(str(error)) from error


class ReadyForEver(FakeController):
    """Status says READY after the end."""

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        status = await super().status(sandbox_id, verbose)
        return replace(status, state=State.READY) if status.created_at is not None else status


class StatusWaitsForItsTurn(FakeController):
    """Start takes a while, and status waits until it is over."""

    async def start(self, sandbox_id: str) -> ControllerInstance:
        async with self._alone(f"{sandbox_id}/questions"):
            await asyncio.sleep(0.25)
        return await super().start(sandbox_id)

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        async with self._alone(f"{sandbox_id}/questions"):
            return await super().status(sandbox_id, verbose)


class TalksProse(FakeController):
    """The verbose info is no JSON."""

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        status = await super().status(sandbox_id, verbose)
        return replace(status, info={"info": "fine, thanks"}) if verbose else status


class AlwaysVerbose(FakeController):
    """Info comes unasked."""

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        return await super().status(sandbox_id, verbose=True)


class SaysRunningWhilePaused(FakeController):
    """The word of a paused sandbox is running."""

    def _info(self, found: FakeSandbox) -> dict[str, str]:
        return {key: text.replace('"paused"', '"running"') for key, text in super()._info(found).items()}


class PlatformIsEmpty(FakeController):
    """Platform answers empty words."""

    async def platform(self, sandbox_id: str) -> Platform:
        await super().platform(sandbox_id)
        return Platform(os="", architecture="")


class PlatformOfTheRunningOnly(FakeController):
    """Platform of a stopped sandbox is an error."""

    async def platform(self, sandbox_id: str) -> Platform:
        self._require_running(sandbox_id)
        return await super().platform(sandbox_id)


class PingAlwaysSucceeds(FakeController):
    """Ping of one that does not run succeeds."""

    async def ping(self, sandbox_id: str) -> None:
        self._get(sandbox_id)


class PingThaws(FakeController):
    """Ping lets a paused sandbox go."""

    async def ping(self, sandbox_id: str) -> None:
        await super().ping(sandbox_id)
        await self.resume(sandbox_id)


class PingMakesProcesses(FakeController):
    """Each ping leaves a process in the sandbox."""

    async def ping(self, sandbox_id: str) -> None:
        await super().ping(sandbox_id)
        self.host.join(self.host.of(sandbox_id)[0])


class NamelessErrors(FakeController):
    """The text of an error does not say which sandbox it is about."""

    def _get(self, sandbox_id: str) -> FakeSandbox:
        try:
            return super()._get(sandbox_id)
        except errors.NotFound as error:
            raise errors.NotFound("no such sandbox") from error


# --- changes ---


class MeasuresSomebodyElse(FakeController):
    """Metrics have the ID of another sandbox."""

    async def metrics(self, sandbox_id: str) -> Metric:
        return replace(await super().metrics(sandbox_id), id="other")


class MeasuresInJson(FakeController):
    """Metrics are of a type of its own."""

    async def metrics(self, sandbox_id: str) -> Metric:
        data = TypedAny(type_url="example.com/metrics", value=b"{}")
        return replace(await super().metrics(sandbox_id), data=data)


class MeasuresTheDead(FakeController):
    """Metrics of one that does not run are zeros."""

    def _require_running(self, sandbox_id: str) -> FakeSandbox:
        return self._get(sandbox_id)

    async def pause(self, sandbox_id: str) -> None:
        super()._require_running(sandbox_id)
        await super().pause(sandbox_id)

    async def resume(self, sandbox_id: str) -> None:
        super()._require_running(sandbox_id)
        await super().resume(sandbox_id)


class PauseIsNotIdempotent(FakeController):
    """A second pause is an error."""

    async def pause(self, sandbox_id: str) -> None:
        if self._get(sandbox_id).is_paused:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is paused")
        await super().pause(sandbox_id)


class PauseFreezesOne(FakeController):
    """Pause freezes the sandbox's own process and no container."""

    async def pause(self, sandbox_id: str) -> None:
        await super().pause(sandbox_id)
        for pid in self.host.of(sandbox_id)[1:]:
            self.host.freeze(pid, False)


class ResumeThawsNothing(FakeController):
    """Resume says ok and does nothing."""

    async def resume(self, sandbox_id: str) -> None:
        self._require_running(sandbox_id)


class PausedCannotBeStopped(FakeController):
    """Stop of a paused sandbox is refused."""

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        found = self._sandboxes.get(sandbox_id)
        if found is not None and found.is_running and found.is_paused:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is paused")
        await super().stop(sandbox_id, timeout_s)


class UpdateIgnores(FakeController):
    """Update says ok and does nothing."""

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        self._require_running(sandbox_id)


class UpdateTakesAnyField(FakeController):
    """Fields that it does not know are skipped."""

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        known = tuple(name for name in fields if name.partition(".")[0] in ("labels", "annotations", "spec", "runtime"))
        await super().update(sandbox_id, sandbox, known)


class UpdateIsHalf(FakeController):
    """An update that is refused has changed what came before the field that was wrong."""

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        for name in fields:
            await super().update(sandbox_id, sandbox, (name,))


class UpdateForgetsLimits(FakeController):
    """The limits of an updated spec reach no cgroup."""

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        await super().update(sandbox_id, sandbox, fields)
        self.host.limits.clear()


# --- time and number ---


class Hangs(FakeController):
    """Platform never answers, and cannot be cancelled."""

    async def platform(self, sandbox_id: str) -> Platform:
        for _ in range(8):
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                continue
        return Platform(os="linux", architecture="amd64")


class NoMoreThanFiveHundred(FakeController):
    """More than five hundred waiters are turned away."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._count = 0

    async def wait(self, sandbox_id: str) -> ExitStatus:
        if self._count >= 500:
            raise errors.ResourceExhausted(f"sandbox {sandbox_id}: too many waiters")
        self._count += 1
        try:
            return await super().wait(sandbox_id)
        finally:
            self._count -= 1


class ForgetsAtRestart(FakeController):
    """After a restart it knows nothing of what it ran."""

    def restarted(self, *known: str) -> FakeController:
        return super().restarted()


class LosesExitsAtRestart(FakeController):
    """After a restart how a sandbox ended is unknown."""

    def restarted(self, *known: str) -> FakeController:
        made = super().restarted(*known)
        for found in made._sandboxes.values():
            if found.exit.value is not None:
                now = datetime.now(UTC)
                found.exit = Latch[ExitStatus]()
                found.exit.set(ExitStatus(exit_status=255, exited_at=now))
        return made


class CannotFreeAnotherLife(FakeController):
    """Shutdown of an ID that it has forgotten does nothing, whatever is left under it."""

    async def shutdown(self, sandbox_id: str) -> None:
        if sandbox_id in self._sandboxes:
            await super().shutdown(sandbox_id)


class TakesContainersWhilePaused(FakeController):
    """A container is run in a paused sandbox."""

    def join(self, sandbox_id: str) -> None:
        self.host.join(self.host.of(sandbox_id)[0])


class LosesContainersAtRestart(FakeController):
    """After a restart nothing is known of the containers of a sandbox."""

    def restarted(self, *known: str) -> FakeController:
        made = super().restarted(*known)
        for sandbox_id in known:
            for pid in self.host.of(sandbox_id)[1:]:
                process = self.host.processes[pid]
                self.host.processes[pid] = replace(process, sandbox_id="")
        return made
