"""Checks of the Task service: the life of a container, its exit, pause, limits, statistics."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime, timedelta

from atoll import errors
from atoll.api.containerd_types_pb2 import Envelope
from atoll.concurrency import TaskOwner
from atoll.linux import process
from atoll.runtime.task import StdioPaths, TaskStatus
from atoll.testing.conformance.check import Check, NotApplicable, check, equal, refuses, told, true
from atoll.testing.conformance.shim.subject import ShimTrial

TASK = "containerd.task.v3.Task"
SEVEN = ("/bin/sh", "-c", "exit 7")
METRICS = ("io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics")
KILLED = 128 + signal.SIGKILL
WAITERS = 20
PIDS_LIMIT = 1234
CLOCK_SLACK = timedelta(seconds=2)
EVENTS = ("/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")


async def a_container_is_created_then_runs(trial: ShimTrial) -> None:
    """Create answers a pid and runs nothing yet; Start runs the command in that process; State tells both."""
    bundle, shim = await trial.launched()
    pid = await trial.created(bundle, shim)
    true("pid of Create", "a living process", await trial.host.is_alive(pid), pid)
    state = await shim.tasks.state(bundle.id)
    equal("state after Create", (TaskStatus.CREATED, pid), (state.status, state.pid))
    equal("pid of Start", pid, await shim.tasks.start(bundle.id))
    state = await shim.tasks.state(bundle.id)
    equal("state after Start", (TaskStatus.RUNNING, pid), (state.status, state.pid))
    true("pids", f"with {pid}", pid in await shim.tasks.pids(bundle.id), await shim.tasks.pids(bundle.id))
    equal("task_pid of Connect", pid, (await shim.tasks.connect(bundle.id))[1])


async def an_exit_is_told_the_same_by_all(trial: ShimTrial) -> None:
    """Wait, State and Delete tell one exit status and one time, between the start and now."""
    begun = datetime.now(UTC)
    bundle, shim, _ = await trial.running(SEVEN)
    ended = await shim.tasks.wait(bundle.id)
    equal("exit status", 7, ended.exit_status)
    near = begun - CLOCK_SLACK <= ended.exited_at <= datetime.now(UTC) + CLOCK_SLACK
    true("exited_at", f"about {begun}", near, ended.exited_at)
    equal("a second Wait", ended, await shim.tasks.wait(bundle.id))
    state = await shim.tasks.state(bundle.id)
    got = (state.status, state.exit_status, state.exited_at)
    equal("state after the end", (TaskStatus.STOPPED, 7, ended.exited_at), got)
    equal("what Delete tells", ended, await shim.tasks.delete(bundle.id))
    await refuses("State after Delete", shim.tasks.state(bundle.id), errors.NotFound)
    await refuses("Delete after Delete", shim.tasks.delete(bundle.id), errors.NotFound)


async def an_exit_is_kept_for_another_connection(trial: ShimTrial) -> None:
    """An exit that nobody was connected for is told to who connects later."""
    bundle, shim, pid = await trial.running(("/bin/sh", "-c", "sleep 0.05; exit 7"))
    await shim.aclose()
    gone = await trial.soon(lambda: not _is_there(pid))
    true(f"process {pid}", "ended and reaped", gone, "it is there")
    again = await trial.connect(bundle)
    equal("exit status of Wait", 7, (await again.tasks.wait(bundle.id)).exit_status)
    equal("exit status of Delete", 7, (await again.tasks.delete(bundle.id)).exit_status)


def _is_there(pid: int) -> bool:
    return process.stat(pid) is not None


async def many_wait_for_one_end(trial: ShimTrial) -> None:
    """Twenty waiters on two connections all hear the same, and none of them before the end."""
    bundle, shim, _ = await trial.running()
    other = await trial.connect(bundle)
    async with TaskOwner("waiters") as owner:
        clients = [shim, other] * (WAITERS // 2)
        waiters = [owner.spawn(one.tasks.wait(bundle.id), name="waiter") for one in clients]
        await asyncio.sleep(0.05)
        equal("waiters that were answered before the end", 0, sum(waiter.done() for waiter in waiters))
        await shim.tasks.kill(bundle.id, signal.SIGKILL)
        await asyncio.wait(waiters, timeout=trial.subject.within_s)
        true("waiters", "all answered", all(waiter.done() for waiter in waiters), "some still wait")
        equal("different answers", 1, len({waiter.result() for waiter in waiters}))


async def a_signal_is_told_as_128_and_more(trial: ShimTrial) -> None:
    """A container that SIGKILL ends has the exit status 137; a signal that it handles does not end it."""
    bundle, shim, _ = await trial.running(("/bin/sh", "-c", "trap '' USR1; while :; do sleep 0.05; done"))
    await asyncio.sleep(0.1)
    await shim.tasks.kill(bundle.id, signal.SIGUSR1)
    equal("status after SIGUSR1", TaskStatus.RUNNING, (await shim.tasks.state(bundle.id)).status)
    await shim.tasks.kill(bundle.id, signal.SIGKILL)
    equal("exit status", KILLED, (await shim.tasks.wait(bundle.id)).exit_status)


async def kill_after_the_end_is_not_found(trial: ShimTrial) -> None:
    """Kill of a container that has ended is NotFound."""
    bundle, shim, _ = await trial.running(SEVEN)
    await shim.tasks.wait(bundle.id)
    await refuses("Kill after the end", shim.tasks.kill(bundle.id, signal.SIGKILL), errors.NotFound)


async def unknown_containers_are_not_found(trial: ShimTrial) -> None:
    """State, Start, Kill, Pids, Wait, Delete, Pause and Exec of an unknown container are NotFound."""
    _, shim = await trial.launched()
    tasks, unknown = shim.tasks, "no-such-container"
    await refuses("State", tasks.state(unknown), errors.NotFound)
    await refuses("Start", tasks.start(unknown), errors.NotFound)
    await refuses("Kill", tasks.kill(unknown, signal.SIGKILL), errors.NotFound)
    await refuses("Pids", tasks.pids(unknown), errors.NotFound)
    await refuses("Wait", tasks.wait(unknown), errors.NotFound)
    await refuses("Delete", tasks.delete(unknown), errors.NotFound)
    await refuses("Pause", tasks.pause(unknown), errors.NotFound)
    await refuses("Stats", tasks.stats(unknown), errors.NotFound)


async def delete_of_one_that_runs_is_refused(trial: ShimTrial) -> None:
    """Delete of a container that runs is an error, and it runs on."""
    bundle, shim, pid = await trial.running()
    await refuses("Delete of one that runs", shim.tasks.delete(bundle.id), errors.AtollError)
    state = await shim.tasks.state(bundle.id)
    equal("state", (TaskStatus.RUNNING, pid), (state.status, state.pid))


async def a_second_create_is_refused(trial: ShimTrial) -> None:
    """Create of a container that is there is an error, and it runs on."""
    bundle, shim, pid = await trial.running()
    again = shim.tasks.create(bundle.id, bundle=str(bundle.path), rootfs=(), stdio=StdioPaths())
    await refuses("a second Create", again, errors.AtollError)
    equal("pid", pid, (await shim.tasks.state(bundle.id)).pid)


async def a_second_start_is_refused(trial: ShimTrial) -> None:
    """Start of a container that runs is an error, and it runs on."""
    bundle, shim, pid = await trial.running()
    await refuses("a second Start", shim.tasks.start(bundle.id), errors.AtollError)
    equal("pid", pid, (await shim.tasks.state(bundle.id)).pid)


async def a_command_that_is_missing_fails(trial: ShimTrial) -> None:
    """A container whose program is not there fails in Create or Start, and Delete clears it away."""
    bundle, shim = await trial.launched(("/bin/no-such-program",))
    try:
        await trial.created(bundle, shim)
        await shim.tasks.start(bundle.id)
    except errors.AtollError as error:
        true("the error", "names the program", "no-such-program" in str(error), told(error))
    else:
        ended = await shim.tasks.wait(bundle.id)
        true("Create and Start", "an error", False, f"success, and then {ended}")
    try:
        await shim.tasks.delete(bundle.id)
    except errors.NotFound:
        return


async def pause_freezes_and_resume_thaws(trial: ShimTrial) -> None:
    """A paused container is PAUSED and each of its processes frozen; resumed it is RUNNING again."""
    bundle, shim, pid = await trial.running(("/bin/sh", "-c", "sleep 1000000 & sleep 1000000"))
    await shim.tasks.pause(bundle.id)
    equal("status while paused", TaskStatus.PAUSED, (await shim.tasks.state(bundle.id)).status)
    pids = await shim.tasks.pids(bundle.id)
    running = [one for one in pids if not await trial.host.is_frozen(one)]
    equal(f"processes of {len(pids)} that run while it is paused", [], running)
    await shim.tasks.resume(bundle.id)
    equal("status once resumed", TaskStatus.RUNNING, (await shim.tasks.state(bundle.id)).status)
    true(f"process {pid}", "thawed", not await trial.host.is_frozen(pid), "frozen")


async def update_reaches_the_containers_cgroup(trial: ShimTrial) -> None:
    """A limit of processes that Update brings is in the container's cgroup."""
    bundle, shim, pid = await trial.running()
    await shim.tasks.update(bundle.id, json.dumps({"pids": {"limit": PIDS_LIMIT}}).encode())
    found = await trial.host.pids_limits(pid, "")
    true("limits of processes of its cgroups", str(PIDS_LIMIT), PIDS_LIMIT in found, sorted(found))


