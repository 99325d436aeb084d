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

from atoll import errors
from atoll.concurrency import settle, wait_all
from atoll.config import RuntimeHandler
from atoll.container.status import State, Status, unknown_status
from atoll.container.store import Container
from atoll.engine import kinds, lines
from atoll.engine.containers import Containers
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.engine.pods import MADE, TEARDOWN_TIMEOUT_S, Pods
from atoll.engine.sandboxes import Sandboxes
from atoll.ledger.kind import Entry, Intent
from atoll.network.model import Attachment
from atoll.runtime.task import TaskStatus
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
ENDED = (State.EXITED, State.UNKNOWN)
"""States of a container whose removal may have begun; UNKNOWN where that took its checkpoint."""
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
    """Settle what `load` took in, then free what nobody has any more; never fails for one of them."""
    begun = time.monotonic()
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


async def free_unfinished(parts: Parts, pods: Pods, containers: Containers, hosted: Sandboxes) -> None:
    """Free what a crash cut short, as far as nobody was ever told of it, and take up the debts.

    A stop whose network was still being given back behind its answer goes on. A run that never came to READY has
    told nobody its ID, so it goes as if it had failed: nobody can ask for its end. So do the containers
    of a pod whose record is gone, and checkpoints that were written before their container's record.
    """
    gate = asyncio.Semaphore(CONCURRENCY)

    async def free(pod_id: str) -> None:
        async with gate:
            log.warning("pod %s: its run was cut short, it is undone", pod_id[:13])
            try:
                left = await pods.release_recorded(pod_id)
            except errors.AtollError as error:
                left = [str(error)]
            for one in left:
                log.error("pod %s: not undone yet, will be retried: %s", pod_id[:13], one)

    await wait_all([_leave_lost_network(pods, pod) for pod in pods.list()])
    sandboxes = parts.sandboxes.pods()
    await wait_all([free(sandbox.id) for sandbox in sandboxes if MADE not in sandbox.extensions])
    known = {sandbox.id for sandbox in sandboxes} | {key.rpartition("/")[2] for key in quarantined(parts)}
    await wait_all([_forget(containers, one) for one in containers.list() if one.sandbox_id not in known])
    await hosted.free_unfinished()
    await parts.ledger.recover(pods.owners() | containers.owners() | hosted.owners() | quarantined(parts))
    await _strike_removed(parts, pods, containers)
    strays = [
        found
        for found in await parts.ledger.kinds[kinds.CHECKPOINT].scan()
        if parts.ledger.find(found.kind, found.key) is None and not containers.is_busy(found.owner)
    ]
    if strays:
        intents = [Intent(owner=found.owner, kind=found.kind, key=found.key) for found in strays]
        await parts.ledger.release(*await parts.ledger.enter(*intents), within=TEARDOWN_TIMEOUT_S)


async def _strike_removed(parts: Parts, pods: Pods, containers: Containers) -> None:
    """Cross out what a removal that was cut short has taken from a pod or container that had ended.

    The record stays, and with it whoever asked for the removal can ask again.
    """
    ended = {pod.id for pod in pods.list() if pod.state is PodState.NOTREADY}
    ended |= {one.id for one in containers.list() if known_state(one.status.get()) in ENDED}
    entries = [entry for owner in ended for entry in parts.ledger.entries(owner) if not entry.is_debt]

    async def is_gone(entry: Entry) -> bool:
        kind = parts.ledger.kinds.get(entry.kind)
        if kind is None:
            return False
        return await settle(kind.exists(entry), within=POD_TIMEOUT_S, name=f"recover/exists/{kind.name}") is False

    gone = await wait_all([is_gone(entry) for entry in entries])
    taken = [entry for entry, is_it in zip(entries, gone, strict=True) if is_it]
    if taken:
        log.warning("%d resources were gone already: a removal was cut short", len(taken))
        await parts.ledger.release(*taken, within=TEARDOWN_TIMEOUT_S)


async def _leave_lost_network(pods: Pods, pod: Pod) -> None:
    within = 3 * TEARDOWN_TIMEOUT_S
    left = await settle(pods.leave_lost_network(pod), within=within, name=f"pod/{pod.id}/leave lost network")
    if isinstance(left, BaseException):
        log.error("pod %s: its lost network is not given back: %s", pod.id[:13], left, exc_info=left)


async def _forget(containers: Containers, container: Container) -> None:
    log.warning("container %s: its pod is gone, it is removed", container.id[:13])
    try:
        await containers.remove(None, container.id)
    except errors.AtollError as error:
        log.error("container %s: not removed: %s", container.id[:13], error)


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
        pod.reason = pod.damage or str(error)
        log.warning("pod %s recovered as %s: %s", pod.id[:13], pod.state, pod.reason)
        return True  # no other answer for as long as this daemon lives
    is_settled = False
    try:
        async with asyncio.timeout(POD_TIMEOUT_S):
            await _ask(controller, pod)
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
    )


async def _ask(controller: Controller, pod: Pod) -> None:
    try:
        status = await controller.recover(pod.sandbox)
    except errors.NotFound as error:
        # Provably absent: a reboot, or a run that a crash cut short. Stop and remove take the rest away.
        pod.state = PodState.NOTREADY
        pod.reason = str(error)
        pod.ended.set(ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=datetime.now(UTC)))
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
        exited_at = status.exited_at or datetime.now(UTC)
        pod.ended.set(ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=exited_at))
    if status.address and status.state is PodState.READY:
        await lines.shim_of(pod)


async def _recover_container(parts: Parts, containers: Containers, pod: Pod, container: Container) -> None:
    """Settle what the checkpoint says by what the shim, or what it left on disk, says."""
    before = container.status.get()
    if before.state is State.EXITED:
        return
    try:
        shim = await lines.shim_of(pod)
        task = await shim.tasks.state(container.id)
    except (errors.NotFound, errors.Unavailable):
        await _settle_without_task(parts, containers, pod, container, before)
        return
    if task.status in (TaskStatus.RUNNING, TaskStatus.PAUSED, TaskStatus.PAUSING):
        at = before.started_at or time.time_ns()
        await container.status.update_sync(
            lambda status: _answered(status).started(pid=task.pid, at=status.started_at or at)
        )
        containers.watch(pod, container)
    elif task.status is TaskStatus.STOPPED:
        if containers.is_watched(container.id):
            return
        await containers.settle_exit(
            pod,
            container,
            ExitStatus(exit_status=task.exit_status, exited_at=task.exited_at or datetime.now(UTC)),
        )
    elif known_state(before) is State.CREATED:
        # A start that a crash cut short: the task exists, its command never ran.
        with contextlib.suppress(errors.NotFound):
            await shim.tasks.kill(container.id, signal.SIGKILL, all_processes=True)
        await containers.delete_task(pod, container)
        await container.status.update(_answered)
    else:
        await container.status.update(lambda status: unknown_status(status, f"its task is {task.status.name}"))


async def _settle_without_task(
    parts: Parts, containers: Containers, pod: Pod, container: Container, before: Status
) -> None:
    """What no shim has: not started yet, or ended and deleted, or run by a shim that is gone."""
    if known_state(before) is not State.CREATED:
        containers.watch(pod, container)
        return
    await container.status.update(_answered)
    if pod.state is PodState.READY:
        await containers.remake_bundle(container)


def _answered(status: Status) -> Status:
    """Without the mark that nobody could be asked; any other UNKNOWN, such as a lost checkpoint's, stays."""
    if status.unknown and status.created_at:
        return replace(status, unknown=False, reason="", message="")
    return status
