"""Checks that kill, restart, flood and hang up; they run only where they were asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.sandbox.controller import Controller, State, TypedAny
from atoll.testing.conformance.check import Broken, Check, NotApplicable, check, equal, refuses, told, true
from atoll.testing.conformance.subject import Trial, ends, is_forgotten

FLOOD = 1000
LABELS = 10_000
TOO_LARGE = 20 << 20
TINY_S = 0.001
HANG_UPS = 5


async def an_end_from_outside_is_told(trial: Trial) -> None:
    """A sandbox whose process is killed is NOTREADY, and every waiter hears its exit status."""
    if trial.subject.end is None:
        raise NotApplicable("no way was given to end it from outside")
    made, instance = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(trial.raw.wait(made), name="waiter")
        await asyncio.sleep(0.01)
        expected = await trial.subject.end(instance)
        ended = await ends(trial, made)
        equal("exit status", expected, ended.exit_status)
        await asyncio.wait({waiting}, timeout=trial.subject.within_s)
        true("an earlier waiter", "answered", waiting.done(), "it still waits")
        equal("what an earlier waiter got", ended, waiting.result())
    status = await trial.controller.status(made)
    got = (status.state, status.pid, status.exited_at)
    equal("state, pid and exited_at", (State.NOTREADY, 0, ended.exited_at), got)
    await trial.controller.stop(made)
    equal("wait after a stop that had nothing to do", ended, await ends(trial, made))


async def a_paused_one_that_is_killed_has_ended(trial: Trial) -> None:
    """A paused sandbox whose process is killed has ended; shutdown frees it."""
    if trial.subject.end is None:
        raise NotApplicable("no way was given to end it from outside")
    made, instance = await trial.started()
    try:
        await trial.controller.pause(made)
    except errors.Unimplemented as error:
        raise NotApplicable(f"it cannot pause: {error}") from error
    await trial.subject.end(instance)
    # A version 1 freezer holds the killed process until somebody thaws it.
    await trial.controller.stop(made)
    await ends(trial, made)
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)
    await trial.shutdown(made)
    await is_forgotten(trial, made)


async def a_thousand_waiters_hear_the_same(trial: Trial) -> None:
    """A thousand waiters of one sandbox all get one answer, and meanwhile status answers."""
    made, _ = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiters = [owner.spawn(trial.raw.wait(made), name=f"waiter {n}") for n in range(FLOOD)]
        await asyncio.sleep(0.05)
        early = sum(waiter.done() for waiter in waiters)
        equal("waiters that were answered before the end", 0, early)
        equal("state", State.READY, (await trial.controller.status(made)).state)
        for waiter in waiters[::10]:
            waiter.cancel()
        await trial.controller.stop(made)
        await asyncio.wait(waiters, timeout=trial.subject.within_s)
        late = sum(not waiter.done() for waiter in waiters)
        equal("waiters without an answer", 0, late)
        answers = {waiter.result() for waiter in waiters if not waiter.cancelled()}
    equal("different answers", {await ends(trial, made)}, answers)


async def survives_a_restart(trial: Trial) -> None:
    """After a restart of the controller what ran runs, what ended tells the same, what was created can be started."""
    running, instance = await trial.started()
    ended, _ = await trial.started()
    await trial.controller.stop(ended)
    before = await ends(trial, ended)
    idle = await trial.created()
    await _restart(trial, running, ended, idle)
    status = await trial.controller.status(running)
    equal("state and pid of one that runs", (State.READY, instance.pid), (status.state, status.pid))
    told_before = (instance.created_at, instance.address, instance.version)
    equal("created_at, address and version", told_before, (status.created_at, status.address, status.version))
    await refuses("start of one that runs", trial.controller.start(running), errors.FailedPrecondition)
    await refuses("create of one that runs", trial.create(running), errors.AlreadyExists)
    status = await trial.controller.status(ended)
    equal("state and end of one that ended", (State.NOTREADY, before.exited_at), (status.state, status.exited_at))
    equal("how it ended", before, await ends(trial, ended))
    await trial.start(idle)
    await trial.controller.stop(running)
    await ends(trial, running)


async def _ignore(work: Awaitable[object]) -> None:
    with contextlib.suppress(errors.AtollError):
        await work


async def _restart(trial: Trial, *made: str) -> None:
    if trial.subject.restart is None:
        raise NotApplicable("no way was given to restart it")
    trial.use(await trial.subject.restart(tuple(trial.subject.sandbox(one) for one in made)))


async def an_end_during_a_restart_is_told(trial: Trial) -> None:
    """A process that is killed just before a restart has its exit status told after it."""
    subject = trial.subject
    if subject.end is None or subject.restart is None:
        raise NotApplicable("no way was given to end it from outside and to restart the controller")
    made, instance = await trial.started()
    expected = await subject.end(instance)
    await _restart(trial, made)
    equal("exit status", expected, (await ends(trial, made)).exit_status)
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)


async def containers_are_found_again_after_a_restart(trial: Trial) -> None:
    """A container that ran before a restart of the controller is stopped and freed with its sandbox after it."""
    if trial.subject.populate is None or trial.subject.host is None:
        raise NotApplicable("no way was given to run a container in it and to see it")
    made, instance = await trial.started()
    await trial.subject.populate(instance)
    trace = await trial.note(instance)
    assert trace is not None
    await _restart(trial, made)
    await trial.controller.stop(made)
    alive = [pid for pid, _ in sorted(trace.processes) if await trial.subject.host.is_alive(pid)]
    equal(f"processes of {len(trace.processes)} that live after stop", [], alive)
    await trial.shutdown(made)
    await is_forgotten(trial, made)


async def a_restart_leaves_no_half_start(trial: Trial) -> None:
    """A start that a restart cut off is whole, gone or UNKNOWN, and shutdown frees it."""
    if trial.subject.restart is None:
        raise NotApplicable("no way was given to restart it")
    made = await trial.created()
    async with TaskOwner("start") as owner:
        owner.spawn(_ignore(trial.raw.start(made)), name="start")
        await asyncio.sleep(0.002)
        await _restart(trial, made)
    try:
        status = await trial.controller.status(made)
    except errors.NotFound:
        pass
    else:
        whole = status.state is not State.READY or status.pid > 0
        true("the sandbox", "without a pid, or READY with one", whole, status)
    await trial.shutdown(made)
    await is_forgotten(trial, made)


async def a_wait_survives_a_restart(trial: Trial) -> None:
    """A wait that a restart of the controller cuts off gets its answer all the same."""
    if trial.subject.another is None:
        raise NotApplicable("a restart makes another controller in this process")
    made, _ = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(trial.raw.wait(made), name="waiter")
        await asyncio.sleep(0.01)
        await _restart(trial, made)
        await trial.controller.stop(made)
        await asyncio.wait({waiting}, timeout=trial.subject.within_s)
        true("a wait from before the restart", "answered", waiting.done(), "it still waits")
        equal("its answer", await ends(trial, made), waiting.result())


async def what_a_dead_daemon_left_is_freed(trial: Trial) -> None:
    """Shutdown frees what an earlier life of the controller left under an ID that it has forgotten."""
    if trial.subject.another is not None:
        raise NotApplicable("a controller behind a wire takes up its sandboxes by itself")
    running, _ = await trial.started()
    idle = await trial.created()
    await _restart(trial)
    for made in (running, idle):
        await refuses("status of one that was not taken up", trial.controller.status(made), errors.NotFound)
        await trial.shutdown(made)
        await is_forgotten(trial, made)


def _another(trial: Trial) -> Callable[[], AbstractAsyncContextManager[Controller]]:
    if trial.subject.another is None:
        raise NotApplicable("it is in this process: there is no connection to cut")
    return trial.subject.another


async def clients_may_vanish(trial: Trial) -> None:
    """Clients that hang up in the middle of wait, start and stop leave a sandbox that others go on with."""
    another = _another(trial)
    made, instance = await trial.started()
    for _ in range(HANG_UPS):
        async with TaskOwner("calls") as owner, another() as gone:
            owner.spawn(_ignore(gone.wait(made)), name="wait")
            owner.spawn(_ignore(gone.status(made, verbose=True)), name="status")
            await asyncio.sleep(0.005)
    status = await trial.controller.status(made)
    equal("state and pid", (State.READY, instance.pid), (status.state, status.pid))
    idle = await trial.created()
    async with TaskOwner("calls") as owner, another() as gone:
        owner.spawn(_ignore(gone.start(idle)), name="start")
        owner.spawn(_ignore(gone.stop(made, 1.0)), name="stop")
        await asyncio.sleep(0.005)
    await trial.shutdown(idle)
    await is_forgotten(trial, idle)
    await trial.controller.stop(made)
    await ends(trial, made)


async def expired_deadlines_lose_nothing(trial: Trial) -> None:
    """Callers whose time is over get DeadlineExceeded or Canceled; the sandbox is then whole, or gone."""
    made = await trial.created()
    for call in (trial.raw.start, trial.raw.status, trial.raw.wait):
        try:
            async with asyncio.timeout(TINY_S):
                await call(made)
        except (TimeoutError, errors.DeadlineExceeded, errors.Cancelled, errors.NotFound):
            continue
        except errors.AtollError as error:
            raise Broken(f"{call.__name__} without time", "DeadlineExceeded", told(error)) from error
    await trial.shutdown(made)
    await is_forgotten(trial, made)


async def too_much_is_refused_and_survived(trial: Trial) -> None:
    """A record of 10,000 long labels or 20 MiB is taken or refused by its name; the controller goes on either way."""
    other, instance = await trial.started()
    record = trial.subject.sandbox(trial.new_id())
    for huge in (
        replace(record, labels={f"label-{n}": "x" * 500 for n in range(LABELS)}),
        replace(record, extensions={"huge": TypedAny(type_url="example.com/huge", value=bytes(TOO_LARGE))}),
    ):
        try:
            await trial.controller.create(huge, trial.subject.options(record.id))
        except (errors.InvalidArgument, errors.ResourceExhausted):
            await is_forgotten(trial, record.id)
        else:
            await trial.shutdown(record.id)
        equal("pid of another sandbox", instance.pid, (await trial.controller.status(other)).pid)


CHECKS: tuple[Check[Trial], ...] = (
    check(an_end_from_outside_is_told, "C26", "C27", destructive=True),
    check(a_paused_one_that_is_killed_has_ended, "C22", "C24", "C26", destructive=True),
    check(a_thousand_waiters_hear_the_same, "C27", "C42", destructive=True),
    check(clients_may_vanish, "C27", "C45", destructive=True),
    check(expired_deadlines_lose_nothing, "C45", "C46", destructive=True),
    check(too_much_is_refused_and_survived, "C11", "C61", destructive=True),
    check(survives_a_restart, "C50", destructive=True, alone=True),
    check(an_end_during_a_restart_is_told, "C50", "C51", destructive=True, alone=True),
    check(containers_are_found_again_after_a_restart, "C53", destructive=True, alone=True),
    check(a_restart_leaves_no_half_start, "C52", destructive=True, alone=True),
    check(a_wait_survives_a_restart, "C51", destructive=True, alone=True),
    check(what_a_dead_daemon_left_is_freed, "C24", destructive=True, alone=True),
)