async def stats_are_cgroup_metrics(trial: ShimTrial) -> None:
    """Stats is an Any of cgroups v1 or v2 Metrics."""
    bundle, shim, _ = await trial.running()
    try:
        stats = await shim.tasks.stats(bundle.id)
    except errors.NotFound as error:
        raise NotApplicable(f"it finds no cgroup on this host: {error}") from error
    true("type", " or ".join(METRICS), stats.type_url.rpartition("/")[2] in METRICS, stats.type_url)
    true("value", "a sample", bool(stats.value), stats.value)


async def events_come_in_order(trial: ShimTrial) -> None:
    """Create, start, exit and delete of a container are published once each, in this order, with time and namespace."""
    bundle, shim, _ = await trial.running(SEVEN)
    await shim.tasks.wait(bundle.id)
    await shim.tasks.delete(bundle.id)

    def its() -> list[Envelope]:
        mark = bundle.id.encode()
        return [one.envelope for one in trial.subject.events.arrived if mark in one.envelope.event.value]

    def seen() -> list[str]:
        return [envelope.topic for envelope in its() if envelope.topic in EVENTS]

    await trial.soon(lambda: len(seen()) >= len(EVENTS))
    equal("topics", list(EVENTS), seen())
    for envelope in its():
        equal("namespace of an event", trial.subject.namespace, envelope.namespace)
        true("timestamp of an event", "set", envelope.timestamp.seconds > 0, envelope.timestamp)


