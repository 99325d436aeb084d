"""Checks of start: what it answers, when it is refused, what its answer is good for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.sandbox.controller import ControllerInstance, State
from atoll.testing.conformance.bounded import in_time
from atoll.testing.conformance.check import Broken, Check, NotApplicable, check, equal, refuses, true
from atoll.testing.conformance.subject import Trial, is_forgotten

CLOCK_SLACK = timedelta(seconds=2)
CANCEL_AFTER_S = (0.0, 0.003, 0.02)
TASK_VERSIONS = (2, 3)
PROTOCOLS = ("ttrpc", "grpc")


async def start_answers_what_status_tells(trial: Trial) -> None:
    """Start answers pid, time, address and version, and status tells the same."""
    made, instance = await trial.started()
    equal("sandbox_id", made, instance.sandbox_id)
    true("pid", "a process", instance.pid > 0, instance.pid)
    status = await trial.controller.status(made)
    equal("state of a started sandbox", State.READY, status.state)
    told = (instance.pid, instance.created_at, instance.address, instance.version)
    got = (status.pid, status.created_at, status.address, status.version)
    equal("pid, created_at, address, version of status", told, got)
    equal("exited_at of a running sandbox", None, status.exited_at)


async def created_at_is_the_time_of_the_start(trial: Trial) -> None:
    """Start tells when the sandbox came to be: between the calls, and no other time later."""
    before = datetime.now(UTC)
    made, instance = await trial.started()
    near = before - CLOCK_SLACK <= instance.created_at <= datetime.now(UTC) + CLOCK_SLACK
    true("created_at", f"about {before}", near, instance.created_at)
    await trial.controller.stop(made)
    equal("created_at after the end", instance.created_at, (await trial.controller.status(made)).created_at)


async def start_gives_the_labels_of_the_record(trial: Trial) -> None:
    """The labels that start answers are the record's, and others of the controller."""
    made = trial.new_id()
    labelled = replace(trial.subject.sandbox(made), labels={"name": "checked", "tier": "one"})
    await trial.controller.create(labelled, trial.subject.options(made))
    instance = await trial.start(made)
    lacking = {key: value for key, value in labelled.labels.items() if instance.labels.get(key) != value}
    equal("labels of the record that start did not answer", {}, lacking)


async def an_address_has_protocol_and_version(trial: Trial) -> None:
    """An address is PROTOCOL+ADDRESS with a task API of version 2 or 3; without an address the version is free."""
    _, instance = await trial.started()
    _need_address(instance)
    protocol, plus, address = instance.address.partition("+")
    true("address", "<protocol>+<address>", bool(plus and address), instance.address)
    true("protocol", " or ".join(PROTOCOLS), protocol in PROTOCOLS, protocol)
    form = "an absolute path or a URL" if protocol == "ttrpc" else "a bare absolute path"
    whole = address.startswith("/") or (protocol == "ttrpc" and "://" in address)
    true("what follows the protocol", form, whole, address)
    true("version", "2 or 3", instance.version in TASK_VERSIONS, instance.version)


def _need_address(instance: ControllerInstance) -> None:
    if not instance.address:
        raise NotApplicable("start answers no address")


async def the_address_serves_tasks(trial: Trial) -> None:
    """At the address that start answers, the Task service of that version answers."""
    if trial.subject.tasks is None:
        raise NotApplicable("no way was given to call its task API")
    _, instance = await trial.started()
    _need_address(instance)
    pid = await trial.subject.tasks(instance)
    true("the pid of who serves it", "a process", pid > 0, pid)


async def the_pid_is_in_namespaces_of_its_own(trial: Trial) -> None:
    """The pid of a started sandbox is a living process, in namespaces that no other sandbox has."""
    subject = trial.subject
    if subject.host is None:
        raise NotApplicable("the sandboxes are not on this host")
    _, instance = await trial.started()
    true("pid", "a living process", await subject.host.is_alive(instance.pid), instance.pid)
    own = await subject.host.own_namespaces(instance.pid)
    lacking = sorted(subject.namespaces - own)
    true("namespaces of the pid", f"its own {', '.join(sorted(subject.namespaces))}", not lacking, sorted(own))
    _, other = await trial.started()
    kinds = subject.namespaces
    first = await subject.host.trace(instance.sandbox_id, instance.pid, "", kinds)
    second = await subject.host.trace(other.sandbox_id, other.pid, "", kinds)
    shared = sorted(kind for kind, _ in first.namespaces & second.namespaces)
    if trial.subject.options(other.sandbox_id).netns_path and "net" in shared:
        shared.remove("net")
    equal("namespaces that two sandboxes share", [], shared)


async def second_start_is_refused(trial: Trial) -> None:
    """A start of one that runs is FailedPrecondition, and it runs on."""
    made, instance = await trial.started()
    await refuses("second start", trial.controller.start(made), errors.FailedPrecondition)
    status = await trial.controller.status(made)
    equal("state and pid", (State.READY, instance.pid), (status.state, status.pid))


async def start_after_the_end_is_refused(trial: Trial) -> None:
    """A start of one that has ended is FailedPrecondition."""
    made, _ = await trial.started()
    await trial.controller.stop(made)
    await refuses("start of a stopped sandbox", trial.controller.start(made), errors.FailedPrecondition)
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)


async def cancelled_start_can_be_shut_down(trial: Trial) -> None:
    """After a start that its caller gave up, the sandbox is unknown, or shutdown frees all of it."""
    for delay_s in CANCEL_AFTER_S:
        made = await trial.created()
        async with TaskOwner("start") as owner:
            starting = owner.spawn(trial.raw.start(made), name="start")
            await asyncio.sleep(delay_s)
            starting.cancel()
            await in_time(_over(starting), within=trial.subject.within_s, what="a cancelled start")
        await _is_whole_or_gone(trial, made)
        await trial.shutdown(made)
        await is_forgotten(trial, made)


async def _over(task: asyncio.Task[ControllerInstance]) -> None:
    await asyncio.wait({task})


async def _is_whole_or_gone(trial: Trial, made: str) -> None:
    """`Broken` for half a sandbox: one that is neither unknown, nor as before, nor READY with its process."""
    try:
        status = await trial.controller.status(made)
    except errors.NotFound:
        if left := await trial.left(made):
            raise Broken("left of a start that was given up", "nothing", ", ".join(left)) from None
        return
    if status.state is State.READY:
        true("pid of one that is READY after all", "a process", status.pid > 0, status.pid)
    else:
        equal("pid of one that is not READY", 0, status.pid)


CHECKS: tuple[Check[Trial], ...] = (
    check(start_answers_what_status_tells, "C14", "C15", source="containerd.services.sandbox.v1.Controller/Start"),
    check(created_at_is_the_time_of_the_start, "C14", "C31"),
    check(start_gives_the_labels_of_the_record, "C14", source="containerd's CRI, which replaces the record's by them"),
    check(an_address_has_protocol_and_version, "C14", source="containerd.services.sandbox.v1.Controller/Start"),
    check(the_address_serves_tasks, "C14", source="containerd.task.v3.Task/Connect"),
    check(the_pid_is_in_namespaces_of_its_own, "C14"),
    check(second_start_is_refused, "C13"),
    check(start_after_the_end_is_refused, "C13", "C40"),
    check(cancelled_start_can_be_shut_down, "C16", "C45"),
)
