"""The `podsandbox` sandboxer: the sandbox is a pause container, run through the Task service of any shim.

Start acquires, in this order: pod files, root filesystem, bundle, shim, task. What it leaves is freed in reverse, the
same way after a failed start, by `shutdown`, and for a pod whose daemon died. The pod's containers are more tasks of
the same shim, and are run, paused and stopped by whoever made them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from atoll import errors, faults
from atoll.concurrency import Blocking
from atoll.identifiers import is_identifier, require_identifier
from atoll.linux import nsfs, process
from atoll.linux.cgroup import Limits
from atoll.linux.userns import are_same, maps_of
from atoll.nri.legacy import LegacyPlugins, SandboxTask
from atoll.runtime.bundle import Bundle, remove_mounted_tree
from atoll.runtime.link import Link
from atoll.runtime.shim import Launcher
from atoll.runtime.task import StdioPaths, TaskState, TaskStatus
from atoll.sandbox.controller import (
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Runtime,
    Sandbox,
    State,
    TypedAny,
)
from atoll.sandbox.wire import from_any
from atoll.sandboxers import pause
from atoll.sandboxers import update as updates
from atoll.sandboxers.held import HeldController, Undoing, unknown_exit
from atoll.sandboxers.pause import PauseRecord, RootProvider, SpecFacts
from atoll.sandboxers.pause_held import RECORD, PauseHeld, disk_told, read_record
from atoll.shim import metrics, pod_files, records
from atoll.shim.pod_cgroup import PodCgroup
from atoll.shim.records import SandboxExit

log = logging.getLogger(__name__)

KILL_TIMEOUT_S = 30.0
RUNNING = (TaskStatus.RUNNING, TaskStatus.PAUSED, TaskStatus.PAUSING)
EPOCH = datetime.fromtimestamp(0, UTC)


class PodSandboxController(HeldController[PauseHeld]):
    """Pods held by pause containers.

    `folder` holds a folder for each pod. After a failed start the ID is unknown, unless `CleanupFailed` says that
    `shutdown` has something left to do.

    A pod is paused by our own shim, which knows its containers, and under another's by the cgroups below the pod's.
    There a container that is made in a paused pod runs: whoever makes containers asks for the status first.
    """

    def __init__(
        self,
        *,
        launcher: Launcher,
        roots: RootProvider,
        folder: Path,
        facts: SpecFacts,
        blocking: Blocking,
        plugins: LegacyPlugins | None = None,
    ) -> None:
        super().__init__(launcher=launcher, namespace=facts.namespace, blocking=blocking)
        self._roots = roots
        self._folder = folder
        self._facts = facts
        self._plugins = plugins

    def _hold(self, sandbox: Sandbox, record: PauseRecord) -> PauseHeld:
        folder = self._folder / require_identifier(sandbox.id, "sandbox id")
        # Go shims look for their state in a folder of the container's ID beside the one they were started in.
        bundle = Bundle(id=sandbox.id, namespace=self._namespace, path=folder / sandbox.id)
        request = self._request(sandbox, bundle)
        return PauseHeld(
            sandbox=sandbox, folder=folder, request=request, link=Link(self._launcher, request), record=record
        )

    # create and start

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        if sandbox.id in self._held:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is created already")
        require_identifier(sandbox.id, "sandbox id")
        record = pause.record_of(sandbox, options, self._folder / sandbox.id / "files")
        if record.netns:
            nsfs.require_network(record.netns)
        held = self._held[sandbox.id] = self._hold(sandbox, record)
        async with held.turn:
            try:
                held.folder.mkdir(mode=0o700, parents=True)
            except FileExistsError:
                del self._held[sandbox.id]
                raise errors.AlreadyExists(
                    f"sandbox {sandbox.id}: {held.folder} is there; shut the sandbox down first"
                ) from None
            except OSError as error:
                del self._held[sandbox.id]
                raise errors.Unavailable(f"sandbox {sandbox.id}: {held.folder}: {error.strerror}") from error
            try:
                with disk_told(f"sandbox {sandbox.id}: create"), faults.step("podsandbox create/record"):
                    records.write(held.folder / RECORD, record)
            except BaseException as error:
                await self._undo(held, error)
                raise

    async def start(self, sandbox_id: str) -> ControllerInstance:
        held = self._get(sandbox_id)
        async with self._turn(held):
            self._require_fresh(held)
            try:
                with disk_told(f"sandbox {sandbox_id}: start"):
                    held.instance = await self._start(held)
            except BaseException as error:
                await self._undo(held, error)
                raise
            self._watch(held)
            return held.instance

    async def _start(self, held: PauseHeld) -> ControllerInstance:
        request, record = held.request, held.record
        run = self._blocking.run
        if record.netns:  # it may have gone, or become something else, since the creation
            nsfs.require_network(record.netns)
        with faults.step("podsandbox start/files"):
            await run(lambda: pod_files.create(Path(record.files), record.config, shm=record.has_ipc))
        with faults.step("podsandbox start/cgroup"):
            await run(self._make_cgroup, held)
        users = record.config.users
        if users is not None:
            await run(pause.let_in, held.folder, users.root[1])
        with faults.step("podsandbox start/root"):
            root = await self._roots.prepare(request.id, users)
        # It goes with the folder: the pause process holds the namespace from its creation on.
        userns = await run(pause.pin_owner, record.netns, held.folder / "userns") if users and record.netns else None
        spec = await run(pause.build, request.id, record, root, self._facts, userns)
        with faults.step("podsandbox start/shim"):
            await run(request.bundle.create, spec)
            shim = await self._launcher.launch(request)
        held.link = Link(self._launcher, request, shim)
        with faults.step("podsandbox start/create task"):
            pid = await shim.tasks.create(
                request.id,
                bundle=str(request.bundle.path),
                rootfs=root.mounts,
                stdio=StdioPaths(),
                options=held.sandbox.runtime.options,
            )
        if users is not None and not are_same(await run(maps_of, pid), users):
            raise errors.InvalidArgument(f"network namespace {record.netns}: its owner has other ids than the pod")
        identity = process.identify(pid)
        if self._plugins is not None:
            held.has_plugins = True
            await self._plugins.invoke("create", _task(held, pid, spec))
        with faults.step("podsandbox start/start task"):
            pid = await shim.tasks.start(request.id) or pid
        held.note(
            image=root.image_name,
            snapshotter=root.snapshotter,
            pid=pid,
            start_ticks=identity.start_ticks if identity is not None else 0,
            boot_id=process.boot_id(),
            created_at_ns=time.time_ns(),
        )
        return replace(held.told_by(shim.bootstrap), spec=TypedAny(type_url=updates.SPEC_URL, value=spec))

    def _make_cgroup(self, held: PauseHeld) -> None:
        """Make the pod's cgroup with its limits where it is not there, as a kubelet makes it; not one of systemd's."""
        record = held.record
        if not record.cgroup_parent:
            return
        cgroup = PodCgroup(record.cgroup_parent, exclusive=record.owns_cgroup)
        if not cgroup.is_slice and not cgroup.exists():
            held.note(made_cgroup=True)
            cgroup.create(record.config.linux)
        elif cgroup.is_made:  # by another pod, which may go before this one
            held.note(made_cgroup=True)

    # the end

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        """SIGKILL, whatever the timeout: a pause container has nothing to finish."""
        held = self._held.get(sandbox_id)
        if held is None:
            return
        async with held.turn:
            if held.exit.is_set or self._held.get(sandbox_id) is not held:
                return
            held.is_stopped = True
            with disk_told(f"sandbox {sandbox_id}: stop"):
                held.note(is_stopped=True)
            if not held.record.pid:
                self._settle(held, ExitStatus(exit_status=0, exited_at=datetime.now(UTC)))
                return
            with faults.step("podsandbox stop/kill"):
                await self._kill(held)
            self._watch(held)
            await self._ends(held)

    async def _kill(self, held: PauseHeld) -> None:
        """SIGKILL the pause container, and whatever else is in a cgroup that is the pod's alone."""
        try:
            await held.link.ask(lambda shim: shim.tasks.kill(held.id, signal.SIGKILL, all_processes=True))
        except errors.NotFound as error:
            log.debug("sandbox %s: ended before SIGKILL: %s", held.id, error)
        except (errors.Unavailable, errors.DataLoss) as error:
            if isinstance(error, errors.Unavailable) and not held.link.is_gone:
                raise
            if held.record.process is not None:
                process.send_signal(held.record.process, signal.SIGKILL)
        if held.record.owns_cgroup and held.cgroup is not None:
            await self._blocking.run(held.cgroup.kill)
        if held.record.is_paused:
            await held.thaw(self._blocking)

    async def _asked_end(self, held: PauseHeld) -> ExitStatus:
        try:
            return await held.link.ask(lambda shim: shim.tasks.wait(held.id))
        except errors.NotFound as error:
            return await self._recorded_end(held, error)
        except (errors.Unavailable, errors.DataLoss) as error:
            if held.link.is_gone:
                return await self._recorded_end(held, error)
            found = held.record.process
            if found is not None and not process.is_alive(found):
                return unknown_exit()
            raise

    def _settle(self, held: PauseHeld, ended: ExitStatus) -> None:
        """Tell how the sandbox ended, after it is on disk: once, and the same to all."""
        if held.exit.is_set:
            return
        if held.record.exit is None and held.folder.is_dir():
            at_ns = (ended.exited_at - EPOCH) // timedelta(microseconds=1) * 1000
            try:
                held.note(exit=SandboxExit(exit_status=ended.exit_status, exited_at_ns=at_ns))
            except OSError as error:
                log.error("sandbox %s: its exit is not recorded: %s", held.id, error)
        super()._settle(held, ended)
        if self._plugins is not None and (held.record.pid or held.has_plugins):
            held.told = self._tasks.spawn(self._tell_end(held, self._plugins), name=f"sandbox/{held.id}/plugins")

    async def _tell_end(self, held: PauseHeld, plugins: LegacyPlugins) -> None:
        try:
            spec = await self._blocking.run(held.request.bundle.read_spec)
            await plugins.invoke("delete", _task(held, held.record.pid, spec))
        except errors.AtollError as error:
            log.warning("sandbox %s: its end and NRI: %s", held.id, error)

    async def shutdown(self, sandbox_id: str) -> None:
        """As the contract says; also for an ID that it does not know but that an earlier daemon left something of."""
        held = self._held.get(sandbox_id)
        if held is None:
            if not is_identifier(sandbox_id):
                return
            held = self._load(Sandbox(id=sandbox_id, sandboxer="", runtime=Runtime(name="")))
            if held is None:
                await self._roots.remove(sandbox_id)
                return
        await self._free_all(held)

    async def _free(self, held: PauseHeld) -> Undoing:
        """A root filesystem is not touched while the container may use it, and the record goes last."""
        undoing = Undoing()
        if held.record.is_paused:
            with undoing.step("freezer"):
                await held.thaw(self._blocking)
        await self._delete_task(held)
        if held.told is not None:
            await asyncio.wait({held.told})
        await held.link.aclose()
        held.link = Link(self._launcher, held.request)
        with undoing.step("pause container and shim"):
            await self._launcher.delete(held.request)
        if not undoing.left:
            with undoing.step("root filesystem"):
                await self._roots.remove(held.id)
        with undoing.step("cgroup"):
            if held.record.made_cgroup:
                await PodCgroup(held.record.cgroup_parent, exclusive=held.record.owns_cgroup).remove()
        with undoing.step("pod files"):
            if held.record.files:
                await self._blocking.run(pod_files.remove, Path(held.record.files))
        if not undoing.left:
            with undoing.step("folder"):
                await self._blocking.run(remove_mounted_tree, held.folder)
        if not undoing.left:
            self._forget(held)
        return undoing

    async def _delete_task(self, held: PauseHeld) -> None:
        """Ask the shim to end and forget the container; what it does not do its `delete` does."""
        try:
            shim = await held.link.shim()
            with contextlib.suppress(errors.NotFound):
                await shim.tasks.kill(held.id, signal.SIGKILL, all_processes=True)
            ended = await asyncio.wait_for(shim.tasks.wait(held.id), KILL_TIMEOUT_S)
            self._settle(held, ended)
            await shim.tasks.delete(held.id)
        except (errors.AtollError, TimeoutError) as error:
            log.info("sandbox %s: its task is freed without its shim: %s", held.id, error)

    # questions

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        held = self._get(sandbox_id)
        known = self._known(held)
        task: TaskState | None = None
        if known is None or (verbose and known.state is State.READY):
            known, task = await self._asked_status(held)
        if not verbose:
            return known
        info = await self._blocking.run(held.info, known, task)
        return replace(known, info=info.encode())

    async def _asked_status(self, held: PauseHeld) -> tuple[ControllerStatus, TaskState | None]:
        """As the shim sees the pause container."""
        try:
            found = await held.link.ask(lambda shim: shim.tasks.state(held.id))
            shim = await held.link.shim()
        except errors.AtollError as error:
            if not held.link.is_gone and not isinstance(error, errors.NotFound):
                return self._told(held, State.UNKNOWN, reason=str(error)), None
            await self._ends(held)
            return self._told(held, State.NOTREADY, reason=held.lost), None
        held.doubt = ""
        held.instance = held.told_by(shim.bootstrap)
        if found.status is TaskStatus.STOPPED:
            await self._ends(held)
        return self._told(held, State.NOTREADY if held.exit.is_set else State.READY), found

    async def metrics(self, sandbox_id: str) -> Metric:
        """Of the pod's cgroup; `FailedPrecondition` for a pod without one."""
        held = self._get(sandbox_id)
        self._require_running(held)
        group = held.needed_cgroup
        try:
            found = await self._blocking.run(metrics.of_cgroup, group.folders, f"sandbox {sandbox_id}")
        except errors.NotFound as error:
            raise errors.FailedPrecondition(f"{error}: {group.path} is gone") from error
        return Metric(timestamp=datetime.now(UTC), id=sandbox_id, data=from_any(found))

    async def ping(self, sandbox_id: str) -> None:
        held = self._get(sandbox_id)
        self._require_running(held)
        try:
            found = await held.link.ask(lambda shim: shim.tasks.state(sandbox_id))
        except (errors.NotFound, errors.Unavailable) as error:
            raise self._still_running(held, error) from error
        if found.status not in RUNNING:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")

    # changes

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        held = self._get(sandbox_id)
        async with self._turn(held):
            self._require_alive(held)
            wanted = updates.plan(held.sandbox, sandbox, fields)
            changed = held.record.resources_now.updated(wanted.resources, wanted.updated)
            if changed.limits != Limits():
                path = held.needed_cgroup.path
                cgroup = PodCgroup(path, exclusive=held.record.owns_cgroup)
                await self._blocking.run(cgroup.apply, changed.limits)
            if wanted.reaches_the_sandbox:
                change = wanted.annotations or updates.AnnotationChange(values={})
                with disk_told(f"sandbox {sandbox_id}: update"):
                    held.note(
                        annotations=change.applied(held.record.annotations_now),
                        overhead=changed.overhead,
                        resources=changed.resources,
                    )
            held.sandbox = wanted.sandbox

    async def pause(self, sandbox_id: str) -> None:
        """Freeze every container of the pod, its pause container too.

        `FailedPrecondition` under another's shim for a pod without a cgroup of its own.
        """
        held = self._get(sandbox_id)
        async with self._turn(held):
            self._require_running(held)
            with disk_told(f"sandbox {sandbox_id}: pause"):
                await held.freeze(self._blocking)

    async def resume(self, sandbox_id: str) -> None:
        held = self._get(sandbox_id)
        async with self._turn(held):
            self._require_running(held)
            with disk_told(f"sandbox {sandbox_id}: resume"):
                await held.thaw(self._blocking)

    # restart

    async def recover(self, sandbox: Sandbox) -> ControllerStatus:
        """Take up a sandbox that an earlier daemon made; what is known of it now. Raises `NotFound` for none."""
        held = self._held.get(sandbox.id)
        if held is None:
            held = self._load(sandbox)
            if held is None:
                raise errors.NotFound(f"sandbox {sandbox.id}: has no folder {self._folder / sandbox.id}")
            self._held[sandbox.id] = held
            if held.record.pid:
                held.doubt = "it was not asked yet"
                held.instance = held.told_by(None)
                self._watch(held)
        return await self.status(sandbox.id)

    def _load(self, sandbox: Sandbox) -> PauseHeld | None:
        folder = self._folder / require_identifier(sandbox.id, "sandbox id")
        if not folder.is_dir():
            return None
        record = read_record(folder, sandbox)
        held = self._hold(sandbox, record)
        held.is_stopped = record.is_stopped
        if record.ended is not None:
            held.exit.set(record.ended)
        return held


def _task(held: PauseHeld, pid: int, spec: bytes) -> SandboxTask:
    return SandboxTask(id=held.id, pid=pid, spec=spec, labels=held.record.config.labels)
