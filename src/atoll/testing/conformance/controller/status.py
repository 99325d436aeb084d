"""Checks of what is asked and changes nothing: status, platform, ping, and unknown IDs."""

from __future__ import annotations

import asyncio
import json
import time

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.sandbox.controller import SandboxInfo, State
from atoll.sandbox.info import KEY
from atoll.testing.conformance.check import Broken, Check, NotApplicable, check, equal, refuses, true
from atoll.testing.conformance.subject import Trial

ARCHITECTURES = ("386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x")
PINGS = 20
LONG_S = 0.2
EDGE_S = 0.02
"""A start of so long must let questions through, between its edges."""
STARTS = 3
"""One of so many starts must: a busy machine may hold the asking process itself up in one."""
CONTAINERD = "containerd.services.sandbox.v1.Controller"


async def unknown_ids_are_not_found(trial: Trial) -> None:
    """Every call on an unknown ID but stop and shutdown is NotFound, also with an ID that is no name."""
    controller = trial.controller
    for unknown in (trial.new_id(), "no/such"):
        for name in ("start", "platform", "wait", "status", "ping"):
            await refuses(f"{name} of an unknown ID", getattr(controller, name)(unknown), errors.NotFound)
        for name in ("metrics", "pause", "resume"):
            work = getattr(controller, name)(unknown)
            await refuses(f"{name} of an unknown ID", work, errors.NotFound, errors.Unimplemented)
        update = controller.update(unknown, trial.subject.sandbox(unknown), ("labels",))
        await refuses("update of an unknown ID", update, errors.NotFound, errors.Unimplemented)


async def status_overlaps_with_everything(trial: Trial) -> None:
    """Status answers during start and stop, and the states it tells go from READY to NOTREADY once."""
    took_s = 0.0
    for _ in range(STARTS):
        took_s, is_heard = await _watched(trial)
        if is_heard or took_s < LONG_S:
            return
    true("questions", "answered during a start", False, f"none in a start of {took_s:.2f} s")


async def _watched(trial: Trial) -> tuple[float, bool]:
    """One life, seen from beside it: the seconds of its start, and whether a question was answered in it."""
    made = await trial.created()
    stopped = asyncio.Event()
    seen: list[State] = []
    asked: list[tuple[float, float]] = []

    async def watch() -> None:
        while not stopped.is_set():
            begun = time.monotonic()
            seen.append((await trial.controller.status(made)).state)
            asked.append((begun, time.monotonic()))
            await asyncio.sleep(0.002)

    async with TaskOwner("watch") as owner:
        watching = owner.spawn(watch(), name="watch")
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        await trial.start(made)
        ended = time.monotonic()
        is_heard = any(begun + EDGE_S < one[0] and one[1] < ended - EDGE_S for one in asked)
        await trial.controller.platform(made)
        await asyncio.sleep(0.01)
        await trial.controller.stop(made)
        stopped.set()
        await watching
    seen.append((await trial.controller.status(made)).state)
    order = [state for n, state in enumerate(seen) if n == 0 or seen[n - 1] is not state]
    while order and order[0] is not State.READY:
        order.pop(0)
    equal("states from READY on", [State.READY, State.NOTREADY], order)
    return ended - begun, is_heard


async def verbose_info_is_json(trial: Trial) -> None:
    """Info is given when asked verbosely, each text of it JSON, and not otherwise."""
    made = await trial.created()
    for _ in range(2):
        equal("info of a brief status", {}, dict((await trial.controller.status(made)).info))
        for key, text in (await trial.controller.status(made, verbose=True)).info.items():
            try:
                json.loads(text)
            except ValueError as error:
                raise Broken(f"info[{key!r}]", "JSON", f"{text[:100]!r}") from error
        if (await trial.controller.status(made)).state is not State.READY:
            await trial.start(made)


async def info_has_the_word_of_the_state(trial: Trial) -> None:
    """Where the verbose info has containerd's key `info`, its processStatus is the word of the state."""
    made = await trial.created()
    await _says(trial, made, "created")
    await trial.start(made)
    await _says(trial, made, "running")
    if await _pause(trial, made):
        await _says(trial, made, "paused")
    await trial.controller.stop(made)
    await _says(trial, made, "stopped", "deleted")


async def _says(trial: Trial, made: str, *words: str) -> None:
    text = (await trial.controller.status(made, verbose=True)).info.get(KEY)
    if text is None:
        raise NotApplicable("its verbose status has no key `info`")
    try:
        got = SandboxInfo.decode({KEY: text}).process_status
    except errors.DataLoss as error:
        raise Broken(f"info[{KEY!r}]", "a SandboxInfo", str(error)) from error
    true("processStatus of the verbose info", " or ".join(words), got in words, got)


async def platform_is_told_in_every_state(trial: Trial) -> None:
    """Platform names system and architecture in the words of the OCI image spec, running and stopped."""
    made, _ = await trial.started()
    running = await trial.controller.platform(made)
    true("os", "a name of the OCI image spec", running.os in ("linux", "windows", "freebsd"), running.os)
    true("architecture", "a name of the OCI image spec", running.architecture in ARCHITECTURES, running)
    await trial.controller.stop(made)
    equal("platform of a stopped sandbox", running, await trial.controller.platform(made))


async def ping_tells_whether_it_runs(trial: Trial) -> None:
    """Ping succeeds while the sandbox runs, and is FailedPrecondition before and after."""
    made = await trial.created()
    await refuses("ping before start", trial.controller.ping(made), errors.FailedPrecondition)
    await trial.start(made)
    await trial.controller.ping(made)
    await trial.controller.stop(made)
    await refuses("ping after stop", trial.controller.ping(made), errors.FailedPrecondition)


async def ping_changes_nothing(trial: Trial) -> None:
    """After twenty pings status, processes and exit are as before; one that is paused stays paused."""
    made, instance = await trial.started()
    trace = await trial.note(instance)
    before = await trial.controller.status(made)
    paused = await _pause(trial, made)
    for _ in range(PINGS):
        await trial.controller.ping(made)
    equal("status", before, await trial.controller.status(made))
    host = trial.subject.host
    if host is not None and trace is not None:
        members = tuple(sorted(pid for pid, _ in trace.processes))
        equal("processes", members, await host.members(trace))
        if paused:
            true(f"process {instance.pid}", "still frozen", await host.is_frozen(instance.pid), "it runs")
    await trial.controller.stop(made)
    ended = await trial.controller.status(made)
    await refuses("ping after stop", trial.controller.ping(made), errors.FailedPrecondition)
    equal("status after the ping of a stopped one", ended, await trial.controller.status(made))


async def _pause(trial: Trial, made: str) -> bool:
    try:
        await trial.controller.pause(made)
    except errors.Unimplemented:
        return False
    return True


CHECKS: tuple[Check[Trial], ...] = (
    check(unknown_ids_are_not_found, "C3", source=CONTAINERD),
    check(status_overlaps_with_everything, "C30", "C31", "C40"),
    check(verbose_info_is_json, "C30", source=f"{CONTAINERD}/Status"),
    check(info_has_the_word_of_the_state, "C30", source="containerd's SandboxInfo"),
    check(platform_is_told_in_every_state, "C33", source=f"{CONTAINERD}/Platform"),
    check(ping_tells_whether_it_runs, "C34"),
    check(ping_changes_nothing, "C34"),
)
