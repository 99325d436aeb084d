"""The use cases of a container: create, start, stop, remove, and the watch over its end.

create  image, snapshot, spec, bundle; checkpoint, then record, snapshot and ledger in one commit
start   Task.Create and Task.Start in the pod's shim; a failed start is terminal: EXITED, code 128
exit    seen by Task.Wait, told by the checkpoint; then Task.Delete, the latch, the event
remove  the ledger walk in reverse: task, bundle, snapshot, folder; then record and checkpoint
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import Awaitable

from atoll import errors
from atoll.api import containerd_cgroups_v1_pb2 as cgroups_v1
from atoll.api import containerd_cgroups_v2_pb2 as cgroups_v2
from atoll.api.nri_v1alpha1_pb2 import CREATE_CONTAINER
from atoll.concurrency import SingleFlight, run_to_completion, wait_all
from atoll.container.config import ContainerConfig
from atoll.container.metadata import Metadata
from atoll.container.status import ContainerResources, State, Status, encode_status
from atoll.container.store import Container, ContainerRecord
from atoll.database import Plan
from atoll.engine import branch_base, container_limits, kinds, lines, scheduling, signals, specs, volumes
from atoll.engine.events import Event, EventType
from atoll.engine.exits import Exits
from atoll.engine.lines import tasks_of
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE
from atoll.engine.phases import Story, operation
from atoll.engine.pod import Pod
from atoll.engine.request import log_path
from atoll.engine.together import Together, removing
from atoll.image.model import Image
from atoll.oci import spec as oci
from atoll.oci.config import LinuxContainerResources, NamespaceMode
from atoll.runtime.bundle import Bundle
from atoll.sandbox.controller import UNKNOWN_EXIT_STATUS, ExitStatus, TypedAny
from atoll.snapshot.mount import with_users

log = logging.getLogger(__name__)

START_ERROR_CODE = 128
KILL_TIMEOUT_S = 30.0
TEARDOWN_TIMEOUT_S = 60.0
COMMIT_TIMEOUT_S = 10.0
ASK_AGAIN_S = 1.0
"""Pause between questions to a shim that lives and does not answer."""
UNSEEN = "Unknown"
"""The reason of an exit that nobody saw, as a restart settles it too."""
NO_CREATE = "no container can be made in it"
NO_START = "nothing can be started in it"


class Containers:
    """Every container of every pod."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._creates: SingleFlight[str, Container] = SingleFlight(parts.owner)
        self._starts: SingleFlight[str, None] = SingleFlight(parts.owner)
        self._ends: SingleFlight[tuple[str, str], None] = SingleFlight(parts.owner)
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._exits = Exits(parts.owner)
        self._busy: set[str] = set()

    def get(self, container_id: str) -> Container:
        """By ID or unique prefix; raises `NotFound` or `InvalidArgument`."""
        return self._parts.containers.get(container_id)

    def list(self, pod_id: str | None = None) -> tuple[Container, ...]:
        return self._parts.containers.list(pod_id)

    def is_busy(self, container_id: str) -> bool:
        """Whether the container is being made or removed."""
        return container_id in self._busy

    def owners(self) -> frozenset[str]:
        """Whose ledger entries are in order: containers, also those being made."""
        return frozenset(container.id for container in self.list()) | self._busy

    # --- create ---

    async def create(self, pod: Pod, config: ContainerConfig) -> Container:
        """Make a container in a READY pod; CREATED when it returns.

        A request of the same name and attempt in the pod with the same config joins the one in flight, or gets
        the container that is CREATED; with another config it is refused. On an error everything is undone.
        """
        if config.metadata is None or not config.metadata.name:
            raise errors.InvalidArgument("container config: metadata.name is required")
        if not config.metadata.name.isprintable():
            raise errors.InvalidArgument(f"container config: metadata.name {config.metadata.name[:80]!r}: is no name")
        if config.image is None or not config.image.image:
            raise errors.InvalidArgument("container config: image.image is required")
        log_path(pod.config, config, "")
        signals.resolve(config.stop_signal, "")
        pod.require_open(NO_CREATE)
        name = f"{config.metadata.name}_{pod.name.rpartition('_')[0]}_{config.metadata.attempt}"
        holder = self._parts.containers.names.key(name)
        if holder is not None and self._creates.running(name) is None:
            held = self._parts.containers.get(holder)
            if held.metadata.config == config and held.status.get().state is State.CREATED:
                return held
            raise errors.AlreadyExists(f"container {name}: is there as {holder[:13]}; remove it first")
        if self._creates.asked(name, config) != config:
            raise errors.AlreadyExists(f"container {name}: is being made with another configuration; remove it first")
        return await self._creates.run(
            name,
            lambda: self._create(pod, name, config),
            name=f"pod/{pod.id}/create/{config.metadata.name}",
            asked=config,
        )

    async def _create(self, pod: Pod, name: str, config: ContainerConfig) -> Container:
        with pod.admitted(NO_CREATE):
            return await self._create_admitted(pod, name, config)

    @operation
    async def _create_admitted(self, pod: Pod, name: str, config: ContainerConfig) -> Container:
        parts = self._parts
        assert config.image is not None
        image = parts.images.get(config.image.image)
        container_id = secrets.token_hex(32)
        story = parts.stories.begin(pod.id, "create", container_id)
        with story.step("spec"):
            target = self._target(pod, config)
            spec = await parts.blocking.run(specs.build, parts, pod, container_id, config, image, target)
        metadata = Metadata(
            id=container_id,
            name=name,
            sandbox_id=pod.id,
            config=config,
            image_ref=image.id,
            # Without a folder of the pod's it lives and goes with the container's own.
            log_path=log_path(pod.config, config, str(parts.paths.containers / container_id / "log")),
            stop_signal=image.config.stop_signal,
        )
        async with parts.nri.changing():
            spec = await parts.nri.create(pod, container_id, config, spec, parts)
            try:
                container = await self._create_adjusted(pod, metadata, image, spec, story)
            except BaseException:
                await parts.nri.not_created(pod, container_id, config, spec)
                raise
        await parts.nri.created(pod, container)
        return container

    async def _create_adjusted(
        self, pod: Pod, metadata: Metadata, image: Image, spec: oci.Spec, story: Story
    ) -> Container:
        parts, config = self._parts, metadata.config
        assert config is not None
        assert config.image is not None
        now = time.time_ns()
        record = ContainerRecord(
            metadata=metadata,
            created_at=now,
            image=config.image.image,
            snapshot_key=metadata.id,
            spec=oci.encode(spec),
            labels=config.labels,
        )
        resources = ContainerResources(linux=config.resources) if config.linux is not None else None
        limits = spec.linux.resources if spec.linux is not None else None
        if limits is not None and parts.nri.wants(CREATE_CONTAINER):
            resources = ContainerResources(linux=container_limits.told(config.resources, limits))
        container = await self._record(pod, record, image, Status(created_at=now, resources=resources), story)
        self._publish(EventType.CREATED, container)
        return container

    def _target(self, pod: Pod, config: ContainerConfig) -> Container | None:
        """The container whose pid namespace is asked for; it must run in the same pod."""
        options = config.security.namespace_options
        if options is None or options.pid is not NamespaceMode.TARGET:
            return None
        target = self.get(options.target_id)
        if target.sandbox_id != pod.id or target.status.get().state is not State.RUNNING:
            raise errors.InvalidArgument(f"target_id {options.target_id!r}: no running container of this pod")
        return target

    async def _record(self, pod: Pod, record: ContainerRecord, image: Image, status: Status, story: Story) -> Container:
        """Snapshot folders, checkpoint and bundle first, then one commit that makes them the container's."""
        parts = self._parts
        config = record.metadata.config
        assert config is not None
        parent = branch_base.parent(parts, config, image)
        intents = kinds.container_intents(record.id, (volumes.key(record.id, number) for number in volumes.of(config)))
        container: Container | None = None
        self._busy.add(record.id)
        try:
            async with (
                parts.snapshotter.preparing(record.id, parent, users=pod.config.users) as prepared,
                volumes.preparing(parts, record.id, config) as views,
            ):
                with story.step("record", "disk"):
                    container = await parts.containers.prepare(record, status)
                    # An end of the pod that would not wait any longer has listed its containers.
                    pod.require_open(NO_CREATE)
                    # A commit goes on where its caller is cancelled, so what is to be undone is known behind it.
                    added = parts.db.commit(
                        parts.containers.plan_add(container),
                        *(Plan(one.record) for one in (prepared, *views)),
                        parts.ledger.plan_enter(*intents),
                    )
                    await run_to_completion(added, within=COMMIT_TIMEOUT_S)
            with story.step("bundle"):
                await parts.blocking.run(self._bundle(record.id).create, record.spec)
        except BaseException:
            if parts.containers.has(record.id):
                await self._release(record.id)
            elif container is not None:
                await parts.containers.abandon(container)
            raise
        finally:
            self._busy.discard(record.id)
        return container

    def _bundle(self, container_id: str) -> Bundle:
        return Bundle(id=container_id, namespace=NAMESPACE, path=self._parts.paths.bundles / container_id)

    async def remake_bundle(self, container: Container) -> None:
        """Make the bundle of a CREATED container whole: a crash may have left none, or half of one."""
        bundle = self._bundle(container.id)
        await self._parts.blocking.run(bundle.delete)
        await self._parts.blocking.run(bundle.create, container.record.spec)

    # --- start ---

    async def start(self, pod: Pod, container_id: str) -> None:
        """Run a CREATED container. A failure leaves it EXITED with code 128 and reason `StartError`."""
        container = self.get(container_id)
        pod.require_open(NO_START)
        await self._starts.run(
            container.id, lambda: self._start(pod, container), name=f"pod/{pod.id}/start/{container.id}"
        )

    async def _start(self, pod: Pod, container: Container) -> None:
        with pod.admitted(NO_START):
            await container.status.update(lambda status: status.begin_start())
            await self._start_admitted(pod, container)
            await self._parts.nri.started(pod, container)

    @operation
    async def _start_admitted(self, pod: Pod, container: Container) -> None:
        parts = self._parts
        story = parts.stories.begin(pod.id, "start", container.id)
        parts.expedite()
        driver, bundle = parts.drivers.of(pod), self._bundle(container.id).path
        try:
            tasks = await tasks_of(pod)
            stdio = await driver.prepare(pod, container, bundle)
            await parts.at_rest.end(container.id, "it was started")
            mounts = with_users(await parts.snapshotter.mounts(container.record.snapshot_key), pod.config.users)
            with story.step("create task", "OCI runtime"):
                pid = await tasks.create(
                    container.id,
                    bundle=str(bundle),
                    rootfs=mounts,
                    stdio=stdio,
                    options=pod.sandbox.runtime.options,
                )
                await driver.created(container, bundle, pid)
            scheduling.apply(container.record.spec, pid)
            async with parts.nri.changing():
                await parts.nri.start_container(pod, container, pid)
                with story.step("start task", "OCI runtime"):
                    pid = await tasks.start(container.id) or pid
                with story.step("checkpoint", "disk"):
                    await container.status.update_sync(lambda status: status.started(pid=pid, at=time.time_ns()))
        except errors.AtollError as error:
            clear = specs.explained(container, oci.decode(container.record.spec).process, error)
            await run_to_completion(self._start_failed(pod, container, clear), within=TEARDOWN_TIMEOUT_S)
            raise clear from error
        except BaseException as error:
            await run_to_completion(self._start_failed(pod, container, error), within=TEARDOWN_TIMEOUT_S)
            raise
        self.watch(pod, container)
        self._publish(EventType.STARTED, container)

    async def _start_failed(self, pod: Pod, container: Container, error: BaseException) -> None:
        with contextlib.suppress(errors.AtollError):
            await (await tasks_of(pod)).kill(container.id, signal.SIGKILL, all_processes=True)
        await self.delete_task(pod, container)
        message = str(error) or type(error).__name__

        def failed(status: Status) -> Status:
            return status.exited(code=START_ERROR_CODE, at=time.time_ns(), reason="StartError", message=message)

        try:
            await container.status.update_sync(failed)
        except errors.AtollError as unwritten:
            # The shim knows of no such task, so the next daemon finds a container that was never started.
            log.error("container %s: its failed start is not on disk: %s", container.id[:13], unwritten)
            await container.status.update(failed)

    # --- the end of a container ---

    def watch(self, pod: Pod, container: Container) -> None:
        """See to the container's exit; one watch a container."""
        if container.id not in self._watches:
            self._watches[container.id] = self._parts.owner.spawn(
                self._await_exit(pod, container), name=f"pod/{pod.id}/wait/{container.id}"
            )

    def is_watched(self, container_id: str) -> bool:
        """Whether the container's exit is being waited for."""
        return container_id in self._watches

    async def _await_exit(self, pod: Pod, container: Container) -> None:
        try:
            end = await self._exit_of(pod, container)
            await self.settle_exit(pod, container, end)
        finally:
            del self._watches[container.id]

    async def _exit_of(self, pod: Pod, container: Container) -> ExitStatus:
        bundle = self._bundle(container.id).path
        while True:
            try:
                return await (await tasks_of(pod)).wait(container.id)
            except errors.NotFound:
                return await self._parts.orphans.ended(bundle)
            except errors.Unavailable as error:
                if await lines.is_gone(pod):
                    log.info("container %s: is watched without its shim: %s", container.id[:13], error)
                    if pod.ended.is_set:  # its end may have come while the dying shim could still be connected to
                        await self.end_orphans(pod)
                    end = await self._parts.orphans.ended(bundle)
                    if end.exit_status != UNKNOWN_EXIT_STATUS or await lines.is_gone(pod):
                        return end
                    continue  # a shim that was late to answer a new daemon knows better
            except errors.AtollError as error:
                log.warning("container %s: cannot be watched now: %s", container.id[:13], error)
            await asyncio.sleep(ASK_AGAIN_S)

    async def settle_running(self, pod: Pod, container: Container, pid: int, at: int) -> None:
        """Take a container for running, as its shim says, and see to its exit; its checkpoint follows as it can.

        `at` is when it was started where its checkpoint does not tell.
        """
        before = container.status.get()
        after = await container.status.update(
            lambda status: (
                status if status.finished_at else status.answered().started(pid=pid, at=status.started_at or at)
            )
        )
        if encode_status(after) != encode_status(before):
            self._exits.owe(container)
        self.watch(pod, container)

    async def settle_exit(self, pod: Pod, container: Container, end: ExitStatus) -> None:
        """The checkpoint first, clean-up after: a task that cannot be deleted never hides an exit."""
        await self._parts.drivers.of(pod).drain(pod, container)
        reason = "" if end.is_seen else UNSEEN
        if end.exit_status != 0 and await self._was_oom_killed(pod, container):
            reason = "OOMKilled"  # also where only a child was killed, and what waited for it gave up
        at = int(end.exited_at.timestamp() * 1e9)
        is_written = await self._exits.tell(
            container,
            lambda status: status.exited(code=end.exit_status, at=at, reason=reason),
            lambda: self.delete_task(pod, container),
        )
        self._publish(EventType.STOPPED, container)
        if is_written:
            await self.delete_task(pod, container)
        await self._parts.nri.stopped(pod, container)

    async def delete_task(self, pod: Pod, container: Container) -> None:
        """Have the shim forget a container; what it does not do is left to the ledger. Idempotent."""
        is_done = False
        try:
            await (await tasks_of(pod)).delete(container.id)
            is_done = True
        except errors.NotFound:
            is_done = True
        except errors.AtollError as error:
            log.warning("container %s: its task is not deleted yet: %s", container.id[:13], error)
        bundle = self._bundle(container.id).path
        await self._parts.drivers.of(pod).deleted(pod, container, bundle, by_shim=is_done)

    async def _was_oom_killed(self, pod: Pod, container: Container) -> bool:
        """As our shim recorded it; another's is asked for all its metrics."""
        try:
            recorded = await self._parts.orphans.was_oom_killed(self._bundle(container.id).path)
            if recorded is not None:
                return recorded
            metrics = await (await tasks_of(pod)).stats(container.id)
        except errors.AtollError:
            return False
        return _oom_kills(metrics) > 0

    def _publish(self, kind: EventType, container: Container) -> None:
        event = Event(type=kind, pod_id=container.sandbox_id, container_id=container.id, at_ns=time.time_ns())
        self._parts.events.publish(event)

    # --- stop ---

    @operation
    async def stop(self, pod: Pod | None, container_id: str, timeout_s: float) -> None:
        """Send the stop signal, wait `timeout_s`, then SIGKILL. Idempotent; unknown or not running is done.

        One whose pod is gone, None, is killed at once.

        A caller that goes away while the container still has time stops the escalation, not the signal.
        """
        try:
            container = self.get(container_id)
        except errors.NotFound:
            return
        if not container.status.get().can_stop:
            return
        if pod is None:
            await self._end_without_pod(container)
            return
        story = self._parts.stories.begin(pod.id, "stop", container.id)
        if timeout_s > 0:
            with story.step("stop signal", "the container"):
                if await self._stopped_politely(pod, container, timeout_s):
                    return
        with story.step("kill", "the kernel"):
            await self._kill(pod, container)

    async def _stopped_politely(self, pod: Pod, container: Container, timeout_s: float) -> bool:
        if not container.stop_signalled:
            container.stop_signalled = True
            config = container.metadata.config
            number = signals.resolve(config.stop_signal if config is not None else 0, container.metadata.stop_signal)
            try:
                await (await tasks_of(pod)).kill(container.id, number)
            except errors.NotFound:
                log.debug("container %s: ended before its stop signal", container.id[:13])
            except errors.Unavailable as error:
                log.warning("container %s: signalled without its shim: %s", container.id[:13], error)
                await self._parts.orphans.signal(self._bundle(container.id).path, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(container.stopped.wait(), timeout_s)
        return container.stopped.is_set

    async def _kill(self, pod: Pod, container: Container) -> None:
        try:
            await (await tasks_of(pod)).kill(container.id, signal.SIGKILL, all_processes=True)
        except errors.NotFound:
            log.debug("container %s: ended before SIGKILL", container.id[:13])
        except errors.Unavailable as error:
            log.warning("container %s: killed by its cgroup: %s", container.id[:13], error)
            await self._parts.orphans.kill(self._bundle(container.id).path)
        self.watch(pod, container)  # one recovered as unknown has none yet
        try:
            await asyncio.wait_for(container.stopped.wait(), KILL_TIMEOUT_S)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"container {container.id[:13]}: its processes did not end within {KILL_TIMEOUT_S:g} s of SIGKILL"
            ) from None

    async def kill_all(self, pod: Pod) -> None:
        """SIGKILL every running container of the pod and wait for their ends."""
        running = [one for one in self.list(pod.id) if one.status.get().can_stop]
        await wait_all([self._kill(pod, container) for container in running])

    async def end_orphans(self, pod: Pod) -> None:
        """SIGKILL what is left of a pod whose shim is gone: nobody reads its output any more, nor can it be joined."""
        if await lines.is_gone(pod):
            await self._parts.orphans.end_helpers()
            for container in self.list(pod.id):
                if container.status.get().can_stop:
                    log.warning("container %s: killed, for its shim is gone", container.id[:13])
                    await self._parts.orphans.kill(self._bundle(container.id).path)

    # --- while it runs ---

    async def update(self, pod: Pod, container: Container, asked: LinuxContainerResources) -> None:
        """Change the limits that are set in `asked`; as `container_limits.update`."""
        await container_limits.update(self._parts, pod, container, asked)

    async def reopen_log(self, pod: Pod, container: Container) -> None:
        """Go on in a new file at the log's path, after a rotation; raises `FailedPrecondition` unless it runs."""
        if container.status.get().state is not State.RUNNING:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: is not running, it writes no log")
        await self._parts.drivers.of(pod).reopen_log(pod, container)

    # --- remove ---

    async def remove(self, pod: Pod | None, container_id: str) -> None:
        """Remove a container, killing it where it runs. Idempotent; unknown is done."""
        try:
            container = self.get(container_id)
        except errors.NotFound:
            return
        await self._ends.run(
            ("remove", container.id), lambda: self._remove(pod, container), name=f"container/{container.id}/remove"
        )

    async def _remove(self, pod: Pod | None, container: Container, together: Together | None = None) -> None:
        self._busy.add(container.id)
        try:
            await self._remove_busy(pod, container, together)
        finally:
            self._busy.discard(container.id)

    @operation
    async def _remove_busy(self, pod: Pod | None, container: Container, together: Together | None) -> None:
        await self.ended(pod, container)
        if container.status.get().state is State.RUNNING:  # a start that was under way has ended meanwhile
            await self.ended(pod, container)
        await container.status.update(lambda status: status.begin_removal())
        try:
            await self._parts.nri.remove(pod, container)
            await self._parts.at_rest.end(container.id, "it was removed")
            if together is not None:
                await together.await_walk(container.id)
            else:
                story = self._parts.stories.begin(container.sandbox_id, "remove", container.id)
                with story.step("release", "ledger"):
                    await self._release(container.id)
        except BaseException:
            await container.status.update(lambda status: status.kept())
            raise
        await container.status.forget()
        self._publish(EventType.DELETED, container)

    async def ended(self, pod: Pod | None, container: Container) -> None:
        """Kill a container that may run, and wait until what follows its exit is done."""
        if container.status.get().can_stop:
            await (self._kill(pod, container) if pod is not None else self._end_without_pod(container))
        if (watch := self._watches.get(container.id)) is not None:
            # The exit is known; its task is being deleted, which the walk must not do at the same time.
            await asyncio.wait({watch}, timeout=KILL_TIMEOUT_S)
        await self._exits.give_up(container.id)

    async def _end_without_pod(self, container: Container) -> None:
        """End a container whose pod is gone, by what its shim has left; its exit is the recorded one, or unknown."""
        bundle = self._bundle(container.id).path
        await self._parts.orphans.kill(bundle)
        try:
            end = await asyncio.wait_for(self._parts.orphans.ended(bundle), KILL_TIMEOUT_S)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"container {container.id[:13]}: its init did not end within {KILL_TIMEOUT_S:g} s of SIGKILL"
            ) from None
        at = int(end.exited_at.timestamp() * 1e9)
        await container.status.update_sync(lambda status: status.exited(code=end.exit_status, at=at))

    async def settled(self, pod: Pod) -> None:
        """Wait until the exits of the pod's containers that have ended are settled, what follows them too."""
        watches = {self._watches[one.id] for one in self.list(pod.id) if one.stopped.is_set and one.id in self._watches}
        if watches:
            await asyncio.wait(watches, timeout=KILL_TIMEOUT_S)

    def removing_all(self, pod: Pod) -> contextlib.AbstractAsyncContextManager[list[str]]:
        """Every container of a stopped pod, ready to go: inside, its caller makes the walk and the commit for all.

        Gives the owners that this walk is for. An error in there, or of a container that cannot go, keeps all of them.
        """
        containers = {one.id: one for one in self.list(pod.id)}

        def remove(key: str, together: Together) -> Awaitable[None]:
            name = f"container/{key}/remove"
            return self._ends.run(("remove", key), lambda: self._remove(pod, containers[key], together), name=name)

        return removing(self._parts.owner, list(containers), remove)

    async def _release(self, container_id: str) -> None:
        """The walk and the end of the record are one commit: a crash finds either the container or nothing."""
        record = self._parts.containers.plan_delete(container_id)
        debts = await self._parts.ledger.release_all(container_id, within=TEARDOWN_TIMEOUT_S, also=(record,))
        for debt in debts:
            log.error("container %s: not freed yet, will be retried: %s", container_id[:13], debt)


def _oom_kills(metrics: TypedAny) -> int:
    if metrics.type_url.endswith("cgroups.v2.Metrics"):
        return cgroups_v2.Metrics.FromString(metrics.value).memory_events.oom_kill
    return cgroups_v1.Metrics.FromString(metrics.value).memory_oom_control.oom_kill
