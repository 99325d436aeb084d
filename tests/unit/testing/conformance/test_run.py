"""How checks are run: bounded, beside each other, cleaned up behind, told in three forms."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.sandbox.controller import CreateOptions, Sandbox
from atoll.testing.conformance import CHECKS, Broken, NotApplicable, Outcome, Report, Trial, Verdict, check_controller
from atoll.testing.conformance.bounded import Late, in_time
from atoll.testing.conformance.check import check, equal, refuses
from atoll.testing.conformance.run import Bounds, run_checks, try_check
from atoll.testing.fake import FakeController
from atoll.testing.faultpoints import Fault, FaultPlan
from tests.unit.testing.conformance.subjects import fake_subject


async def passes(trial: Trial) -> None:
    """It holds."""
    await trial.started()


async def fails(trial: Trial) -> None:
    """It does not hold."""
    await trial.started()
    equal("a thing", 1, 2)


async def does_not_apply(trial: Trial) -> None:
    """It is not there."""
    raise NotApplicable("there is no such thing")


async def crashes(trial: Trial) -> None:
    """It raises what nobody expected."""
    raise ZeroDivisionError("of nothing")


async def hangs(trial: Trial) -> None:
    """It never ends."""
    await trial.started()
    await asyncio.sleep(3600)


async def run(controller: FakeController, *functions: object, within_s: float = 5.0, jobs: int = 1) -> Report:
    subject = fake_subject(controller, within_s)
    checks = [check(one, "C1", source="here") for one in functions]  # type: ignore[arg-type]
    bounds = Bounds(call_s=within_s, jobs=jobs)
    return await run_checks(checks, lambda one: Trial(subject, one.name), subject="it", bounds=bounds)


async def test_each_check_has_its_verdict_and_leaves_nothing() -> None:
    controller = FakeController()
    report = await run(controller, passes, fails, does_not_apply, crashes)
    assert [outcome.verdict.value for outcome in report.outcomes] == ["passed", "failed", "skipped", "failed"]
    assert "a thing: expected 1, got 2" in str(report)
    assert "ZeroDivisionError: of nothing" in str(report)
    assert "[C1, here]" in str(report)
    assert controller.ids == set()
    assert controller.host.processes == {}


async def test_a_check_that_hangs_fails_and_is_cleaned_up() -> None:
    controller = FakeController()
    report = await run(controller, hangs, passes, within_s=0.05)
    first, second = report.outcomes
    assert (first.verdict, second.verdict) == (Verdict.FAILED, Verdict.PASSED)
    assert "the last call was start of 'check-hangs-1'" in first.got
    assert controller.ids == set()


class KeepsAll(FakeController):
    async def shutdown(self, sandbox_id: str) -> None:
        raise errors.Internal("no")


async def test_what_stays_is_told_and_fails_the_check() -> None:
    report = await run(KeepsAll(), passes, fails)
    first, second = report.outcomes
    assert first.what == "left after shutdown"
    assert "shutdown of check-passes-1: Internal: no" in first.got
    assert any(one.startswith("mount ") for one in first.left)
    assert (second.what, bool(second.left)) == ("a thing", True)


async def test_a_second_shutdown_goes_on_where_the_first_failed() -> None:
    plan = FaultPlan(Fault(point="controller.shutdown", error=errors.Unavailable("busy")))
    controller = FakeController(plan)
    report = await run(controller, passes)
    assert report.is_passed, report
    assert controller.ids == set()


async def test_a_run_that_is_cut_short_cleans_up_first() -> None:
    controller = FakeController()
    begun = asyncio.Event()

    async def hang(trial: Trial) -> None:
        """It never ends."""
        await trial.started()
        begun.set()
        await asyncio.sleep(3600)

    async with TaskOwner("run") as owner:
        running = owner.spawn(run(controller, hang, passes, jobs=2), name="run")
        await begun.wait()
        running.cancel()
        await asyncio.wait({running})
    assert running.cancelled()
    assert controller.ids == set()
    assert ("shutdown", "check-hang-1") in controller.calls


async def test_checks_run_beside_each_other_and_some_alone() -> None:
    under_way: list[str] = []
    most: list[int] = []

    async def one(trial: Trial) -> None:
        """Beside."""
        under_way.append("one")
        await asyncio.sleep(0.01)
        most.append(len(under_way))
        under_way.pop()

    subject = fake_subject()
    checks = [replace(check(one), name=f"one-{n}") for n in range(4)]
    checks.append(replace(check(one, alone=True), name="alone"))
    heard: list[Outcome] = []
    report = await run_checks(
        checks, lambda it: Trial(subject, it.name), subject="it", bounds=Bounds(jobs=4), told=heard.append
    )
    assert most == [4, 3, 2, 1, 1]
    assert [outcome.check.name for outcome in report.outcomes] == ["one-0", "one-1", "one-2", "one-3", "alone"]
    assert len(heard) == 5


async def test_work_that_does_not_let_itself_be_cancelled_is_late() -> None:
    ended = asyncio.Event()

    async def stubborn() -> None:
        while not ended.is_set():
            try:
                await ended.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(Late, match=r"stubborn: expected an answer within 0\.01 s, got none"):
        await in_time(stubborn(), within=0.01, what="stubborn")
    ended.set()
    await asyncio.sleep(0)


async def test_an_error_of_another_kind_is_told_with_its_text() -> None:
    async def raises() -> None:
        raise ZeroDivisionError("of nothing")

    with pytest.raises(Broken, match="expected NotFound, got ZeroDivisionError: of nothing"):
        await refuses("it", raises(), errors.NotFound)


async def test_an_outcome_has_its_duration() -> None:
    outcome = await try_check(check(passes), Trial(fake_subject(), "passes"), within_s=5.0)
    assert outcome.verdict is Verdict.PASSED
    assert outcome.duration_s > 0


async def test_a_report_as_json_and_as_junit() -> None:
    async def odd(trial: Trial) -> None:
        """It has odd letters."""
        equal("a \0 thing", "<1>", "\x1b[2")

    report = await run(FakeController(), passes, odd, does_not_apply)
    told = json.loads(report.to_json())
    assert (told["subject"], told["passed"], told["failed"], told["skipped"]) == ("it", 1, 1, 1)
    assert told["outcomes"][1]["expected"] == "'<1>'"
    assert told["outcomes"][1]["rules"] == ["C1"]
    suite = ET.fromstring(report.to_junit())[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [case.get("name") for case in suite] == ["passes", "odd", "does_not_apply"]
    failure = suite[1][0]
    assert failure.tag == "failure"
    assert "a ? thing" in str(failure.get("message"))
    assert suite[2][0].get("message") == "there is no such thing"


class Slow(FakeController):
    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        await asyncio.sleep(0.2)
        await super().create(sandbox, options)


async def test_every_check_of_a_slow_controller_ends() -> None:
    subject = replace(fake_subject(Slow(), within_s=0.05), settle_s=0.0)
    report = await asyncio.wait_for(check_controller(subject, jobs=100), 60)
    assert len(report.outcomes) == len(CHECKS)
    assert len(report.failures) > 50
