"""Checks of create: what it makes, what it refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.identifiers import MAX_LENGTH
from atoll.sandbox.controller import CleanupFailed, State, TypedAny
from atoll.testing.conformance.bounded import in_time
from atoll.testing.conformance.check import Broken, Check, NotApplicable, check, equal, refuses, true
from atoll.testing.conformance.subject import Trial, is_forgotten

HOSTILE_IDS = ("", "..", "../up", "a/b", "a\0b", "-rf", "x" * (MAX_LENGTH + 1), "line\nbreak", "a..b", "a-", "é")
MEGABYTE = 1 << 20
NEVER = datetime(1, 1, 1, tzinfo=UTC)
CANCEL_AFTER_S = (0.0, 0.003, 0.02)


async def create_runs_nothing(trial: Trial) -> None:
    """A created sandbox is not READY, and has no process of its own and no end yet."""
    made = await trial.created()
    status = await trial.controller.status(made)
    true("state after create", "not READY", status.state is not State.READY, status.state)
    equal("sandbox_id", made, status.sandbox_id)
    equal("pid after create", 0, status.pid)
    equal("exited_at after create", None, status.exited_at)


async def create_of_an_id_that_is_there_is_refused(trial: Trial) -> None:
    """A second create of an ID is AlreadyExists, and the first sandbox can be started."""
    made = await trial.created()
    await refuses("create of an ID that is there", trial.create(made), errors.AlreadyExists)
    await trial.start(made)
    equal("state of the first", State.READY, (await trial.controller.status(made)).state)


async def create_does_not_disturb_one_that_runs(trial: Trial) -> None:
    """A create of an ID that runs is AlreadyExists, and it runs on."""
    made, instance = await trial.started()
    await refuses("create of an ID that runs", trial.create(made), errors.AlreadyExists)
    equal("pid of the first", instance.pid, (await trial.controller.status(made)).pid)


async def create_refuses_ids_that_are_no_names(trial: Trial) -> None:
    """An ID that is no identifier is InvalidArgument, and stays unknown."""
    for hostile in HOSTILE_IDS:
        work = trial.controller.create(trial.subject.sandbox(hostile), trial.subject.options(hostile))
        await refuses(f"create of {hostile[:20]!r}", work, errors.InvalidArgument)
        await refuses(f"status of {hostile[:20]!r}", trial.controller.status(hostile), errors.NotFound)


async def the_longest_id_is_taken(trial: Trial) -> None:
    """An ID of 76 characters with every separator runs."""
    start = f"{trial.subject.prefix}.a_b-"
    made = start + "x" * (MAX_LENGTH - len(start))
    trial.made.append(made)
    await trial.create(made)
    instance = await trial.start(made)
    equal("sandbox_id", made, instance.sandbox_id)


async def refused_options_leave_nothing(trial: Trial) -> None:
    """What create or start refuses leaves nothing, and the same ID can be used at once."""
    subject = trial.subject
    if subject.refused is None:
        raise NotApplicable("no options were given that it must refuse")
    made = trial.new_id()
    try:
        await trial.controller.create(subject.sandbox(made), subject.refused(made))
        instance = await trial.controller.start(made)
    except CleanupFailed as error:
        raise Broken("the error", "no CleanupFailed", str(error)) from error
    except errors.AtollError:
        pass
    else:
        raise Broken("create and start of what cannot be", "an error", f"success: {instance!r}")
    await is_forgotten(trial, made)
    await trial.create(made)
    await trial.start(made)
    equal("state of the same ID, asked for properly", State.READY, (await trial.controller.status(made)).state)


async def a_failed_undo_is_told_and_paid(trial: Trial) -> None:
    """A start that fails and cannot be undone says what is left, is UNKNOWN with a reason, and shutdown frees it."""
    subject = trial.subject
    if subject.stuck is None:
        raise NotApplicable("no options were given whose start fails and cannot be undone")
    made = trial.new_id()
    await trial.controller.create(subject.sandbox(made), subject.stuck(made))
    error = await refuses("start", trial.controller.start(made), errors.AtollError)
    if not isinstance(error, CleanupFailed):
        raise Broken("the error of start", "CleanupFailed, which names what is left", repr(error))
    true("what is left", "named", bool(error.left), error.left)
    text = str(error)
    true("text", "the first failure's", str(error.cause) in text, text)
    status = await trial.controller.status(made)
    equal("state", State.UNKNOWN, status.state)
    true("reason", "given", bool(status.reason), status.reason)
    await trial.shutdown(made)
    await is_forgotten(trial, made)


async def a_large_record_is_taken_or_refused(trial: Trial) -> None:
    """A record with 1 MiB of extensions is taken, or refused as too large; nothing half is made of it."""
    made = trial.new_id()
    large = TypedAny(type_url="example.com/large", value=b"x" * MEGABYTE)
    sandbox = replace(trial.subject.sandbox(made), extensions={"large": large})
    try:
        await trial.controller.create(sandbox, trial.subject.options(made))
    except (errors.InvalidArgument, errors.ResourceExhausted):
        await is_forgotten(trial, made)
        return
    await trial.start(made)
    equal("state", State.READY, (await trial.controller.status(made)).state)


async def unknown_extensions_are_carried(trial: Trial) -> None:
    """Extensions and labels whose meaning nobody knows keep no sandbox from running."""
    made = trial.new_id()
    strange = {"metadata": TypedAny(type_url="no.such.Type", value=b"\xff\0not a message")}
    sandbox = replace(trial.subject.sandbox(made), extensions=strange, labels={"": "empty", "a/b": "ünï", "c": ""})
    await trial.controller.create(sandbox, trial.subject.options(made))
    await trial.start(made)
    equal("state", State.READY, (await trial.controller.status(made)).state)


async def a_bare_record_is_enough(trial: Trial) -> None:
    """A record without spec, labels and extensions, its times in the year 1, runs."""
    made = trial.new_id()
    bare = replace(trial.subject.sandbox(made), spec=None, labels={}, extensions={}, created_at=NEVER, updated_at=NEVER)
    await trial.controller.create(bare, trial.subject.options(made))
    instance = await trial.start(made)
    true("created_at", "the time of the start", instance.created_at.year > NEVER.year, instance.created_at)


async def options_of_an_unknown_type_are_refused(trial: Trial) -> None:
    """Options of an unknown type are InvalidArgument, and the ID is unknown then."""
    made = trial.new_id()
    strange = TypedAny(type_url="no.such.Type", value=b"\xff\0not a message")
    options = replace(trial.subject.options(made), options=strange)
    create = trial.controller.create(trial.subject.sandbox(made), options)
    await refuses("create with options of no known type", create, errors.InvalidArgument, errors.Unimplemented)
    await is_forgotten(trial, made)


async def cancelled_create_can_be_repeated(trial: Trial) -> None:
    """After a create that its caller gave up, shutdown leaves nothing and the same ID can be created."""
    made = trial.new_id()
    for delay_s in CANCEL_AFTER_S:
        async with TaskOwner("create") as owner:
            work = trial.raw.create(trial.subject.sandbox(made), trial.subject.options(made))
            creating = owner.spawn(work, name="create")
            await asyncio.sleep(delay_s)
            creating.cancel()
            await in_time(_over(creating), within=trial.subject.within_s, what="a cancelled create")
        await trial.shutdown(made)
        await is_forgotten(trial, made)
    await trial.create(made)
    await trial.start(made)


async def _over(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})


CHECKS: tuple[Check[Trial], ...] = (
    check(create_runs_nothing, "C10"),
    check(create_of_an_id_that_is_there_is_refused, "C2"),
    check(create_does_not_disturb_one_that_runs, "C2"),
    check(create_refuses_ids_that_are_no_names, "C1", "C3", source="containerd's identifiers"),
    check(the_longest_id_is_taken, "C1", source="containerd's identifiers"),
    check(refused_options_leave_nothing, "C10", "C12", "C16"),
    check(a_failed_undo_is_told_and_paid, "C16", "C17", source="containerd's podsandbox, CleanupErr"),
    check(a_bare_record_is_enough, "C11", source="containerd.types.Sandbox"),
    check(a_large_record_is_taken_or_refused, "C11"),
    check(unknown_extensions_are_carried, "C11", source="containerd.types.Sandbox"),
    check(options_of_an_unknown_type_are_refused, "C10", "C11", "C12"),
    check(cancelled_create_can_be_repeated, "C12", "C45"),
)
