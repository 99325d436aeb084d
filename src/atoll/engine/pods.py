"""The use cases of a pod: run, stop, remove, and what is known of one.

run     record and ledger entries in one commit; the netns; then CNI ADD beside the shim; one commit
stop    containers by SIGKILL, the sandbox, the network
remove  stop; then the ledger walk of every container and of the pod; the record goes last
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.api.codec import to_message
from atoll.api.nri_v1alpha1_pb2 import STOP_POD_SANDBOX
from atoll.concurrency import SingleFlight, run_to_completion, wait_all
from atoll.config import RuntimeHandler
from atoll.database import Plan
from atoll.engine import ends, hung, kinds, lines, own_mounts, pod_options, pod_record, specs
from atoll.engine.containers import Containers
from atoll.engine.drivers import is_foreign
from atoll.engine.events import Event, EventType
from atoll.engine.hosts import REMOTE
from atoll.engine.lease_store import Lease, asked_lease
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE
from atoll.engine.phases import TOLD, Story, operation
from atoll.engine.pod import Pod
from atoll.engine.request import attach_request, pod_name, require_log_directory
from atoll.ledger.kind import Entry
from atoll.linux import netns
from atoll.sandbox import annotations
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    CleanupFailed,
    Controller,
    CreateOptions,
    ExitStatus,
    Runtime,
    Sandbox,
    State,
    TypedAny,
)

log = logging.getLogger(__name__)

TEARDOWN_TIMEOUT_S = 60.0
CONFIG_TYPE = "runtime.v1.PodSandboxConfig"
MADE = "io.atoll.sandbox.made"
"""The extension of a record whose pod was READY once; without it nobody was ever told of the pod."""
FIRST_ASK_AGAIN_S, LAST_ASK_AGAIN_S = 0.1, 10.0
"""Pauses between questions to a shim that does not answer."""
DRAIN_TIMEOUT_S = 15.0
"""How long the end of a pod waits for creations and starts under way; then its shim is ended under them."""
SETTLE_TIMEOUT_S = 5.0
"""How long a stop waits for the word of the end that it has brought about."""
MAX_LEAVING = 16
"""Pods whose network may be given back behind the answer to stop."""


class Pods:
    """Every pod of the daemon, by ID."""

    def __init__(self, parts: Parts, containers: Containers) -> None:
        self._parts = parts
        self._containers = containers
        self._pods: dict[str, Pod] = {}
        self._making: dict[str, Pod] = {}
        self._runs: SingleFlight[str, Pod] = SingleFlight(parts.owner)
        self._ends: SingleFlight[tuple[str, str], None] = SingleFlight(parts.owner)
        self._watched: set[str] = set()
        self._leaving = asyncio.Semaphore(MAX_LEAVING)
        self._left: dict[str, asyncio.Task[None]] = {}

    # --- questions, answered from memory ---

    def get(self, pod_id: str) -> Pod:
        """The pod with this ID or unique prefix; raises `NotFound`, or `InvalidArgument` for an ambiguous one."""
        if not pod_id:
            raise errors.InvalidArgument("pod id: is empty")
        pod = self._pods.get(pod_id)
        if pod is not None:
            return pod
        found = [one for key, one in self._pods.items() if key.startswith(pod_id)]
        if len(found) > 1:
            raise errors.InvalidArgument(f"pod id {pod_id!r}: {len(found)} pods have this prefix; give more of it")
        if not found:
            raise errors.NotFound(f"pod {pod_id!r}: there is no such pod")
        return found[0]

    def find(self, pod_id: str) -> Pod | None:
        """The pod with exactly this ID."""
        return self._pods.get(pod_id)

    def list(self) -> tuple[Pod, ...]:
        return tuple(self._pods.values())

    def making(self) -> int:
        """How many pods are being made."""
        return len(self._making)

    def adopt(self, pod: Pod) -> None:
        """Take in a pod that recovery has rebuilt from its record."""
        self._pods[pod.id] = pod

    def watch(self, pod: Pod) -> None:
        """See to the end of a pod's sandbox, where it has a controller that can tell; one watch a pod."""
        if pod.id not in self._watched and pod.handler_name in self._parts.controllers:
            self._watched.add(pod.id)
            self._parts.owner.spawn(self._await_end(pod), name=f"pod/{pod.id}/wait")

    def unfinished(self) -> tuple[str, ...]:
        """The IDs of records that were never READY and that nobody is making: a crash cut their runs short."""
        return tuple(sandbox.id for sandbox in self._parts.sandboxes.pods() if self._is_unfinished(sandbox))

    def _is_unfinished(self, sandbox: Sandbox) -> bool:
        return MADE not in sandbox.extensions and sandbox.id not in self._making and sandbox.id not in self._pods

    def owners(self) -> frozenset[str]:
        """Whose ledger entries are in order: pods, also those being made, and their networks."""
        pods = {**self._making, **self._pods}
        networks = {kinds.NETWORK_OWNER + pod.id for pod in pods.values() if pod.netns_path}
        return frozenset(pods) | networks

    def is_busy(self, owner: str) -> bool:
        """Whether an operation of the pod, or of the owner of its network, is under way."""
        pod_id = owner.removeprefix(kinds.NETWORK_OWNER)
        pod = self._pods.get(pod_id)
        return owner in self._left or pod_id in self._making or (pod is not None and pod.lock.locked())

    async def settle(self, within: float) -> None:
        """Wait until no network is being given back behind an answer, at most so many seconds."""
        if self._left:
            await asyncio.wait(set(self._left.values()), timeout=within)

    def controller(self, pod: Pod) -> Controller:
        """Who runs the pod's sandbox; raises `FailedPrecondition` where its handler is not configured any more."""
        controller = self._parts.controllers.get(pod.handler_name)
        if controller is None:
            raise errors.FailedPrecondition(
                f"pod {pod.id[:13]}: its runtime handler {pod.handler_name!r} is not configured any more; put it back"
            )
        return controller

    # --- run ---

    async def run(self, config: PodConfig, handler_name: str = "") -> Pod:
        """Run a pod; READY when it returns.

        A request for the same pod (name, namespace, uid, attempt) with the same config joins the one in
        flight, or gets the pod that is READY; with another it is refused. On an error everything is undone;
        what could not be undone is left as a pod in state UNKNOWN, which stop and remove take away, and is
        retried meanwhile.
        """
        name = pod_name(config)
        require_log_directory(config)
        asked_lease(config.annotations)
        chosen = handler_name or self._parts.config.default_runtime
        handler = self._parts.config.runtimes.get(chosen)
        if handler is None:
            known = ", ".join(sorted(self._parts.config.runtimes))
            raise errors.InvalidArgument(f"runtime handler {chosen!r}: is not configured; known are {known}")
        if problem := self._parts.problems.get(chosen):
            raise errors.FailedPrecondition(f"runtime handler {chosen!r}: {problem}")
        await self._parts.blocking.run(pod_options.require, self._parts, chosen, config)
        while (holder := self._parts.sandboxes.named(name)) is not None and holder in self.unfinished():
            await self._undo(name, holder)
        if holder is not None:
            pod = self._making.get(holder) or self._pods.get(holder)
            is_same = pod is not None and pod.config == config and pod.handler_name == chosen
            if pod is not None and is_same and pod.state is State.READY:
                return pod
            if not is_same or self._runs.running(name) is None:
                raise errors.AlreadyExists(f"pod {name}: is there as {holder[:13]}; stop and remove it first")
        asked = config, chosen
        if self._runs.asked(name, asked) != asked:
            raise errors.AlreadyExists(f"pod {name}: is being made with another configuration; remove it first")
        return await self._runs.run(
            name, lambda: self._run(name, config, chosen, handler), name=f"pod/{name}/run", asked=asked
        )

    async def _undo(self, name: str, pod_id: str) -> None:
        """Free a pod of this name whose run a crash cut short, so that nobody can ask for its end."""
        try:
            left = await self.release_recorded(pod_id)
        except errors.AtollError as error:
            left = [str(error)]
        if left:
            raise errors.Unavailable(
                f"pod {name}: an earlier run of it was cut short and is not undone yet, try again: {'; '.join(left)}"
            )

    @operation
    async def _run(self, name: str, config: PodConfig, handler_name: str, handler: RuntimeHandler) -> Pod:
        parts = self._parts
        pod_id = secrets.token_hex(32)
        story = parts.stories.begin(pod_id, "run")
        parts.stories.call(pod_id, config.metadata.name if config.metadata is not None else name)
        options = TypedAny(
            type_url=CONFIG_TYPE, value=to_message(config, cri.PodSandboxConfig()).SerializeToString(deterministic=True)
        )
        netns_path = "" if config.host_network else str(parts.network.netns_path(pod_id))
        sandbox = Sandbox(
            id=pod_id,
            sandboxer=handler.sandboxer,
            runtime=Runtime(name=handler.shim, options=parts.shim_options.get(handler_name)),
            labels={"name": name},
            extensions=pod_record.extensions(pod_id, name, config, handler_name, netns_path, None),
        )
        pod = Pod(
            sandbox=sandbox,
            config=config,
            name=name,
            handler_name=handler_name,
            handler=handler,
            netns_path=netns_path,
            bundle=parts.paths.shims / pod_id,
        )
        request = attach_request(pod_id, config, netns_path) if netns_path else None
        intents = kinds.pod_intents(
            pod_id,
            handler_name,
            request,
            own_cgroup=not config.cgroup_parent,
            has_pause=handler.sandboxer == "podsandbox",
            has_relay=is_foreign(handler.shim),
            has_volumes=own_mounts.POD_VOLUMES in config.annotations,
        )
        self._making[pod_id] = pod
        try:
            with story.step("record", "disk"):
                pod.sandbox = await parts.db.commit(
                    parts.sandboxes.plan_create(sandbox, name=name),
                    parts.ledger.plan_enter(*intents),
                )
            try:
                await self._bring_up(pod, options, story)
                async with parts.nri.changing():
                    await parts.nri.run_pod(pod)
                    pod.state = State.READY
                    self._pods[pod_id] = pod
            except BaseException as error:
                await self._take_down_failed(pod, story, error)
                raise
        finally:
            del self._making[pod_id]
        self._publish(EventType.CREATED, pod)
        self._publish(EventType.STARTED, pod)
        self.watch(pod)
        log.info("pod %s run: %s, %s, ip %s", pod_id[:13], name, handler_name, pod.ip or "none", extra=TOLD)
        return pod

    async def _bring_up(self, pod: Pod, options: TypedAny, story: Story) -> None:
        parts = self._parts
        with story.step("files"):
            await parts.blocking.run(pod_record.make_folder, parts.paths.pods / pod.id)
            if pod.handler.sandboxer == REMOTE:
                await parts.blocking.run(pod_record.make_files, parts.paths.pods / pod.id, pod.config)
        if not pod.netns_path:
            await self._start(pod, options, story)
        elif pod.config.annotations.get(annotations.NO_NETWORK) == "true" or parts.network.pool_stats.ready:
            await self._attach(pod, story)
            await self._start(pod, options, story)
        else:
            with story.step("netns"):
                await parts.network.isolate(attach_request(pod.id, pod.config, pod.netns_path))
            # A sysctl may name an interface, so CNI comes before the sandbox where there are any.
            if pod.config.linux is not None and pod.config.linux.sysctls:
                await self._attach(pod, story)
                await self._start(pod, options, story)
            else:
                await wait_all([self._attach(pod, story), self._start(pod, options, story)])
        with story.step("commit", "disk"):
            await self._commit(pod)

    async def _attach(self, pod: Pod, story: Story) -> None:
        """Join the networks, in a namespace of the pool's where one stands ready."""
        network = self._parts.network
        request = attach_request(pod.id, pod.config, pod.netns_path)
        with story.step("network", "CNI ADD") as phase:
            if pod.config.annotations.get(annotations.NO_NETWORK) == "true":
                phase.waits_on = "kernel"
                pod.attachment = await network.isolate(request)
                return
            pod.attachment = await network.attach(request)
            pod.netns_path = pod.attachment.netns_path
            slowest = max(pod.attachment.timings, key=lambda timing: timing.duration_s, default=None)
            if slowest is not None:
                phase.waits_on = f"CNI plugin {slowest.plugin} ({slowest.duration_s * 1000:.1f} ms)"
            elif pod.attachment.pooled:
                phase.waits_on = "network pool (hit)"

    async def _start(self, pod: Pod, options: TypedAny, story: Story) -> None:
        controller = self.controller(pod)
        with story.step("stdio"):
            await self._parts.drivers.of(pod).begin(pod)
        ours = {annotations.FILES: str(self._parts.paths.pods / pod.id)}
        if not pod.config.cgroup_parent:  # one that the caller named may hold other pods too
            ours[annotations.CGROUP] = specs.pod_cgroup(self._parts, pod)
        create = CreateOptions(options=options, netns_path=pod.netns_path, annotations=ours)
        with story.step("create sandbox", f"sandboxer {pod.handler.sandboxer}"):
            await controller.create(pod.sandbox, create)
        with story.step("start sandbox", f"sandboxer {pod.handler.sandboxer}"):
            pod.instance = await controller.start(pod.id)
        with story.step("connect tasks", "shim"):
            await lines.connect(pod)

    async def _commit(self, pod: Pod) -> None:
        instance = pod.instance
        labels = {"name": pod.name, **(instance.labels if instance is not None else {})}
        record = replace(
            pod.sandbox,
            labels=labels,
            spec=instance.spec if instance is not None else None,
            extensions={
                **pod_record.extensions(pod.id, pod.name, pod.config, pod.handler_name, pod.netns_path, pod.attachment),
                MADE: TypedAny(type_url=MADE, value=b"{}"),
            },
        )
        parts = self._parts
        plans: list[Plan[Entry] | Plan[Lease]] = []
        if (asked := asked_lease(pod.config.annotations)) is not None:
            plans.append(parts.leases.plan_begin(pod.id, *asked))
        entry = parts.ledger.find(kinds.NETWORK, pod.id)
        if entry is not None and pod.attachment is not None:
            plans.append(parts.ledger.plan_update(entry, kinds.network_data(pod.attachment)))
        update = parts.sandboxes.plan_update(record, ("labels", "spec", "extensions"))
        pod.sandbox = await parts.db.commit(update, *plans)

    async def _take_down_failed(self, pod: Pod, story: Story, cause: BaseException) -> None:
        """Undo a run that failed; where that is not all done the pod stays, UNKNOWN, with its debts."""
        log.warning("pod %s run failed: %s", pod.id[:13], cause, extra=TOLD)
        left: list[str] | None = None
        try:
            with story.step("undo", "ledger"):
                async with hung.watched(self._parts, pod):
                    left = await run_to_completion(self._release(pod), within=2 * TEARDOWN_TIMEOUT_S)
        except errors.AtollError as error:
            left = [str(error)] if left is None else left
        if left:
            pod.state = State.UNKNOWN
            pod.reason = "; ".join(left)
            self._pods[pod.id] = pod
        if isinstance(cause, CleanupFailed):
            cause = cause.cause  # what its sandboxer could not undo the walk has tried again
        if left and isinstance(cause, errors.AtollError):
            raise CleanupFailed(cause, tuple(left)) from cause
        raise cause

    async def _release(self, pod: Pod) -> list[str]:
        """Walk the pod's ledger in reverse; the record goes where nothing is left. What is left, in words."""
        await self._hang_up(pod)
        self._parts.stories.end(pod.id)
        return await self.release_recorded(pod.id)

    async def release_recorded(self, pod_id: str) -> list[str]:
        """Free everything of a pod that was never READY, its record included; what could not be freed, in words."""
        ledger = self._parts.ledger
        debts = await ledger.release_all(pod_id, within=TEARDOWN_TIMEOUT_S)
        debts += await ledger.release_all(kinds.NETWORK_OWNER + pod_id, within=TEARDOWN_TIMEOUT_S)
        if debts:
            return [str(debt) for debt in debts]
        try:
            await self._parts.sandboxes.delete(pod_id)
        except errors.NotFound:
            log.debug("pod %s: its record is gone already", pod_id[:13])
        return []

    # --- the end of a sandbox ---

    async def _await_end(self, pod: Pod) -> None:
        try:
            end = await self._end_of(pod)
        finally:
            self._watched.discard(pod.id)
        if pod.ended.set(end):
            log.info("pod %s ended: exit status %d", pod.id[:13], end.exit_status)
            pod.state = State.NOTREADY
            self._publish(EventType.STOPPED, pod)
            await self._containers.end_orphans(pod)

    async def _end_of(self, pod: Pod) -> ExitStatus:
        """Asked until there is an answer: a shim that cannot be asked now may well live."""
        pause = FIRST_ASK_AGAIN_S
        while True:
            try:
                return await self.controller(pod).wait(pod.id)
            except errors.NotFound as error:
                if not pod.is_unasked:
                    return _end(UNKNOWN_EXIT_STATUS)
                log.info("pod %s: is watched when its sandboxer has been asked: %s", pod.id[:13], error)
            except errors.AtollError as error:
                log.warning("pod %s: cannot be watched now: %s", pod.id[:13], error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_ASK_AGAIN_S)

    def settle_end(self, pod: Pod, end: ExitStatus) -> None:
        """Take in that a pod ended while no daemon ran; that is told, unless an earlier daemon has."""
        told = ends.noted(pod.sandbox)
        if pod.ended.set(told or end) and told is None:
            self._publish(EventType.STOPPED, pod, late=True)

    def _publish(self, kind: EventType, pod: Pod, *, late: bool = False) -> None:
        self._parts.events.publish(Event(type=kind, pod_id=pod.id, container_id=pod.id, at_ns=time.time_ns()))
        topics, ended = self._parts.topics, pod.ended.value
        if kind is EventType.CREATED:
            topics.created(NAMESPACE, pod.id)
        elif kind is EventType.STARTED:
            topics.started(NAMESPACE, pod.id)
        elif kind is EventType.STOPPED and ended is not None:
            topics.exited(NAMESPACE, pod.id, ended, late=late)
            ends.note(self._parts, pod.sandbox, ended)

    # --- stop and remove ---

    async def stop(self, pod_id: str) -> None:
        """End the pod's containers and its sandbox, and give its network back. Idempotent; unknown is done."""
        try:
            pod = self.get(pod_id)
        except errors.NotFound:
            return
        await self._ends.run(("stop", pod.id), lambda: self._stop(pod), name=f"pod/{pod.id}/stop")

    @operation
    async def _stop(self, pod: Pod) -> None:
        holder = self._parts.stories.under_way(pod.id)
        story = self._parts.stories.begin(pod.id, "stop")
        async with story.holding(pod.lock, holder), _closing(pod), hung.watched(self._parts, pod):
            await self._stop_locked(pod, story)

    async def _stop_locked(self, pod: Pod, story: Story) -> None:
        with story.step("drain", "OCI runtime"):
            if not await pod.drained(DRAIN_TIMEOUT_S):
                log.warning("pod %s: a creation or a start hangs, it is stopped all the same", pod.id[:13])
        with story.step("containers", "OCI runtime"):
            await self._containers.kill_all(pod)
        if pod.state is not State.NOTREADY:
            with story.step("stop sandbox", f"sandboxer {pod.handler.sandboxer}"):
                end = await self._stop_sandbox(pod)
            is_news = pod.ended.set(end)
            pod.state = State.NOTREADY
            if is_news:
                self._publish(EventType.STOPPED, pod)
        if self._parts.nri.wants(STOP_POD_SANDBOX):
            await self._containers.settled(pod)
            await self._parts.nri.stop_pod(pod)
        if pod.netns_path:
            with story.step("network", "CNI DEL"):
                await self._leave_network(pod)
            pod.netns_path = ""

    async def _stop_sandbox(self, pod: Pod) -> ExitStatus:
        """How it ended. Where the runtime handler left the configuration the sandbox is left to the ledger.

        One that is elsewhere may live on: an error, until its sandboxer is back or it is given up.
        """
        try:
            controller = self.controller(pod)
            await controller.stop(pod.id)
        except (errors.FailedPrecondition, errors.Unavailable, errors.DeadlineExceeded) as error:
            ledger = self._parts.ledger
            if await kinds.is_elsewhere(ledger, pod.id):
                if ledger.find(kinds.SANDBOX, pod.id) is None:  # given up
                    return _end(UNKNOWN_EXIT_STATUS)
                raise type(error)(
                    f"pod {pod.id[:13]}: its sandboxer {pod.handler_name!r} must stop it, and cannot be asked: "
                    f"{error}; bring that back, or give the sandbox up with `atoll fsck --abandon {pod.id}`"
                ) from error
            if not isinstance(error, errors.FailedPrecondition):
                raise
            log.warning("%s; its sandbox is left until then", error)
            pod.reason = str(error)
            return _end(UNKNOWN_EXIT_STATUS)
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                return await controller.wait(pod.id)
        except (TimeoutError, errors.AtollError) as error:
            log.info("pod %s: is stopped, its exit status is not known: %s", pod.id[:13], error)
            return _end(0)

    async def _leave_network(self, pod: Pod) -> None:
        """Give the network back: behind the answer where nobody can tell, else now.

        A host port must be free when stop returns, so pods with ports wait. Where the namespace alone holds
        the network it is dropped at once. The rest is the ledger's; at most `MAX_LEAVING` pods are behind.
        """
        owner = kinds.NETWORK_OWNER + pod.id
        attachment = pod.attachment
        if attachment is None or attachment.ports:
            await self._parts.ledger.release_all(owner, within=TEARDOWN_TIMEOUT_S)
            return
        await self._parts.network.drop(attachment)
        await self._leaving.acquire()
        self._left[owner] = self._parts.owner.spawn(self._leave(owner), name=f"pod/{pod.id}/leave network")

    async def leave_lost_network(self, pod: Pod) -> None:
        """Give back the network of a pod that has ended and whose namespace is gone: a stop or a reboot dropped it."""
        async with pod.lock:
            if pod.state is not State.NOTREADY or not pod.netns_path:
                return
            if await self._parts.blocking.run(netns.exists, Path(pod.netns_path)):
                return
            owner = kinds.NETWORK_OWNER + pod.id
            pod.netns_path = ""
            for debt in await self._parts.ledger.release_all(owner, within=TEARDOWN_TIMEOUT_S):
                log.error("pod %s: not freed yet, will be retried: %s", pod.id[:13], debt)

    async def _leave(self, owner: str) -> None:
        try:
            await self._parts.ledger.release_all(owner, within=TEARDOWN_TIMEOUT_S)
        finally:
            self._leaving.release()
            self._left.pop(owner, None)

    async def remove(self, pod_id: str) -> None:
        """Stop the pod and free everything of it. Idempotent; unknown is done.

        What cannot be freed now stays in the ledger as a debt that is retried; the pod is gone all the same.
        """
        try:
            pod = self.get(pod_id)
        except errors.NotFound:
            return
        await self._ends.run(("remove", pod.id), lambda: self._remove(pod), name=f"pod/{pod.id}/remove")

    @operation
    async def _remove(self, pod: Pod) -> None:
        holder = self._parts.stories.under_way(pod.id)
        story = self._parts.stories.begin(pod.id, "remove")
        async with story.holding(pod.lock, holder), _closing(pod), hung.watched(self._parts, pod):
            await self._stop_locked(pod, story)
            # What still hung when the sandbox was stopped ends with its shim.
            if not await pod.drained(DRAIN_TIMEOUT_S):
                raise errors.Unavailable(f"pod {pod.id[:13]}: a container is still being made or started; try again")
            async with contextlib.AsyncExitStack() as stack:
                with story.step("remove containers", "ledger"):
                    containers = await stack.enter_async_context(self._containers.removing_all(pod))
                await self._parts.nri.remove_pod(pod)
                with story.step("release", "ledger"):
                    await self._release_all(pod, containers)
            self._publish(EventType.DELETED, pod)  # while it can be asked what it was like
            self._pods.pop(pod.id, None)
            self._parts.stories.end(pod.id)
            log.info("pod %s removed: %s", pod.id[:13], pod.name, extra=TOLD)

    async def _release_all(self, pod: Pod, containers: list[str]) -> None:
        """One walk, and one commit with the end of the records: a crash finds either all of them or nothing."""
        await self._hang_up(pod)
        parts = self._parts
        gone = (parts.sandboxes.plan_delete(pod.id), *(parts.containers.plan_delete(one) for one in containers))
        for debt in await parts.ledger.release_all(pod.id, *containers, within=TEARDOWN_TIMEOUT_S, also=gone):
            log.error("pod %s: not freed yet, will be retried: %s", pod.id[:13], debt)

    async def aclose(self) -> None:
        """Let go of the connections; the pods live on."""
        for pod in self._pods.values():
            await self._hang_up(pod)

    async def _hang_up(self, pod: Pod) -> None:
        await lines.hang_up(pod)
        await self._parts.drivers.of(pod).let_go(pod)


@contextlib.asynccontextmanager
async def _closing(pod: Pod) -> AsyncGenerator[None]:
    """Refuse creations and starts; an end that fails gives a pod that is READY still back to its users."""
    pod.closing = True
    try:
        yield
    except BaseException:
        pod.closing = False
        raise


def _end(status: int) -> ExitStatus:
    return ExitStatus(exit_status=status, exited_at=datetime.now(UTC))
