"""Checks of what a controller may lack: metrics, update, pause and resume."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from atoll import errors
from atoll.sandbox.controller import Runtime, SandboxInfo, State, TypedAny
from atoll.testing.conformance.check import Check, NotApplicable, check, equal, refuses, true
from atoll.testing.conformance.subject import Trial, ends

T = TypeVar("T")

CLOCK_SLACK = timedelta(seconds=2)
METRICS = ("io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics")
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PIDS_LIMIT = 4321
CONTAINERD = "containerd.services.sandbox.v1.Controller"


async def _if_it_can(what: str, work: Awaitable[T]) -> T:
    try:
        return await work
    except errors.Unimplemented as error:
        raise NotApplicable(f"it has no {what}: {error}") from error


async def metrics_are_of_the_sandbox(trial: Trial) -> None:
    """A sample has the sandbox's ID, the time, and data of cgroups v1 or v2."""
    made, _ = await trial.started()
    before = datetime.now(UTC)
    metric = await _if_it_can("metrics", trial.controller.metrics(made))
    equal("id", made, metric.id)
    true("data", " or ".join(METRICS), metric.data.type_url.rpartition("/")[2] in METRICS, metric.data.type_url)
    near = before - CLOCK_SLACK <= metric.timestamp <= datetime.now(UTC) + CLOCK_SLACK
    true("timestamp", f"about {before}", near, metric.timestamp)


async def metrics_need_a_running_sandbox(trial: Trial) -> None:
    """Metrics of a sandbox that is created or has ended are FailedPrecondition."""
    made = await trial.created()
    try:
        await _if_it_can("metrics", trial.controller.metrics(made))
    except errors.FailedPrecondition:
        await trial.start(made)
        await trial.controller.stop(made)
    await refuses("metrics", trial.controller.metrics(made), errors.FailedPrecondition)


async def pause_and_resume_are_idempotent(trial: Trial) -> None:
    """Pause and resume succeed any number of times, and the sandbox stays READY with its pid."""
    made, instance = await trial.started()
    await _if_it_can("pause", trial.controller.pause(made))
    await trial.controller.pause(made)
    status = await trial.controller.status(made)
    equal("state and pid while paused", (State.READY, instance.pid), (status.state, status.pid))
    await trial.controller.resume(made)
    await trial.controller.resume(made)
    status = await trial.controller.status(made)
    equal("state and pid once resumed", (State.READY, instance.pid), (status.state, status.pid))


async def pause_freezes_every_process(trial: Trial) -> None:
    """While a sandbox is paused each of its processes is frozen, and after resume none is."""
    host = trial.subject.host
    if host is None:
        raise NotApplicable("the sandboxes are not on this host")
    made, instance = await trial.started()
    if trial.subject.populate is not None:
        await trial.subject.populate(instance)
    trace = await trial.note(instance)
    assert trace is not None
    await _if_it_can("pause", trial.controller.pause(made))
    members = await host.members(trace)
    running = [pid for pid in members if not await host.is_frozen(pid)]
    equal(f"processes of {len(members)} that run while it is paused", [], running)
    await trial.controller.resume(made)
    frozen = [pid for pid in await host.members(trace) if await host.is_frozen(pid)]
    equal("processes that are frozen once it is resumed", [], frozen)


async def pause_needs_a_running_sandbox(trial: Trial) -> None:
    """Pause and resume of a sandbox that is created or has ended are FailedPrecondition."""
    made = await trial.created()
    for state in ("created", "stopped"):
        for name in ("pause", "resume"):
            what = f"{name} of one that is {state}"
            try:
                await _if_it_can(name, getattr(trial.controller, name)(made))
            except errors.FailedPrecondition:
                continue
            await refuses(what, getattr(trial.controller, name)(made), errors.FailedPrecondition)
        await trial.controller.stop(made)


async def a_paused_sandbox_can_be_stopped(trial: Trial) -> None:
    """Stop of a paused sandbox ends it, and so does shutdown, without a resume."""
    made, _ = await trial.started()
    await _if_it_can("pause", trial.controller.pause(made))
    await trial.controller.stop(made, 1.0)
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)
    await ends(trial, made)
    other, _ = await trial.started()
    await trial.controller.pause(other)
    await trial.shutdown(other)
    await refuses("status after shutdown", trial.controller.status(other), errors.NotFound)


async def a_paused_sandbox_takes_no_containers(trial: Trial) -> None:
    """While a sandbox is paused its Task API refuses a container with FailedPrecondition; afterwards it takes one."""
    if trial.subject.populate is None:
        raise NotApplicable("no way was given to run a container in it")
    if not trial.subject.owns_tasks:
        raise NotApplicable("its task API is another's")
    made, instance = await trial.started()
    if not instance.address:
        raise NotApplicable("start answers no address of a task API")
    await _if_it_can("pause", trial.controller.pause(made))
    await refuses("a container in a paused sandbox", trial.subject.populate(instance), errors.FailedPrecondition)
    await trial.controller.resume(made)
    await trial.subject.populate(instance)


