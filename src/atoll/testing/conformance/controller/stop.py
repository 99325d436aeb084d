"""Checks of stop and shutdown: the end, how often it may be asked for, and what is there afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from atoll import errors
from atoll.concurrency import TaskOwner, wait_all
from atoll.sandbox.controller import State
from atoll.testing.conformance.bounded import in_time
from atoll.testing.conformance.check import Broken, Check, NotApplicable, check, equal, refuses, told, true
from atoll.testing.conformance.subject import Trial, ends, is_forgotten

TIMEOUTS_S = (None, 0.0, 5.0)
CONTAINERD = "containerd.services.sandbox.v1.Controller"


async def stop_ends_it(trial: Trial) -> None:
    """After stop the sandbox is NOTREADY without a pid, and wait and status tell one end."""
    made, instance = await trial.started()
    await trial.controller.stop(made, 1.0)
    status = await trial.controller.status(made)
    equal("state and pid after stop", (State.NOTREADY, 0), (status.state, status.pid))
    equal("created_at after stop", instance.created_at, status.created_at)
    ended = await ends(trial, made)
    equal("exited_at of status", ended.exited_at, status.exited_at)


async def stop_returns_when_every_process_has_ended(trial: Trial) -> None:
    """When stop returns none of the sandbox's processes lives."""
    host = trial.subject.host
    if host is None:
        raise NotApplicable("the sandboxes are not on this host")
    made, instance = await trial.started()
    if trial.subject.populate is not None:
        await trial.subject.populate(instance)
    trace = await trial.note(instance)
    assert trace is not None
    await trial.controller.stop(made)
    alive = [pid for pid, _ in sorted(trace.processes) if await host.is_alive(pid)]
    equal(f"processes of {len(trace.processes)} that live after stop", [], alive)


async def stop_is_idempotent(trial: Trial) -> None:
    """Stop of what has ended succeeds, with whatever time-out, and changes no answer of wait."""
    made, _ = await trial.started()
    await trial.controller.stop(made)
    first = await ends(trial, made)
    for timeout_s in TIMEOUTS_S:
        await trial.controller.stop(made, timeout_s)
    equal("what wait answers", first, await ends(trial, made))


async def stop_before_start_ends_it(trial: Trial) -> None:
    """A created sandbox that is stopped has ended with 0: it is NOTREADY, wait answers, start is FailedPrecondition."""
    made = await trial.created()
    await trial.controller.stop(made)
    await trial.controller.stop(made)
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)
    equal("exit status", 0, (await ends(trial, made)).exit_status)
    await refuses("start after stop", trial.controller.start(made), errors.FailedPrecondition)


async def two_stops_at_once_both_succeed(trial: Trial) -> None:
    """A stop that comes while another one works succeeds too: clients ask again when they lost an answer."""
    made, _ = await trial.started()
    await wait_all([trial.controller.stop(made, timeout_s) for timeout_s in TIMEOUTS_S])
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)
    await ends(trial, made)


async def cancelled_stop_can_be_repeated(trial: Trial) -> None:
    """After a stop that its caller gave up, another stop ends the sandbox."""
    made, _ = await trial.started()
    async with TaskOwner("stop") as owner:
        stopping = owner.spawn(trial.raw.stop(made, 1.0), name="stop")
        await asyncio.sleep(0)
        stopping.cancel()
        await in_time(_over(stopping), within=trial.subject.within_s, what="a cancelled stop")
    await trial.controller.stop(made)
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)
    await ends(trial, made)


async def _over(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})


async def absent_is_stopped_and_shut_down(trial: Trial) -> None:
    """Stop and shutdown of an ID that is not there succeed, for IDs that are no names too."""
    for absent in (trial.new_id(), "..", "a/b", ""):
        await _succeeds(f"stop of {absent!r}", trial.controller.stop(absent))
        await _succeeds(f"stop of {absent!r} with a time-out", trial.controller.stop(absent, 1.0))
        await _succeeds(f"shutdown of {absent!r}", trial.controller.shutdown(absent))