CHECKS: tuple[Check[ShimTrial], ...] = (
    check(a_container_is_created_then_runs, source=f"{TASK}/Create, /Start, /State"),
    check(an_exit_is_told_the_same_by_all, source=f"{TASK}/Wait, /State, /Delete"),
    check(an_exit_is_kept_for_another_connection, source=f"{TASK}/Wait"),
    check(many_wait_for_one_end, source=f"{TASK}/Wait"),
    check(a_signal_is_told_as_128_and_more, source=f"{TASK}/Kill"),
    check(kill_after_the_end_is_not_found, source=f"{TASK}/Kill"),
    check(unknown_containers_are_not_found, source=TASK),
    check(delete_of_one_that_runs_is_refused, source=f"{TASK}/Delete"),
    check(a_second_create_is_refused, source=f"{TASK}/Create"),
    check(a_second_start_is_refused, source=f"{TASK}/Start"),
    check(a_command_that_is_missing_fails, source=f"{TASK}/Create, /Start"),
    check(pause_freezes_and_resume_thaws, source=f"{TASK}/Pause, /Resume"),
    check(update_reaches_the_containers_cgroup, source=f"{TASK}/Update"),
    check(stats_are_cgroup_metrics, source=f"{TASK}/Stats"),
    check(events_come_in_order, source="containerd.services.events.ttrpc.v1.Events"),
)