async def update_does_not_disturb(trial: Trial) -> None:
    """Update of a running sandbox leaves it READY with its pid; of one that has ended it is FailedPrecondition."""
    made, instance = await trial.started()
    await _if_it_can("update", trial.controller.update(made, trial.subject.sandbox(made), ("labels",)))
    status = await trial.controller.status(made)
    equal("state and pid after update", (State.READY, instance.pid), (status.state, status.pid))
    await trial.controller.stop(made)
    late = trial.controller.update(made, trial.subject.sandbox(made), ("labels",))
    await refuses("update of one that has ended", late, errors.FailedPrecondition)


async def update_reaches_the_status(trial: Trial) -> None:
    """Labels and annotations that update brought show in the next verbose status; what it removed does not."""
    made, _ = await trial.started()
    record = trial.subject.sandbox(made)
    spec = TypedAny(type_url=SPEC_URL, value=json.dumps({"annotations": {"note": "second-note"}}).encode())
    changed = replace(record, labels={"colour": "first-colour", "shape": "first-shape"}, spec=spec)
    await _if_it_can("update", trial.controller.update(made, changed, ("labels", "annotations")))
    await _shows(trial, made, "update of labels and annotations", "first-colour", "first-shape", "second-note")
    recoloured = replace(record, labels={"colour": "second-colour"})
    await trial.controller.update(made, recoloured, ("labels.colour",))
    await _shows(trial, made, "update of one label", "second-colour", "first-shape")
    await trial.controller.update(made, recoloured, ("labels.shape",))
    info = await _info(trial, made)
    true("info after the removal of a label", "without it", "first-shape" not in info, info[:500])


async def _info(trial: Trial, made: str) -> str:
    return "\n".join((await trial.controller.status(made, verbose=True)).info.values())


async def _shows(trial: Trial, made: str, what: str, *values: str) -> None:
    info = await _info(trial, made)
    lacking = [value for value in values if value not in info]
    true(f"verbose status after {what}", f"{', '.join(values)} in it", not lacking, f"no {', '.join(lacking)}")


async def update_of_unknown_fields_is_refused(trial: Trial) -> None:
    """Unknown fields and another runtime name are InvalidArgument, and then nothing has changed."""
    made, _ = await trial.started()
    record = replace(trial.subject.sandbox(made), labels={"colour": "never-seen"})
    unknown = trial.controller.update(made, record, ("labels", "no-such-field"))
    await refuses("update of an unknown field", _if_it_can("update", unknown), errors.InvalidArgument)
    other = replace(record, runtime=Runtime(name=f"{record.runtime.name}.other"))
    await refuses("another runtime name", trial.controller.update(made, other, ("runtime",)), errors.InvalidArgument)
    info = await _info(trial, made)
    true("info after an update that was refused", "as before", "never-seen" not in info, "it has the new label")


async def update_reaches_the_cgroup(trial: Trial) -> None:
    """Resources of the spec that update brought are limits of the running sandbox's cgroup."""
    host = trial.subject.host
    if host is None:
        raise NotApplicable("the sandboxes are not on this host")
    made, instance = await trial.started()
    limits = {"linux": {"resources": {"pids": {"limit": PIDS_LIMIT}}}}
    spec = TypedAny(type_url=SPEC_URL, value=json.dumps(limits).encode())
    record = replace(trial.subject.sandbox(made), spec=spec)
    try:
        await _if_it_can("update", trial.controller.update(made, record, ("spec",)))
    except errors.FailedPrecondition as error:
        raise NotApplicable(f"the sandbox has no limits: {error}") from error
    info = SandboxInfo.decode((await trial.controller.status(made, verbose=True)).info)
    found = await host.pids_limits(instance.pid, info.cgroup)
    where = info.cgroup or "of its process"
    true(f"limits of processes of its cgroups, {where}", f"{PIDS_LIMIT}", PIDS_LIMIT in found, sorted(found))


CHECKS: tuple[Check[Trial], ...] = (
    check(metrics_are_of_the_sandbox, "C35", source=f"{CONTAINERD}/Metrics"),
    check(metrics_need_a_running_sandbox, "C35"),
    check(pause_and_resume_are_idempotent, "C37", "C38"),
    check(pause_freezes_every_process, "C37", "C38"),
    check(pause_needs_a_running_sandbox, "C37", "C38"),
    check(a_paused_sandbox_can_be_stopped, "C22", "C24"),
    check(a_paused_sandbox_takes_no_containers, "C39"),
    check(update_does_not_disturb, "C36", source=f"{CONTAINERD}/Update"),
    check(update_reaches_the_status, "C36"),
    check(update_of_unknown_fields_is_refused, "C36"),
    check(update_reaches_the_cgroup, "C36"),
)