async def _succeeds(what: str, work: Awaitable[None]) -> None:
    try:
        await work
    except errors.AtollError as error:
        raise Broken(f"{what}, which is not there", "success", told(error)) from error


async def shutdown_is_idempotent_and_forgets(trial: Trial) -> None:
    """After shutdown the ID is unknown and nothing is left; shutdown and stop succeed again."""
    made, _ = await trial.started()
    await trial.controller.stop(made)
    await trial.shutdown(made)
    await is_forgotten(trial, made)
    await trial.controller.shutdown(made)
    await trial.controller.stop(made)


async def shutdown_stops_what_runs(trial: Trial) -> None:
    """Shutdown of a sandbox that runs ends it and frees all of it."""
    made, _ = await trial.started()
    await trial.shutdown(made)
    await is_forgotten(trial, made)


async def shutdown_before_start_leaves_nothing(trial: Trial) -> None:
    """Shutdown of a created sandbox frees all of it."""
    made = await trial.created()
    await trial.shutdown(made)
    await is_forgotten(trial, made)


async def shutdown_releases_waiters(trial: Trial) -> None:
    """A wait that is under way at shutdown ends: with the exit status, or NotFound."""
    made, _ = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(_wait(trial, made), name="waiter")
        await asyncio.sleep(0.01)
        await trial.shutdown(made)
        done, _ = await asyncio.wait({waiting}, timeout=trial.subject.within_s)
        true("a waiter of a sandbox that was shut down", "answered", bool(done), "still waits")
        true("its answer", "an exit status or NotFound", waiting.result() in ("", "NotFound"), waiting.result())


async def _wait(trial: Trial, made: str) -> str:
    """Empty for an answer, else the kind of the error."""
    try:
        await trial.raw.wait(made)
    except errors.AtollError as error:
        return type(error).__name__
    return ""


async def two_shutdowns_at_once_both_succeed(trial: Trial) -> None:
    """A shutdown that comes while another one works succeeds too, and nothing is left."""
    made, _ = await trial.started()
    await wait_all([trial.shutdown(made), trial.controller.shutdown(made)])
    await is_forgotten(trial, made)


async def an_id_can_be_used_again(trial: Trial) -> None:
    """After shutdown the same ID can be created and started, and knows nothing of its first life."""
    made, first = await trial.started()
    await trial.controller.stop(made)
    await trial.shutdown(made)
    await trial.create(made)
    second = await trial.start(made)
    status = await trial.controller.status(made)
    equal("state and end of the second life", (State.READY, None), (status.state, status.exited_at))
    true("created_at of the second life", f"after {first.created_at}", second.created_at > first.created_at, second)
    await trial.controller.stop(made)
    await ends(trial, made)


CHECKS: tuple[Check[Trial], ...] = (
    check(stop_ends_it, "C20", "C26", "C31"),
    check(stop_returns_when_every_process_has_ended, "C20"),
    check(stop_is_idempotent, "C21", source=f"{CONTAINERD}/Stop"),
    check(stop_before_start_ends_it, "C13", "C26"),
    check(two_stops_at_once_both_succeed, "C23", "C40"),
    check(cancelled_stop_can_be_repeated, "C45"),
    check(absent_is_stopped_and_shut_down, "C3"),
    check(shutdown_is_idempotent_and_forgets, "C3", "C24", source=f"{CONTAINERD}/Shutdown"),
    check(shutdown_stops_what_runs, "C24", "C25", source=f"{CONTAINERD}/Shutdown"),
    check(shutdown_before_start_leaves_nothing, "C24"),
    check(shutdown_releases_waiters, "C29"),
    check(two_shutdowns_at_once_both_succeed, "C40"),
    check(an_id_can_be_used_again, "C4"),
)
