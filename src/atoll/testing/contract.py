"""The rules of `Controller`, as named checks that any implementation must pass.

    report = await check_controller(Subject(controller=mine, sandbox=..., options=...))
    assert report.is_passed, report

or one test a check: `@pytest.mark.parametrize("check", CHECKS, ids=str)` and `await run_check(check, subject)`.
Each check makes sandboxes of its own, shuts them down, and asks `Subject.left` what is still there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from atoll import errors
from atoll.concurrency import TaskOwner, wait_all
from atoll.sandbox.controller import CleanupFailed, ControllerStatus, ExitStatus, State
from atoll.testing.trial import Broken, Check, NotApplicable, Subject, Trial, ends, equal, refuses, run_check, true

__all__ = ["CHECKS", "Broken", "Check", "NotApplicable", "Report", "Subject", "check_controller", "run_check"]

WAITERS = 50
TOGETHER = 5
CLOCK_SLACK = timedelta(seconds=2)
METRICS = ("io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics")
CONTRACT = "Controller"
SANDBOX_API = "containerd.services.sandbox.v1.Controller"


async def _create_runs_nothing(trial: Trial) -> None:
    made = await trial.created()
    status = await trial.controller.status(made)
    true("state after create", "not READY", status.state is not State.READY, status.state)
    equal("pid after create", 0, status.pid)
    equal("exited_at after create", None, status.exited_at)


async def _create_twice(trial: Trial) -> None:
    made = await trial.created()
    subject = trial.subject
    again = trial.controller.create(subject.sandbox(made), subject.options(made))
    await refuses("create of an ID that is there", again, errors.AlreadyExists)
    await trial.controller.start(made)
    equal("state of the first", State.READY, (await trial.controller.status(made)).state)


async def _create_while_running(trial: Trial) -> None:
    made, instance = await trial.started()
    subject = trial.subject
    again = trial.controller.create(subject.sandbox(made), subject.options(made))
    await refuses("create of an ID that runs", again, errors.AlreadyExists)
    equal("pid of the first", instance.pid, (await trial.controller.status(made)).pid)


async def _create_refuses_hostile_ids(trial: Trial) -> None:
    for hostile in ("", "..", "../up", "a/b", "a\0b", "-rf", "x" * 200, "line\nbreak"):
        work = trial.controller.create(trial.subject.sandbox(hostile), trial.subject.options(hostile))
        await refuses(f"create of {hostile[:20]!r}", work, errors.InvalidArgument)
        await refuses(f"status of {hostile[:20]!r}", trial.controller.status(hostile), errors.NotFound)


async def _refused_options_leave_nothing(trial: Trial) -> None:
    subject, controller = trial.subject, trial.controller
    if subject.refused is None:
        raise NotApplicable("no options were given that it must refuse")
    made = trial.new_id()

    async def create_and_start() -> None:
        assert subject.refused is not None
        await controller.create(subject.sandbox(made), subject.refused(made))
        await controller.start(made)

    error = await refuses("create and start of what cannot be", create_and_start(), errors.AtollError)
    true("the error", "no CleanupFailed", not isinstance(error, CleanupFailed), error)
    await refuses("status afterwards", controller.status(made), errors.NotFound)
    if subject.left is not None:
        equal("left of it", (), await subject.left(made))
    await controller.create(subject.sandbox(made), subject.options(made))
    await controller.start(made)
    equal("state of the same ID, asked for properly", State.READY, (await controller.status(made)).state)


async def _start_answers(trial: Trial) -> None:
    before = datetime.now(UTC)
    made, instance = await trial.started()
    equal("sandbox_id", made, instance.sandbox_id)
    true("pid", "a process", instance.pid > 0, instance.pid)
    near = before - CLOCK_SLACK <= instance.created_at <= datetime.now(UTC) + CLOCK_SLACK
    true("created_at", f"about {before}", near, instance.created_at)
    if instance.address:
        protocol, plus, address = instance.address.partition("+")
        true("address", "<protocol>+<address>", bool(protocol and plus and address), instance.address)
        true("version", "2 or 3", instance.version in (2, 3), instance.version)
    status = await trial.controller.status(made)
    _same_as_instance(status, (instance.pid, instance.created_at, instance.address, instance.version))


def _same_as_instance(status: ControllerStatus, told: tuple[int, datetime, str, int]) -> None:
    equal("state of a started sandbox", State.READY, status.state)
    got = (status.pid, status.created_at, status.address, status.version)
    equal("pid, created_at, address, version of status", told, got)
    equal("exited_at of a running sandbox", None, status.exited_at)


async def _start_twice(trial: Trial) -> None:
    made, instance = await trial.started()
    await refuses("second start", trial.controller.start(made), errors.FailedPrecondition)
    status = await trial.controller.status(made)
    equal("state and pid", (State.READY, instance.pid), (status.state, status.pid))


async def _start_after_the_end(trial: Trial) -> None:
    made, _ = await trial.started()
    await trial.controller.stop(made)
    await refuses("start of a stopped sandbox", trial.controller.start(made), errors.FailedPrecondition)
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)


async def _unknown_ids(trial: Trial) -> None:
    controller, unknown = trial.controller, trial.new_id()
    for name in ("start", "platform", "wait", "status", "ping"):
        await refuses(f"{name} of an unknown ID", getattr(controller, name)(unknown), errors.NotFound)
    for name in ("metrics", "pause", "resume"):
        work = getattr(controller, name)(unknown)
        await refuses(f"{name} of an unknown ID", work, errors.NotFound, errors.Unimplemented)
    update = controller.update(unknown, trial.subject.sandbox(unknown), ("labels",))
    await refuses("update of an unknown ID", update, errors.NotFound, errors.Unimplemented)


async def _absent_is_stopped_and_shut_down(trial: Trial) -> None:
    for absent in (trial.new_id(), "..", "a/b", ""):
        await trial.controller.stop(absent)
        await trial.controller.stop(absent, 1.0)
        await trial.controller.shutdown(absent)


async def _stop(trial: Trial) -> None:
    made, instance = await trial.started()
    await trial.controller.stop(made, 1.0)
    status = await trial.controller.status(made)
    equal("state and pid after stop", (State.NOTREADY, 0), (status.state, status.pid))
    equal("created_at after stop", instance.created_at, status.created_at)
    ended = await ends(trial, made)
    equal("exited_at of status", ended.exited_at, status.exited_at)
    true("exited_at", f"not before {instance.created_at}", ended.exited_at >= instance.created_at, ended.exited_at)


async def _stop_is_idempotent(trial: Trial) -> None:
    made, _ = await trial.started()
    await trial.controller.stop(made)
    first = await ends(trial, made)
    for timeout_s in (None, 0.0, 5.0):
        await trial.controller.stop(made, timeout_s)
    equal("what wait answers", first, await ends(trial, made))


async def _stop_before_start(trial: Trial) -> None:
    made = await trial.created()
    await trial.controller.stop(made)
    await trial.controller.stop(made)
    equal("state", State.NOTREADY, (await trial.controller.status(made)).state)
    await ends(trial, made)
    await refuses("start after stop", trial.controller.start(made), errors.FailedPrecondition)


async def _wait_tells_all_the_same(trial: Trial) -> None:
    made, _ = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiters = [owner.spawn(trial.controller.wait(made), name=f"waiter {n}") for n in range(WAITERS)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await trial.controller.stop(made)
        last = await ends(trial, made)
        await asyncio.wait(waiters, timeout=trial.subject.within_s)
        true("waiters", "all answered", all(waiter.done() for waiter in waiters), "some still wait")
        answers = {waiter.result() for waiter in waiters[1:]}
    equal(f"answers of {WAITERS - 1} waiters and a later one", {last}, answers)
    equal("a third wait", last, await ends(trial, made))


async def _wait_can_be_given_up(trial: Trial) -> None:
    made, instance = await trial.started()
    for _ in range(3):
        try:
            got: ExitStatus | None = await asyncio.wait_for(trial.controller.wait(made), 0.05)
        except TimeoutError:
            got = None
        equal("wait on a running sandbox", None, got)
    status = await trial.controller.status(made)
    equal("state and pid", (State.READY, instance.pid), (status.state, status.pid))


async def _an_end_from_outside_is_told(trial: Trial) -> None:
    if trial.subject.end is None:
        raise NotApplicable("no way was given to end it from outside")
    made, instance = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(trial.controller.wait(made), name="waiter")
        expected = await trial.subject.end(instance)
        ended = await ends(trial, made)
        equal("exit status", expected, ended.exit_status)
        equal("what an earlier waiter got", ended, await asyncio.wait_for(waiting, trial.subject.within_s))
    status = await trial.controller.status(made)
    got = (status.state, status.pid, status.exited_at)
    equal("state, pid and exited_at", (State.NOTREADY, 0, ended.exited_at), got)
    await trial.controller.stop(made)
    equal("wait after a stop that had nothing to do", ended, await ends(trial, made))


async def _status_overlaps_with_everything(trial: Trial) -> None:
    made = await trial.created()
    stopped = asyncio.Event()
    seen: list[State] = []

    async def watch() -> None:
        while not stopped.is_set():
            seen.append((await trial.controller.status(made)).state)
            await asyncio.sleep(0.002)

    async with TaskOwner("watch") as owner:
        watching = owner.spawn(watch(), name="watch")
        await trial.controller.start(made)
        await trial.controller.platform(made)
        await asyncio.sleep(0.01)
        await trial.controller.stop(made)
        stopped.set()
        await asyncio.wait_for(watching, trial.subject.within_s)
    seen.append((await trial.controller.status(made)).state)
    order = [state for n, state in enumerate(seen) if n == 0 or seen[n - 1] is not state]
    while order and order[0] is not State.READY:
        order.pop(0)
    equal("states from READY on", [State.READY, State.NOTREADY], order)


async def _verbose_info_is_json(trial: Trial) -> None:
    made = await trial.created()
    for _ in range(2):
        equal("info of a brief status", {}, dict((await trial.controller.status(made)).info))
        for key, text in (await trial.controller.status(made, verbose=True)).info.items():
            try:
                json.loads(text)
            except ValueError as error:
                raise Broken(f"info[{key!r}]", "JSON", f"{text[:100]!r}") from error
        if (await trial.controller.status(made)).state is not State.READY:
            await trial.controller.start(made)


async def _platform(trial: Trial) -> None:
    made, _ = await trial.started()
    running = await trial.controller.platform(made)
    equal("os", "linux", running.os)
    true("architecture", "a name of the OCI image spec", running.architecture in ("amd64", "arm64", "riscv64"), running)
    await trial.controller.stop(made)
    equal("platform of a stopped sandbox", running, await trial.controller.platform(made))


async def _ping(trial: Trial) -> None:
    made = await trial.created()
    await refuses("ping before start", trial.controller.ping(made), errors.FailedPrecondition)
    await trial.controller.start(made)
    await trial.controller.ping(made)
    await trial.controller.stop(made)
    await refuses("ping after stop", trial.controller.ping(made), errors.FailedPrecondition)


async def _metrics(trial: Trial) -> None:
    made, _ = await trial.started()
    before = datetime.now(UTC)
    try:
        metric = await trial.controller.metrics(made)
    except errors.Unimplemented as error:
        raise NotApplicable(f"it has no metrics: {error}") from error
    equal("id", made, metric.id)
    true("data", " or ".join(METRICS), metric.data.type_url.rpartition("/")[2] in METRICS, metric.data.type_url)
    near = before - CLOCK_SLACK <= metric.timestamp <= datetime.now(UTC) + CLOCK_SLACK
    true("timestamp", f"about {before}", near, metric.timestamp)


async def _pause_and_resume(trial: Trial) -> None:
    made, instance = await trial.started()
    try:
        await trial.controller.pause(made)
    except errors.Unimplemented as error:
        raise NotApplicable(f"it cannot pause: {error}") from error
    await trial.controller.pause(made)
    status = await trial.controller.status(made)
    equal("state and pid while paused", (State.READY, instance.pid), (status.state, status.pid))
    await trial.controller.resume(made)
    await trial.controller.resume(made)
    await trial.controller.pause(made)
    await trial.controller.stop(made)
    await ends(trial, made)


async def _update(trial: Trial) -> None:
    made, instance = await trial.started()
    try:
        await trial.controller.update(made, trial.subject.sandbox(made), ("labels",))
    except errors.Unimplemented as error:
        raise NotApplicable(f"it cannot update: {error}") from error
    status = await trial.controller.status(made)
    equal("state and pid after update", (State.READY, instance.pid), (status.state, status.pid))


async def _shutdown_forgets(trial: Trial) -> None:
    made, _ = await trial.started()
    await trial.controller.stop(made)
    await trial.controller.shutdown(made)
    await _is_forgotten(trial, made)
    await trial.controller.shutdown(made)
    await trial.controller.stop(made)


async def _is_forgotten(trial: Trial, made: str) -> None:
    await refuses("status after shutdown", trial.controller.status(made), errors.NotFound)
    await refuses("wait after shutdown", trial.controller.wait(made), errors.NotFound)
    if trial.subject.left is not None:
        equal("left after shutdown", (), await trial.subject.left(made))


async def _shutdown_stops(trial: Trial) -> None:
    made, _ = await trial.started()
    await trial.controller.shutdown(made)
    await _is_forgotten(trial, made)


async def _shutdown_before_start(trial: Trial) -> None:
    made = await trial.created()
    await trial.controller.shutdown(made)
    await _is_forgotten(trial, made)


async def _shutdown_releases_waiters(trial: Trial) -> None:
    made, _ = await trial.started()
    async with TaskOwner("waiters") as owner:
        waiting = owner.spawn(trial.controller.wait(made), name="waiter")
        await asyncio.sleep(0.01)
        await trial.controller.shutdown(made)
        done, _ = await asyncio.wait({waiting}, timeout=trial.subject.within_s)
        true("a waiter of a sandbox that was shut down", "answered", bool(done), "still waits")
        error = waiting.exception()
        true("its answer", "an exit status or NotFound", error is None or isinstance(error, errors.NotFound), error)


async def _an_id_can_be_used_again(trial: Trial) -> None:
    made, _ = await trial.started()
    await trial.controller.shutdown(made)
    await trial.controller.create(trial.subject.sandbox(made), trial.subject.options(made))
    await trial.controller.start(made)
    equal("state of the second life", State.READY, (await trial.controller.status(made)).state)
    await trial.controller.stop(made)
    await ends(trial, made)


async def _sandboxes_are_independent(trial: Trial) -> None:
    started = await wait_all([trial.started() for _ in range(TOGETHER)])
    made = [sandbox_id for sandbox_id, _ in started]
    equal("different pids", TOGETHER, len({instance.pid for _, instance in started}))
    await trial.controller.stop(made[0])
    await trial.controller.shutdown(made[1])
    for other in made[2:]:
        equal(f"state of {other}", State.READY, (await trial.controller.status(other)).state)
    await wait_all([trial.controller.shutdown(one) for one in made])


async def _cancelled_start_can_be_shut_down(trial: Trial) -> None:
    for delay_s in (0.0, 0.003, 0.02):
        made = await trial.created()
        async with TaskOwner("start") as owner:
            starting = owner.spawn(trial.controller.start(made), name="start")
            await asyncio.sleep(delay_s)
            starting.cancel()
            done, _ = await asyncio.wait({starting}, timeout=trial.subject.within_s)
            true("a cancelled start", f"over within {trial.subject.within_s:g} s", bool(done), "still runs")
        await trial.controller.shutdown(made)
        await _is_forgotten(trial, made)


async def _survives_a_restart(trial: Trial) -> None:
    subject = trial.subject
    if subject.restart is None:
        raise NotApplicable("no way was given to restart it")
    running, instance = await trial.started()
    ended, _ = await trial.started()
    await trial.controller.stop(ended)
    before = await ends(trial, ended)
    idle = await trial.created()
    sandboxes = tuple(subject.sandbox(made) for made in (running, ended, idle))
    trial.controller = await subject.restart(sandboxes)
    status = await trial.controller.status(running)
    equal("state and pid of one that runs", (State.READY, instance.pid), (status.state, status.pid))
    equal("address and version", (instance.address, instance.version), (status.address, status.version))
    await refuses("start of one that runs", trial.controller.start(running), errors.FailedPrecondition)
    status = await trial.controller.status(ended)
    equal("state of one that ended", State.NOTREADY, status.state)
    equal("how it ended", before, await ends(trial, ended))
    await trial.controller.start(idle)
    await trial.controller.stop(running)
    await ends(trial, running)


async def _what_is_left_unknown_is_freed(trial: Trial) -> None:
    subject = trial.subject
    if subject.restart is None:
        raise NotApplicable("no way was given to restart it")
    running, _ = await trial.started()
    idle = await trial.created()
    trial.controller = await subject.restart(())
    for made in (running, idle):
        await refuses("status of one that was not taken up", trial.controller.status(made), errors.NotFound)
        await trial.controller.shutdown(made)
        await _is_forgotten(trial, made)


def _check(run: Callable[[Trial], Coroutine[None, None, None]], name: str, source: str = CONTRACT) -> Check:
    return Check(name=name, source=source, run=run)


CHECKS: tuple[Check, ...] = (
    _check(_create_runs_nothing, "create_runs_nothing", f"{CONTRACT}.create"),
    _check(_create_twice, "create_of_an_id_that_is_there_is_refused", f"{CONTRACT}.create"),
    _check(_create_while_running, "create_does_not_disturb_one_that_runs", f"{CONTRACT}.create"),
    _check(_create_refuses_hostile_ids, "create_refuses_ids_that_are_no_names", "containerd identifiers"),
    _check(_refused_options_leave_nothing, "refused_options_leave_nothing", f"{CONTRACT}.create, .start"),
    _check(_start_answers, "start_answers_what_status_tells", f"{CONTRACT}.start, {SANDBOX_API}.Start"),
    _check(_start_twice, "second_start_is_refused", f"{CONTRACT}.start"),
    _check(_start_after_the_end, "start_after_the_end_is_refused", f"{CONTRACT}.start"),
    _check(_unknown_ids, "unknown_ids_are_not_found", "atoll.sandbox.controller"),
    _check(_absent_is_stopped_and_shut_down, "absent_is_stopped_and_shut_down", "atoll.sandbox.controller"),
    _check(_stop, "stop_ends_it", f"{CONTRACT}.stop"),
    _check(_stop_is_idempotent, "stop_is_idempotent", f"{CONTRACT}.stop, {SANDBOX_API}.Stop"),
    _check(_stop_before_start, "stop_before_start_ends_it", f"{CONTRACT}.stop"),
    _check(_wait_tells_all_the_same, "wait_tells_all_the_same", f"{CONTRACT}.wait, {SANDBOX_API}.Wait"),
    _check(_wait_can_be_given_up, "wait_can_be_given_up", f"{CONTRACT}.wait"),
    _check(_an_end_from_outside_is_told, "an_end_from_outside_is_told", f"{CONTRACT}.wait, .status"),
    _check(_status_overlaps_with_everything, "status_overlaps_with_everything", f"{CONTRACT}"),
    _check(_verbose_info_is_json, "verbose_info_is_json", f"{CONTRACT}.status"),
    _check(_platform, "platform_is_told_in_every_state", f"{CONTRACT}.platform"),
    _check(_ping, "ping_tells_whether_it_runs", f"{CONTRACT}.ping"),
    _check(_metrics, "metrics_are_of_the_sandbox", f"{CONTRACT}.metrics, {SANDBOX_API}.Metrics"),
    _check(_pause_and_resume, "pause_and_resume_are_idempotent", f"{CONTRACT}.pause, .resume"),
    _check(_update, "update_does_not_disturb", f"{CONTRACT}.update"),
    _check(_shutdown_forgets, "shutdown_is_idempotent_and_forgets", f"{CONTRACT}.shutdown, {SANDBOX_API}.Shutdown"),
    _check(_shutdown_stops, "shutdown_stops_what_runs", f"{CONTRACT}.shutdown"),
    _check(_shutdown_before_start, "shutdown_before_start_leaves_nothing", f"{CONTRACT}.shutdown"),
    _check(_shutdown_releases_waiters, "shutdown_releases_waiters", f"{CONTRACT}.wait, .shutdown"),
    _check(_an_id_can_be_used_again, "an_id_can_be_used_again", f"{CONTRACT}.shutdown"),
    _check(_sandboxes_are_independent, "sandboxes_are_independent", f"{CONTRACT}"),
    _check(_cancelled_start_can_be_shut_down, "cancelled_start_can_be_shut_down", f"{CONTRACT}.start"),
    _check(_survives_a_restart, "survives_a_restart", "docs/architecture.md, processes"),
    _check(_what_is_left_unknown_is_freed, "what_a_dead_daemon_left_is_freed", f"{CONTRACT}.shutdown"),
)


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one check; `text` tells expected and got, or why it does not apply."""

    check: Check
    verdict: Verdict
    text: str = ""

    def __str__(self) -> str:
        tail = f": {self.text} [{self.check.source}]" if self.text else ""
        return f"{self.verdict} {self.check.name}{tail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of all."""

    outcomes: tuple[Outcome, ...]

    @property
    def is_passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.verdict is Verdict.FAILED)

    def __str__(self) -> str:
        return "\n".join(map(str, self.outcomes))


async def check_controller(subject: Subject, checks: Sequence[Check] = CHECKS) -> Report:
    """Run every check, one after the other; one that fails does not stop the others."""
    outcomes: list[Outcome] = []
    for check in checks:
        try:
            await run_check(check, subject)
        except NotApplicable as reason:
            outcomes.append(Outcome(check=check, verdict=Verdict.SKIPPED, text=str(reason)))
        except Exception as error:  # noqa: BLE001  the controller is anybody's, and whatever it raises is a finding
            text = str(error) if isinstance(error, Broken) else f"raised {type(error).__name__}: {error}"
            outcomes.append(Outcome(check=check, verdict=Verdict.FAILED, text=text))
        else:
            outcomes.append(Outcome(check=check, verdict=Verdict.PASSED))
    return Report(outcomes=tuple(outcomes))
