"""Checks of calls at the same time, on one sandbox and on several."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from atoll import errors
from atoll.concurrency import TaskOwner, wait_all
from atoll.sandbox.controller import State
from atoll.testing.conformance.check import Check, check, equal, refuses, told, true
from atoll.testing.conformance.subject import Trial, ends, is_forgotten

TOGETHER = 5


async def sandboxes_are_independent(trial: Trial) -> None:
    """Five sandboxes started at once have pids of their own, and the end of one is not felt by the others."""
    started = await wait_all([trial.started() for _ in range(TOGETHER)])
    made = [sandbox_id for sandbox_id, _ in started]
    equal("different pids", TOGETHER, len({instance.pid for _, instance in started}))
    await trial.controller.stop(made[0])
    await trial.shutdown(made[1])
    for other in made[2:]:
        equal(f"state of {other}", State.READY, (await trial.controller.status(other)).state)
    await wait_all([trial.shutdown(one) for one in made])


async def waits_hold_up_nobody(trial: Trial) -> None:
    """While one sandbox is waited for, another goes through its whole life, and the first one answers questions."""
    made, instance = await trial.started()
    async with TaskOwner("waiter") as owner:
        waiting = owner.spawn(trial.raw.wait(made), name="waiter")
        await asyncio.sleep(0.01)
        other, _ = await trial.started()
        await trial.controller.ping(other)
        await trial.controller.platform(other)
        await trial.controller.stop(other)
        await ends(trial, other)
        await trial.shutdown(other)
        equal("pid of the first", instance.pid, (await trial.controller.status(made)).pid)
        true("the wait", "still blocks", not waiting.done(), "it answered")
        await trial.controller.stop(made)
        await asyncio.wait({waiting}, timeout=trial.subject.within_s)
        true("the wait", "answered", waiting.done(), "it still blocks")


async def two_creates_at_once_make_one(trial: Trial) -> None:
    """Of two creates of one ID at once one wins and the other is AlreadyExists."""
    made = trial.new_id()
    answers = await wait_all([_kind(trial.create(made)), _kind(trial.create(made))])
    equal("answers", ["", "AlreadyExists"], sorted(answers))
    await trial.start(made)


async def two_starts_at_once_run_one(trial: Trial) -> None:
    """Of two starts at once one wins and the other is FailedPrecondition."""
    made = await trial.created()
    answers = await wait_all([_kind(trial.controller.start(made)), _kind(trial.controller.start(made))])
    equal("answers", ["", "FailedPrecondition"], sorted(answers))
    status = await trial.controller.status(made)
    true("the one that runs", "READY with a pid", status.state is State.READY and status.pid > 0, status)


async def _kind(work: Coroutine[Any, Any, object]) -> str:
    """Empty for a success, else the kind of the error."""
    try:
        await work
    except errors.AtollError as error:
        return type(error).__name__
    return ""


async def shutdown_beside_a_start_leaves_nothing(trial: Trial) -> None:
    """A shutdown that comes while start works wins in the end: the ID is unknown and nothing is left."""
    made = await trial.created()
    async with TaskOwner("start") as owner:
        starting = owner.spawn(_kind(trial.controller.start(made)), name="start")
        await asyncio.sleep(0.001)
        await trial.controller.shutdown(made)
        kind = await starting
    known = ("", "NotFound", "FailedPrecondition", "Aborted", "Cancelled", "Unavailable")
    true("the start that was overtaken", "an answer or an error that fits", kind in known, kind)
    await trial.controller.shutdown(made)
    await is_forgotten(trial, made)


async def shutdown_overtakes_a_stop(trial: Trial) -> None:
    """A shutdown, or a stop without patience, does not wait for a patient stop, and all of them succeed."""
    made, _ = await trial.started()
    patient = trial.controller.stop(made, trial.subject.within_s)
    await wait_all([patient, trial.controller.stop(made), trial.shutdown(made)])
    await is_forgotten(trial, made)


async def errors_name_the_sandbox(trial: Trial) -> None:
    """The text of an error has the ID that it is about."""
    controller, made, unknown = trial.controller, await trial.created(), trial.new_id()
    calls: tuple[tuple[str, str, type[errors.AtollError], Callable[[], Awaitable[object]]], ...] = (
        ("create of one that is there", made, errors.AlreadyExists, lambda: trial.create(made)),
        ("status of an unknown ID", unknown, errors.NotFound, lambda: controller.status(unknown)),
        ("wait of an unknown ID", unknown, errors.NotFound, lambda: controller.wait(unknown)),
        ("ping of one that does not run", made, errors.FailedPrecondition, lambda: controller.ping(made)),
    )
    for what, name, kind, call in calls:
        error = await refuses(what, call(), kind)
        true(f"text of {what}", f"with {name}", name in str(error), told(error))


CHECKS: tuple[Check[Trial], ...] = (
    check(sandboxes_are_independent, "C5", "C41"),
    check(waits_hold_up_nobody, "C40", "C41"),
    check(two_creates_at_once_make_one, "C2", "C40"),
    check(two_starts_at_once_run_one, "C13", "C40"),
    check(shutdown_beside_a_start_leaves_nothing, "C24", "C40"),
    check(shutdown_overtakes_a_stop, "C23", "C40"),
    check(errors_name_the_sandbox, "C61"),
)
