"""The contract suite finds what is wrong: each controller here breaks one rule, and the check of that rule says so."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from atoll import errors
from atoll.sandbox.controller import (
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Runtime,
    Sandbox,
    State,
)
from atoll.testing.contract import CHECKS, Subject, check_controller
from atoll.testing.fake import FakeController
from atoll.testing.faultpoints import Fault, FaultPlan


def subject(controller: Controller) -> Subject:
    return Subject(
        controller=controller,
        sandbox=lambda made: Sandbox(id=made, sandboxer="fake", runtime=Runtime(name="io.containerd.fake.v1")),
        options=lambda made: CreateOptions(),
        within_s=0.3,
    )


async def failures(controller: FakeController) -> set[str]:
    async def left(sandbox_id: str) -> tuple[str, ...]:
        return tuple(controller.ids & {sandbox_id})

    async def end(instance: ControllerInstance) -> int:
        controller.end(instance.sandbox_id, 7)
        return 7

    report = await check_controller(replace(subject(controller), left=left, end=end))
    return {outcome.check.name for outcome in report.failures}


async def test_the_fake_keeps_the_contract() -> None:
    assert await failures(FakeController()) == set()


async def test_every_check_has_a_name_and_a_source() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.source for check in CHECKS)


class ReplacesSilently(FakeController):
    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        self._sandboxes.pop(sandbox.id, None)
        await super().create(sandbox, options)


class TakesAnyId(FakeController):
    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        if not sandbox.id or not sandbox.id.isidentifier():
            return
        await super().create(sandbox, options)


class RunsAtOnce(FakeController):
    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        await super().create(sandbox, options)
        await self.start(sandbox.id)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = self._get(sandbox_id).instance
        return instance if instance is not None else await super().start(sandbox_id)


class StartsTwice(FakeController):
    async def start(self, sandbox_id: str) -> ControllerInstance:
        instance = self._get(sandbox_id).instance
        return instance if instance is not None else await super().start(sandbox_id)


class StopsUnknownWithNotFound(FakeController):
    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        self._get(sandbox_id)
        await super().stop(sandbox_id, timeout_s)


class ShutsUnknownDownWithNotFound(FakeController):
    async def shutdown(self, sandbox_id: str) -> None:
        self._get(sandbox_id)
        await super().shutdown(sandbox_id)


class WaitsOnce(FakeController):
    async def wait(self, sandbox_id: str) -> ExitStatus:
        ended = await super().wait(sandbox_id)
        self._get(sandbox_id).exit = type(self._get(sandbox_id).exit)()
        return ended


class AnswersNowEachTime(FakeController):
    ticks = itertools.count(1)

    async def wait(self, sandbox_id: str) -> ExitStatus:
        ended = await super().wait(sandbox_id)
        return replace(ended, exited_at=datetime.fromtimestamp(4e9 + next(self.ticks), UTC))


class KnowsEveryId(FakeController):
    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        try:
            return await super().status(sandbox_id, verbose)
        except errors.NotFound:
            return ControllerStatus(sandbox_id=sandbox_id, state=State.NOTREADY)


class SaysReadyForEver(FakeController):
    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        return replace(await super().status(sandbox_id, verbose), state=State.READY)


class ForgetsNothing(FakeController):
    async def shutdown(self, sandbox_id: str) -> None:
        await self.stop(sandbox_id)


class LeavesWaitersWaiting(FakeController):
    async def shutdown(self, sandbox_id: str) -> None:
        self._sandboxes.pop(sandbox_id, None)


class TalksProse(FakeController):
    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        status = await super().status(sandbox_id, verbose)
        return replace(status, info={"info": "fine, thanks"}) if verbose else status


class MeasuresSomebodyElse(FakeController):
    async def metrics(self, sandbox_id: str) -> Metric:
        return replace(await super().metrics(sandbox_id), id="other")


class PausesOnce(FakeController):
    async def pause(self, sandbox_id: str) -> None:
        if self._get(sandbox_id).is_paused:
            raise errors.FailedPrecondition("is paused")
        await super().pause(sandbox_id)


class AlwaysAlive(FakeController):
    async def ping(self, sandbox_id: str) -> None:
        self._get(sandbox_id)


BROKEN: dict[type[FakeController], str] = {
    ReplacesSilently: "create_of_an_id_that_is_there_is_refused",
    TakesAnyId: "create_refuses_ids_that_are_no_names",
    RunsAtOnce: "create_runs_nothing",
    StartsTwice: "second_start_is_refused",
    StopsUnknownWithNotFound: "absent_is_stopped_and_shut_down",
    ShutsUnknownDownWithNotFound: "absent_is_stopped_and_shut_down",
    WaitsOnce: "wait_tells_all_the_same",
    AnswersNowEachTime: "stop_is_idempotent",
    KnowsEveryId: "unknown_ids_are_not_found",
    SaysReadyForEver: "stop_ends_it",
    ForgetsNothing: "shutdown_is_idempotent_and_forgets",
    LeavesWaitersWaiting: "shutdown_releases_waiters",
    TalksProse: "verbose_info_is_json",
    MeasuresSomebodyElse: "metrics_are_of_the_sandbox",
    PausesOnce: "pause_and_resume_are_idempotent",
    AlwaysAlive: "ping_tells_whether_it_runs",
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
async def test_a_broken_rule_is_found(kind: type[FakeController]) -> None:
    assert BROKEN[kind] in await failures(kind())


async def test_a_report_tells_the_rule_and_what_was_expected() -> None:
    report = await check_controller(subject(StartsTwice()))
    (outcome,) = [one for one in report.failures if one.check.name == "second_start_is_refused"]
    assert "expected FailedPrecondition, got success" in str(outcome)
    assert "[Controller.start]" in str(outcome)
    assert not report.is_passed


async def test_an_error_of_the_controller_is_a_failure_and_not_the_end() -> None:
    plan = FaultPlan(Fault(point="controller.stop", error=errors.Internal("no luck"), times=1000))
    report = await check_controller(subject(FakeController(plan)))
    assert len(report.outcomes) == len(CHECKS)
    assert any("raised Internal: no luck" in outcome.text for outcome in report.failures)
