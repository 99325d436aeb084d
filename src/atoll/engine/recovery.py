"""What a new daemon makes of what an earlier one left.

Each pod is taken up by itself, many at a time, each within `POD_TIMEOUT_S`: its sandboxer is asked, its shim is
connected to, each of its containers is settled by what its checkpoint says and what the shim says. A pod
that cannot be asked is UNKNOWN with the reason, is served as that, and is asked again until it can be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from atoll import database, errors, faults
from atoll.concurrency import settle, wait_all
from atoll.config import RuntimeHandler
from atoll.container.settling import Task, TaskPhase
from atoll.container.settling import settle as settled_by_table
from atoll.container.status import State, Status, unknown_status
from atoll.container.store import Container
from atoll.engine import kinds, lines
from atoll.engine.containers import Containers
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.engine.pods import MADE, Pods
from atoll.network.model import Attachment
from atoll.runtime.task import TaskClient, TaskState, TaskStatus
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    Controller,
    ControllerInstance,
    ExitStatus,
    Sandbox,
)
from atoll.sandbox.controller import State as PodState
from atoll.sandbox.metadata import EXTENSION, SandboxMetadata, decode_metadata

log = logging.getLogger(__name__)

POD_TIMEOUT_S = 5.0
CONCURRENCY = 32
FIRST_ASK_AGAIN_S, LAST_ASK_AGAIN_S = 1.0, 60.0
"""Pauses between questions about a pod that could not be settled at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How many pods and containers were taken up, and how long it took."""

    pods: int
    containers: int
    duration_s: float


def load(parts: Parts, pods: Pods) -> None:
    """Take in every recorded pod, UNKNOWN until `recover` has asked about it; nothing is waited for."""
    for sandbox in parts.sandboxes.pods():
        if MADE in sandbox.extensions:
            pods.adopt(_rebuild(parts, sandbox))


async def recover(parts: Parts, pods: Pods, containers: Containers) -> Recovery:
    """Settle what `load` took in; never fails for one of them."""
    begun = time.monotonic()
    for record in await parts.db.read(database.quarantined):
        if record.at >= parts.db.opened_at:
            log.error("%s %s: cannot be read and is kept aside: %s", record.source, record.key, record.reason)
            parts.topics.quarantined(record)
    gate = asyncio.Semaphore(CONCURRENCY)
    loaded = pods.list()

    async def one(pod: Pod) -> None:
        async with gate:
            is_settled = await _recover_safely(parts, pods, containers, pod, again=False)
        if not is_settled:
            again = _recover_again(parts, pods, containers, pod)
            parts.owner.spawn(again, name=f"pod/{pod.id}/recover again")

    await wait_all([one(pod) for pod in loaded])
    duration = time.monotonic() - begun
    count = len(containers.list())
    log.info("recovered %d pods and %d containers in %.3f s", len(loaded), count, duration)
    return Recovery(pods=len(loaded), containers=count, duration_s=duration)


def quarantined(parts: Parts) -> frozenset[str]:
    """Owners whose record cannot be read: what is theirs is kept for whoever mends it."""
    damaged = (*parts.sandboxes.quarantined(), *parts.containers.quarantined(), *parts.hosted.quarantined())
    ids = {one.key.rpartition("/")[2] for one in damaged}
    return frozenset(ids | {kinds.NETWORK_OWNER + one for one in ids})


async def _recover_safely(parts: Parts, pods: Pods, containers: Containers, pod: Pod, *, again: bool) -> bool:
    """`_recover_pod`, for a walk that goes on whatever happens to one pod; a fault of ours counts as unsettled."""
    within = POD_TIMEOUT_S * (3 + len(containers.list(pod.id)))
    name = f"pod/{pod.id}/recover"
    settled = await settle(_recover_pod(parts, pods, containers, pod, again=again), within=within, name=name)
    if isinstance(settled, BaseException):
        log.error("pod %s: its recovery failed: %s", pod.id[:13], settled, exc_info=settled)
        if pod.state is PodState.UNKNOWN:
            pod.reason = pod.reason or f"its recovery failed: {settled}"
        return False
    return settled


async def _recover_again(parts: Parts, pods: Pods, containers: Containers, pod: Pod) -> None:
    """Ask about a pod until all of it is settled, or it is removed."""
    pause = FIRST_ASK_AGAIN_S
    while True:
        await asyncio.sleep(pause)
        pause = min(2 * pause, LAST_ASK_AGAIN_S)
        if pod not in pods.list():
            return
        if await _recover_safely(parts, pods, containers, pod, again=True):
            log.info("pod %s: is settled as %s", pod.id[:13], pod.state)
            return


async def _recover_pod(parts: Parts, pods: Pods, containers: Containers, pod: Pod, *, again: bool) -> bool:
    """Ask about a pod and its containers, whether everything is settled; what is, is not asked about `again`."""
    is_settled = True
    async with pod.lock:
        if not pod.ended.is_set and pod in pods.list():
            is_settled = await _ask_in_time(pods, pod)
        for container in containers.list(pod.id):
            if again and _is_settled(containers, container):
                continue
            is_settled &= await _recover_container_in_time(parts, containers, pod, container)
    if not pod.ended.is_set:
        pods.watch(pod)
    elif any(container.status.get().can_stop for container in containers.list(pod.id)):
        await containers.end_orphans(pod)
    return is_settled


async def _ask_in_time(pods: Pods, pod: Pod) -> bool:
    try:
        controller = pods.controller(pod)
    except errors.FailedPrecondition as error:
        pod.is_unasked = False
        pod.reason = pod.damage or str(error)
        log.warning("pod %s recovered as %s: %s", pod.id[:13], pod.state, pod.reason)
        return True  # no other answer for as long as this daemon lives
    is_settled = False
    try:
        async with asyncio.timeout(POD_TIMEOUT_S):
            with faults.step("recover/pod"):
                await _ask(pods, controller, pod)
        is_settled = True
    except TimeoutError:
        pod.reason = f"its sandboxer did not answer within {POD_TIMEOUT_S:g} s"
    except errors.AtollError as error:
        pod.reason = str(error)
    if pod.reason:
        log.warning("pod %s recovered as %s: %s", pod.id[:13], pod.state, pod.reason)
    return is_settled


def _is_settled(containers: Containers, container: Container) -> bool:
    """One that is CREATED may be new, and be about to be started: it must be let be."""
    state = container.status.get().state
    return state in (State.CREATED, State.EXITED) or (state is State.RUNNING and containers.is_watched(container.id))


async def _recover_container_in_time(parts: Parts, containers: Containers, pod: Pod, container: Container) -> bool:
    before = container.status.get()
    try:
        async with asyncio.timeout(POD_TIMEOUT_S):
            with faults.step("recover/container"):
                await _recover_container(parts, containers, pod, container)
    except (TimeoutError, errors.AtollError) as error:
        why = str(error) or f"its shim did not answer within {POD_TIMEOUT_S:g} s"
        log.warning("container %s recovered as unknown: %s", container.id[:13], why)
        if container.status.get().state is not State.EXITED:
            await container.status.update(lambda status: unknown_status(status, why))
            if known_state(before) is not State.CREATED:
                containers.watch(pod, container)
        return False
    return True


def known_state(status: Status) -> State:
    """The state a container was last known to be in, below an UNKNOWN that only says nobody could be asked."""
    return replace(status, unknown=False).state


def _rebuild(parts: Parts, sandbox: Sandbox) -> Pod:
    metadata = SandboxMetadata(id=sandbox.id)
    damage: list[str] = []
    try:
        metadata = decode_metadata(sandbox.extensions[EXTENSION])
    except (KeyError, errors.DataLoss) as error:
        damage.append(f"its metadata cannot be read: {error}")
    handler = parts.config.runtimes.get(metadata.runtime_handler, RuntimeHandler(sandboxer=sandbox.sandboxer))
    entry = parts.ledger.find(kinds.NETWORK, sandbox.id)
    attachment: Attachment | None = None
    if entry is not None:
        try:
            attachment = kinds.recorded_attachment(entry)
        except errors.DataLoss as error:
            damage.append(str(error))
    return Pod(
        sandbox=sandbox,
        config=metadata.config or PodConfig(),
        name=metadata.name,
        handler_name=metadata.runtime_handler,
        handler=handler,
        reason="; ".join(damage),
        damage="; ".join(damage),
        attachment=attachment,
        netns_path=metadata.netns_path if entry is not None else "",
        is_unasked=True,
        bundle=parts.paths.shims / sandbox.id,
    )


async def _ask(pods: Pods, controller: Controller, pod: Pod) -> None:
    try:
        status = await controller.recover(pod.sandbox)
        pod.is_unasked = False
    except errors.NotFound as error:
        pod.is_unasked = False
        # Provably absent: a reboot, or a run that a crash cut short. Stop and remove take the rest away.
        pod.state = PodState.NOTREADY
        pod.reason = str(error)
        pods.settle_end(pod, ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=datetime.now(UTC)))
        return
    pod.state = PodState.UNKNOWN if pod.damage and status.state is PodState.READY else status.state
    pod.reason = "; ".join(filter(None, (pod.damage, status.reason)))
    pod.instance = ControllerInstance(
        sandbox_id=pod.id,
        pid=status.pid,
        created_at=status.created_at or pod.sandbox.created_at,
        labels=pod.sandbox.labels,
        address=status.address,
        version=status.version,
        spec=pod.sandbox.spec,
    )
    if status.state is PodState.NOTREADY:
        exit_status = UNKNOWN_EXIT_STATUS if status.exit_status is None else status.exit_status
        pods.settle_end(pod, ExitStatus(exit_status=exit_status, exited_at=status.exited_at or datetime.now(UTC)))
    if status.address and status.state is PodState.READY:
        await lines.shim_of(pod)


async def _recover_container(parts: Parts, containers: Containers, pod: Pod, container: Container) -> None:
    """Settle what the checkpoint says by what the shim, or what it left on disk, says: `atoll.container.settling`.

    Beyond its table the records of exits are asked where the shim has no task, an end that was told stands, and one
    that is found ends not knowing.
    """
    before = container.status.get()
    if before.state is State.EXITED and pod.ended.is_set:
        return
    try:
        shim = await lines.shim_of(pod)
        told = await shim.tasks.state(container.id)
        if told.status in (TaskStatus.PAUSED, TaskStatus.PAUSING):
            await _go_on(shim.tasks, container)
        task = _as_task(told)
    except (errors.NotFound, errors.Unavailable):
        if before.state is not State.EXITED:
            await _settle_without_task(parts, containers, pod, container, before)
        return
    found = settled_by_table(before, task, time.time_ns())
    if found.watch:
        await containers.settle_running(pod, container, task.pid, found.status.started_at)
    elif task.phase is TaskPhase.STOPPED and before.state is State.EXITED:
        await containers.delete_task(pod, container)  # which a crash has kept from being deleted
    elif task.phase is TaskPhase.STOPPED:
        if not containers.is_watched(container.id):
            at = datetime.fromtimestamp(found.status.finished_at / 1e9, UTC)
            await containers.settle_exit(pod, container, ExitStatus(exit_status=task.exit_code, exited_at=at))
    elif found.delete_task:
        # A start that a crash cut short: the task exists, its command never ran.
        with contextlib.suppress(errors.NotFound):
            await shim.tasks.kill(container.id, signal.SIGKILL, all_processes=True)
        await containers.delete_task(pod, container)
        await container.status.update(Status.answered)
    else:
        await container.status.update(lambda _: found.status)
        if task.phase is TaskPhase.RUNNING:  # beside a checkpoint that says it has ended: its real end is to be known
            containers.watch(pod, container)


async def _go_on(tasks: TaskClient, container: Container) -> None:
    """Resume what stands still: a checkpoint has paused it, whose daemon is gone."""
    log.warning("container %s: stood still for a checkpoint that was cut short, goes on", container.id[:13])
    with contextlib.suppress(errors.NotFound, errors.FailedPrecondition):
        await tasks.resume(container.id)


_PHASES = {
    TaskStatus.CREATED: TaskPhase.CREATED,
    TaskStatus.RUNNING: TaskPhase.RUNNING,
    TaskStatus.PAUSED: TaskPhase.RUNNING,
    TaskStatus.PAUSING: TaskPhase.RUNNING,
    TaskStatus.STOPPED: TaskPhase.STOPPED,
}


def _as_task(told: TaskState) -> Task:
    return Task(
        phase=_PHASES.get(told.status, TaskPhase.OTHER),
        pid=told.pid,
        exit_code=told.exit_status,
        exited_at=int(told.exited_at.timestamp() * 1e9) if told.exited_at is not None else 0,
        why=f"its task is {told.status.name}",
    )


async def _settle_without_task(
    parts: Parts, containers: Containers, pod: Pod, container: Container, before: Status
) -> None:
    """What no shim has: not started yet, or ended and deleted, or run by a shim that is gone."""
    if known_state(before) is not State.CREATED:
        containers.watch(pod, container)
        return
    await container.status.update(Status.answered)
    if pod.state is PodState.READY:
        await containers.remake_bundle(container)
