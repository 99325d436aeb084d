"""Checks of wait: when it answers, whom, and that the answer never changes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from atoll.concurrency import TaskOwner
from atoll.sandbox.controller import ExitStatus, State
from atoll.testing.conformance.check import Check, check, equal, true
from atoll.testing.conformance.subject import Trial, ends

WAITERS = 50
CLOCK_SLACK = timedelta(seconds=2)
A_WHILE_S = 0.1
CONTAINERD = "containerd.services.sandbox.v1.Controller/Wait"


async def wait_tells_all_the_same(trial: Trial) -> None:
    """Fifty waiters, one of whom gave up, and one who comes after the end get the same answer."""
    made, _ = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiters = [owner.spawn(trial.raw.wait(made), name=f"waiter {n}") for n in range(WAITERS)]
        await asyncio.sleep(0.01)
        waiters[0].cancel()
        await trial.controller.stop(made)
        last = await ends(trial, made)
        await asyncio.wait(waiters, timeout=trial.subject.within_s)
        true("waiters", "all answered", all(waiter.done() for waiter in waiters), "some still wait")
        answers = {waiter.result() for waiter in waiters[1:]}
    equal(f"answers of {WAITERS - 1} waiters and a later one", {last}, answers)
    equal("a third wait", last, await ends(trial, made))


async def wait_answers_only_after_the_end(trial: Trial) -> None:
    """Wait blocks while the sandbox runs, and when it answers status says NOTREADY."""
    made, _ = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(trial.raw.wait(made), name="waiter")
        await asyncio.wait({waiting}, timeout=A_WHILE_S)
        true("wait on a running sandbox", "no answer", not waiting.done(), _answer(waiting))
        stopping = owner.spawn(trial.controller.stop(made), name="stop")
        await asyncio.wait({waiting}, timeout=trial.subject.within_s)
        true("wait on a stopped sandbox", "an answer", waiting.done(), "none")
        equal("state once wait answered", State.NOTREADY, (await trial.controller.status(made)).state)
        await stopping


def _answer(waiting: asyncio.Task[ExitStatus]) -> object:
    if not waiting.done() or waiting.cancelled():
        return "cancelled"
    return waiting.exception() or waiting.result()


async def wait_can_be_given_up(trial: Trial) -> None:
    """A wait that its caller gives up changes nothing: the sandbox runs on, and later waits work."""
    made, instance = await trial.started()
    async with TaskOwner("waiters") as owner:
        for number in range(3):
            waiting = owner.spawn(trial.raw.wait(made), name=f"waiter {number}")
            await asyncio.wait({waiting}, timeout=0.02)
            true("wait on a running sandbox", "no answer", not waiting.done(), _answer(waiting))
            waiting.cancel()
            await asyncio.wait({waiting}, timeout=trial.subject.within_s)
            true("a wait that was given up", "over", waiting.done(), "it goes on")
    status = await trial.controller.status(made)
    equal("state and pid", (State.READY, instance.pid), (status.state, status.pid))
    await trial.controller.stop(made)
    await ends(trial, made)


async def wait_may_come_before_start(trial: Trial) -> None:
    """A wait on a created sandbox blocks until the started one has ended."""
    made = await trial.created()
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(trial.raw.wait(made), name="waiter")
        await asyncio.wait({waiting}, timeout=0.02)
        true("wait on a created sandbox", "no answer", not waiting.done(), _answer(waiting))
        await trial.start(made)
        await asyncio.wait({waiting}, timeout=0.02)
        true("wait on a running sandbox", "no answer", not waiting.done(), _answer(waiting))
        await trial.controller.stop(made)
        last = await ends(trial, made)
        await asyncio.wait({waiting}, timeout=trial.subject.within_s)
        true("wait on a stopped sandbox", "an answer", waiting.done(), "none")
        equal("its answer", last, waiting.result())


async def the_exit_time_is_when_it_ended(trial: Trial) -> None:
    """Exited_at lies between start and now, and is the same from wait and status, however often they are asked."""
    made, instance = await trial.started()
    await trial.controller.stop(made)
    ended = await ends(trial, made)
    true("exited_at", f"not before {instance.created_at}", ended.exited_at >= instance.created_at, ended.exited_at)
    now = datetime.now(UTC) + CLOCK_SLACK
    true("exited_at", f"not after {now}", ended.exited_at <= now, ended.exited_at)
    await asyncio.sleep(0.01)
    equal("wait, asked again", ended, await ends(trial, made))
    equal("exited_at of status", ended.exited_at, (await trial.controller.status(made)).exited_at)


async def a_stopped_sandbox_tells_a_wait_status(trial: Trial) -> None:
    """The exit status of a stopped sandbox is a wait status: 0 to 255."""
    made, _ = await trial.started()
    await trial.controller.stop(made)
    ended = await ends(trial, made)
    true("exit status", "0 to 255", 0 <= ended.exit_status <= 255, ended.exit_status)


CHECKS: tuple[Check[Trial], ...] = (
    check(wait_tells_all_the_same, "C27", source=CONTAINERD),
    check(wait_answers_only_after_the_end, "C26", source=CONTAINERD),
    check(wait_can_be_given_up, "C27", "C45"),
    check(wait_may_come_before_start, "C27", "C40"),
    check(the_exit_time_is_when_it_ended, "C26", "C31", source=CONTAINERD),
    check(a_stopped_sandbox_tells_a_wait_status, "C26", source=CONTAINERD),
)
