"""Faults of questions, of changes, of number and of restarts; a docstring says which."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

from atoll import errors
from atoll.concurrency import Latch
from atoll.sandbox.controller import (
    ControllerInstance,
    ControllerStatus,
    ExitStatus,
    Metric,
    Platform,
    Sandbox,
    State,
    TypedAny,
)
from atoll.testing.fake import FakeController, FakeSandbox


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
    """More than five hundred waiters of one sandbox are turned away."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._count = Counter[str]()

    async def wait(self, sandbox_id: str) -> ExitStatus:
        if self._count[sandbox_id] >= 500:
            raise errors.ResourceExhausted(f"sandbox {sandbox_id}: too many waiters")
        self._count[sandbox_id] += 1
        try:
            return await super().wait(sandbox_id)
        finally:
            self._count[sandbox_id] -= 1


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
