"""One container: its bundle, its init and its execs, driven through an OCI runtime.

Two rules order what is told. A process's exit is told after its start, because `Process.starting` is held
while it starts. The init's exit is the last of its container: what is left of the container is killed
where no pid namespace of its own ends it, and running execs are waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from google.protobuf.message import Message

from atoll import errors, faults
from atoll.api import containerd_events_pb2 as events_pb2
from atoll.linux import cgroup, cgroup_layout, freezer
from atoll.oci import runtime as oci
from atoll.shim import cgroups, mapped, records, rules, wire
from atoll.shim.process import Exec, Process
from atoll.shim.reaper import Exit
from atoll.shim.records import ExitRecord, TaskRecord
from atoll.shim.rootfs import RootMount, unmount_root
from atoll.shim.rules import Phase
from atoll.shim.shim import Shim
from atoll.shim.stdio.request import StdioRequest
from atoll.unreadable import UNREADABLE

EXECS_TIMEOUT_S = 10.0
KILLED_TIMEOUT_S = 10.0
FREEZE_TIMEOUT_S = 5.0
EXECS_LIMIT = 1024
OLD_VERSION = "1.0.2"
"""Of the runtime spec: what crun up to 1.8 takes at most, while containerd 2 writes newer ones. It reads all alike."""

CGROUP_PAUSES_S = (0.005, 0.02, 0.1, 0.4)
"""Between tries to remove the cgroup of what is just being killed."""

log = logging.getLogger(__name__)


class _Namespace(msgspec.Struct, frozen=True):
    type: str
    path: str = ""


class _Linux(msgspec.Struct, frozen=True, rename="camel"):
    namespaces: tuple[_Namespace, ...] = ()
    cgroups_path: str = ""


class _Hooks(msgspec.Struct, frozen=True):
    poststart: tuple[msgspec.Raw, ...] | None = None


class BundleSpec(msgspec.Struct, frozen=True):
    """What the shim itself reads of a config.json."""

    linux: _Linux = _Linux()
    mounts: tuple[mapped.SpecMount, ...] = ()
    annotations: dict[str, str] = {}
    hooks: _Hooks | None = None
    oci_version: str = msgspec.field(name="ociVersion", default=OLD_VERSION)

    @property
    def owns_pids(self) -> bool:
        """Whether the end of the init ends every process: a pid namespace of its own."""
        return any(space.type == "pid" and not space.path for space in self.linux.namespaces)


_spec_decoder = msgspec.json.Decoder(BundleSpec)


def read_spec(bundle: Path) -> BundleSpec:
    """The bundle's config.json; `NotFound` without one, `InvalidArgument` where it is no spec."""
    path = bundle / "config.json"
    try:
        return _spec_decoder.decode(path.read_bytes())
    except FileNotFoundError:
        raise errors.NotFound(f"{path}: is not there") from None
    except (OSError, *UNREADABLE) as error:
        raise errors.InvalidArgument(f"{path}: cannot be read: {error}") from error


def lower_version(bundle: Path) -> None:
    """Have the bundle's config.json say `OLD_VERSION`, with everything else as it is; raises `OSError`."""
    path = bundle / "config.json"
    spec = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    spec["ociVersion"] = msgspec.Raw(msgspec.json.encode(OLD_VERSION))
    lowered = path.with_name("config.json.new")
    lowered.write_bytes(msgspec.json.encode(spec))
    lowered.replace(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """How a container is made; `restore_from` is a folder with a checkpoint, None for a fresh start."""

    rootfs: tuple[RootMount, ...] = ()
    no_pivot: bool = False
    no_new_keyring: bool = False
    restore_from: Path | None = None
    criu_work: Path | None = None


class Container:
    """A container from Create to Delete."""

    def __init__(
        self, shim: Shim, runtime: oci.OCIRuntime, stdio: StdioRequest, bundle: Path, options: CreateOptions
    ) -> None:
        """Nothing is made yet."""
        self.id = stdio.id
        self.bundle = bundle
        self.runtime = runtime
        self.options = options
        self.init = Process(stdio, bundle)
        self.execs: dict[str, Exec] = {}
        self.cgroups: tuple[Path, ...] = ()
        self._shim = shim
        self._owns_pids = True
        self._cgroups_path = ""
        self._above: tuple[str, ...] = ()
        """Cgroups that its runtime makes for it above its own."""
        self._has_hooks = True
        self._oom_before = 0
        # Orders create, start, pause, resume, update, checkpoint and delete.
        self._lock = asyncio.Lock()
        self._exec_ended = asyncio.Event()
        self._restore_streams = oci.NO_STDIO
        self._deleted = False

    # create

    async def create(self, record: TaskRecord, announce: Callable[[int], None]) -> None:
        """Make the container of the bundle: mounts, streams, OCI create. `announce` tells of it before its exit is.

        What fails leaves nothing behind; what could not be undone is named in the error. Call it once.
        """
        spec = read_spec(self.bundle)
        self._owns_pids = spec.owns_pids
        self._cgroups_path = spec.linux.cgroups_path
        self._above = cgroups.absent_parents(self._cgroups_path)
        self._has_hooks = spec.hooks is not None and bool(spec.hooks.poststart)
        async with self.init.starting:
            try:
                faults.reached("shim create/root")
                await mapped.mount_all(self._shim.holders, self.bundle, self.options.rootfs, spec.mounts)
                faults.reached("shim create/record")
                self._record(record)
                if Path(record.binary).name == "crun" and not spec.oci_version.startswith("1.0."):
                    lower_version(self.bundle)
                await self._create(record)
            except (errors.AtollError, OSError) as error:
                raise await self._undo_create(error) from error
            announce(self.init.pid)

    def _record(self, record: TaskRecord) -> None:
        """Write the task down for whoever clears it away without this shim; raises `OSError`."""
        records.write(self.bundle / records.TASK, record)
        if str(self.bundle) != self._shim.request.bundle:
            guest = records.GuestRecord(bundle=str(self.bundle), task=record)
            records.write_guest(Path(self._shim.request.bundle), guest)

    def _forget(self) -> None:
        (self.bundle / records.TASK).unlink(missing_ok=True)
        records.forget_guest(Path(self._shim.request.bundle), self.id)

    async def _create(self, record: TaskRecord) -> None:
        init = self.init
        streams = await init.open_stdio(self._shim)
        if self.options.restore_from is not None:
            # A restore makes and starts the process in one: at Start.
            self._restore_streams = streams
            return
        faults.reached("shim create/runtime")
        with self._shim.reaper.expecting():
            init.pid = await self.runtime.create(
                self.id,
                self.bundle,
                pid_file=self.bundle / "init.pid",
                stdio=streams,
                no_pivot=self.options.no_pivot,
                no_new_keyring=self.options.no_new_keyring,
            )
            self._adopt(record)
            faults.reached("shim create/runtime:done")
        await self._take_streams(init)

    def _adopt(self, record: TaskRecord) -> None:
        """Watch the init and remember where it runs; call it inside `expecting()`."""
        ended = self._shim.reaper.watch(self.init.pid)
        self.cgroups = cgroups.of_process(self.init.pid)
        self._oom_before = cgroups.oom_kills(self.cgroups)
        folders = tuple(str(folder) for folder in self.cgroups)
        self._record(msgspec.structs.replace(record, pid=self.init.pid, cgroups=folders))
        self._shim.tasks.spawn(self._init_ended(ended), name=f"container/{self.id}/exit")

    async def _take_streams(self, process: Process) -> None:
        try:
            await process.started_stdio()
        except errors.AtollError:
            if process is not self.init:
                self._signal(process.pid, signal.SIGKILL)
            raise

    async def _undo_create(self, error: Exception) -> errors.AtollError:
        left: list[str] = []
        if self.init.pid:
            try:
                await self.runtime.delete(self.id, force=True)
            except errors.AtollError as fault:
                left.append(f"container {self.id} ({fault})")
        else:
            await self._remove_cgroup(left)
        cgroups.remove_empty(self._above)
        await self.init.close(drain=False)
        try:
            unmount_root(self.bundle / "rootfs")
            self._forget()
        except OSError as fault:
            left.append(f"{fault.filename} ({fault.strerror})")
        kind = type(error) if isinstance(error, errors.AtollError) else errors.Internal
        message = f"container {self.id}: {error}"
        if left:
            message += f"; left behind: {', '.join(left)}"
        return errors.from_status(kind.code, message)

    async def _remove_cgroup(self, left: list[str]) -> None:
        """What an OCI runtime that could not make the container has left of its cgroup, where that has its name."""
        if not self._cgroups_path.endswith(f"/{self.id}"):
            return
        try:
            found = cgroup.Cgroup(self._cgroups_path, cgroup_layout.of_host())
            found.kill()
            for pause_s in CGROUP_PAUSES_S:
                try:
                    found.delete(0)
                    break
                except errors.FailedPrecondition:
                    await asyncio.sleep(pause_s)
            else:
                found.delete(0)
        except (errors.AtollError, OSError) as fault:
            left.append(f"cgroup {self._cgroups_path} ({fault})")

    # start

    async def start(self) -> int:
        """Execute the init's command; its pid. Raises `FailedPrecondition` where it is not freshly created."""
        init = self.init
        async with self._lock, init.starting:
            init.require(rules.can_start(init.phase), "start")
            if self.options.restore_from is not None:
                await self._restore(self.options.restore_from)
            else:
                faults.reached("shim start/runtime")
                await self.runtime.start(self.id, has_hooks=self._has_hooks)
            faults.reached("shim start/runtime:done", fails=False)
            init.enter(Phase.RUNNING)
            self._publish("/tasks/start", events_pb2.TaskStart(container_id=self.id, pid=init.pid))
        return init.pid

    async def _restore(self, image: Path) -> None:
        record = records.read(self.bundle / records.TASK, TaskRecord)
        if record is None:
            raise errors.DataLoss(f"{self.bundle / records.TASK}: is gone")
        with self._shim.reaper.expecting():
            self.init.pid = await self.runtime.restore(
                self.id,
                self.bundle,
                oci.CheckpointOptions(image=image, work=self.options.criu_work or self.bundle / "criu"),
                pid_file=self.bundle / "init.pid",
                stdio=self._restore_streams,
            )
            self._adopt(record)
        await self._take_streams(self.init)

    async def _init_ended(self, ended: asyncio.Future[Exit]) -> None:
        exit_ = await ended
        init = self.init
        oom_killed = cgroups.oom_kills(self.cgroups) > self._oom_before
        record = init.record(exit_status=exit_.status, at_ns=exit_.at_ns, oom_killed=oom_killed)
        if not self._owns_pids:
            cgroups.kill(self.cgroups)
        await self._execs_ended()
        async with init.starting:
            init.settle(record)
            if oom_killed:
                self._publish("/tasks/oom", events_pb2.TaskOOM(container_id=self.id))
            self._publish_exit(record)

    async def _execs_ended(self) -> None:
        try:
            async with asyncio.timeout(EXECS_TIMEOUT_S):
                while any(process.pid and not process.exited.is_set for process in self.execs.values()):
                    self._exec_ended.clear()
                    await self._exec_ended.wait()
        except TimeoutError:
            log.error("container %s: execs still run %g s after its end", self.id, EXECS_TIMEOUT_S)

    # execs

    def add_exec(self, stdio: StdioRequest, spec: bytes) -> None:
        """Reserve an exec; `AlreadyExists` for a taken id, `FailedPrecondition` where no process can be added."""
        exec_id = stdio.exec_id
        if exec_id in self.execs:
            raise errors.AlreadyExists(f"exec {exec_id} of container {self.id}: exists")
        self.init.require(rules.can_exec(self.init.phase), "exec")
        if len(self.execs) >= EXECS_LIMIT:
            raise errors.ResourceExhausted(f"container {self.id}: has {EXECS_LIMIT} execs, delete some")
        self.execs[exec_id] = Exec(stdio, self.bundle, spec)
        self._publish("/tasks/exec-added", events_pb2.TaskExecAdded(container_id=self.id, exec_id=exec_id))

    async def start_exec(self, exec_id: str) -> int:
        """Run an added exec; its pid."""
        process = self.exec(exec_id)
        async with process.starting:
            process.require(rules.can_start(process.phase), "start")
            self.init.require(rules.can_exec(self.init.phase), f"start {exec_id}")
            try:
                await self._start_exec(process)
            except errors.AtollError:
                await process.close(drain=False)
                raise
            process.enter(Phase.RUNNING)
            started = events_pb2.TaskExecStarted(container_id=self.id, exec_id=exec_id, pid=process.pid)
            self._publish("/tasks/exec-started", started)
        return process.pid

    async def _start_exec(self, process: Exec) -> None:
        streams = await process.open_stdio(self._shim)
        pid_file = self.bundle / f"{process.request.exec_id}.exec.pid"
        with self._shim.reaper.expecting():
            try:
                faults.reached("shim exec/runtime")
                process.pid = await self.runtime.exec(self.id, process.spec, pid_file=pid_file, stdio=streams)
            finally:
                pid_file.unlink(missing_ok=True)
            ended = self._shim.reaper.watch(process.pid)
        name = f"container/{self.id}/exec/{process.request.exec_id}/exit"
        self._shim.tasks.spawn(self._exec_exited(process, ended), name=name)
        await self._take_streams(process)

    async def _exec_exited(self, process: Process, ended: asyncio.Future[Exit]) -> None:
        exit_ = await ended
        record = process.record(exit_status=exit_.status, at_ns=exit_.at_ns)
        async with process.starting:
            process.settle(record)
            self._publish_exit(record)
            self._exec_ended.set()

    async def delete_exec(self, exec_id: str) -> ExitRecord:
        """Forget an exec that ended or never started; its exit (status 0, pid 0 where it never ran)."""
        process = self.exec(exec_id)
        async with process.starting:
            process.require(rules.can_delete(process.phase) and not self._runs(process), "delete")
            await process.close(drain=True)
            self.execs.pop(exec_id, None)
            records.forget_exit(self.bundle, exec_id)
        return process.exited.value or ExitRecord(id=self.id, exec_id=exec_id, pid=0, exit_status=0, exited_at_ns=0)

    def exec(self, exec_id: str) -> Exec:
        """The exec of that id; `NotFound`."""
        process = self.execs.get(exec_id)
        if process is None:
            raise errors.NotFound(f"exec {exec_id} of container {self.id}: not found")
        return process

    def process(self, exec_id: str) -> Process:
        """The exec of that id, or the init for an empty one; `NotFound`."""
        return self.exec(exec_id) if exec_id else self.init

    @property
    def is_paused(self) -> bool:
        """Whether it was paused by itself, whatever its pod is."""
        return self.init.phase is Phase.PAUSED

    def phase_of(self, process: Process) -> Phase:
        """Where a process is; the execs of a paused container are paused."""
        return Phase.PAUSED if self.is_paused and process.phase is Phase.RUNNING else process.phase

    # signals, freezer, limits

    async def kill(self, exec_id: str, number: int, *, everything: bool) -> None:
        """Send a signal to a process, or to every process of the container; SIGKILL also to all that an exec started.

        Raises `NotFound` for a process that has ended, `FailedPrecondition` for an exec that was not started.
        """
        process = self.process(exec_id)
        if process.exited.is_set:
            raise errors.NotFound(f"{process.name}: process already finished")
        if not process.pid:
            raise errors.FailedPrecondition(f"{process.name}: not started")
        if everything and not exec_id:
            cgroups.signal_all(self.cgroups, number)
        elif everything and number == signal.SIGKILL:
            cgroups.kill_tree(self.cgroups, process.pid, self.process("").pid)
        elif not self._signal(process.pid, number):
            raise errors.NotFound(f"{process.name}: process already finished")
        if number == signal.SIGKILL:
            if self.is_paused:
                with contextlib.suppress(errors.FailedPrecondition, errors.NotFound):
                    await self.resume()
            freezer.release_killed(self.cgroups)  # its pod or somebody else may have frozen it

    def _signal(self, pid: int, number: int) -> bool:
        # Our child, whom only our reaper waits for: until then the pid is nobody else's.
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise errors.InvalidArgument(f"signal {number}: {error.strerror}") from error
        return True

    async def pause(self) -> None:
        """Freeze every process of the container, and wait until all stand; `DeadlineExceeded`, thawed then."""
        async with self._lock:
            self.init.require(rules.can_pause(self.init.phase), "pause")
            await self.runtime.pause(self.id)
            await self._stands()
            self.init.enter(Phase.PAUSED)
            self._publish("/tasks/paused", events_pb2.TaskPaused(container_id=self.id))

    async def _stands(self) -> None:
        # crun 1.8 returns as soon as it has asked a version 1 freezer.
        try:
            async with asyncio.timeout(FREEZE_TIMEOUT_S):
                freezing = freezer.Freezing(self.cgroups)
                while not freezing.poll():  # noqa: ASYNC110  no freezer tells that it is done
                    await asyncio.sleep(freezer.PAUSE_S)
        except TimeoutError:
            await self.runtime.resume(self.id)
            raise errors.DeadlineExceeded(f"{self.id}: did not freeze within {FREEZE_TIMEOUT_S:g} s") from None

    async def resume(self) -> None:
        """Thaw the container."""
        async with self._lock:
            self.init.require(rules.can_resume(self.init.phase), "resume")
            await self.runtime.resume(self.id)
            self.init.enter(Phase.RUNNING)
            self._publish("/tasks/resumed", events_pb2.TaskResumed(container_id=self.id))

    async def update(self, resources: bytes) -> None:
        """Change the limits; `resources` is the JSON of LinuxResources."""
        async with self._lock:
            self.init.require(rules.can_update(self.init.phase), "update")
            await self.runtime.update(self.id, resources)

    async def checkpoint(self, options: oci.CheckpointOptions) -> None:
        """Dump the container; it ends unless `leave_running`."""
        async with self._lock:
            self.init.require(rules.can_checkpoint(self.init.phase), "checkpoint")
            await self.runtime.checkpoint(self.id, options)
            event = events_pb2.TaskCheckpointed(container_id=self.id, checkpoint=str(options.image))
            self._publish("/tasks/checkpointed", event)

    def pids(self) -> list[tuple[int, str]]:
        """Every process of the container, with the exec id of those that are execs; once all ended, the init's.

        A containerd that starts takes a shim whose task lists no process for a leaked one: it deletes the task, and how
        that ended is lost.
        """
        execs = {process.pid: exec_id for exec_id, process in self.execs.items() if self._runs(process)}
        found = [(pid, execs.get(pid, "")) for pid in cgroups.pids(self.cgroups)]
        return found or ([(self.init.pid, "")] if self.init.pid else [])

    # delete

    async def delete(self) -> ExitRecord:
        """Remove a container that was not started or has ended; its exit. What fails can be tried again."""
        init = self.init
        async with self._lock:
            if self._deleted:
                raise errors.NotFound(f"container {self.id}: not found")
            init.require(rules.can_delete(init.phase), "delete")
            return await self._delete()

    async def destroy(self) -> None:
        """Remove the container in whatever phase: kill it first. Idempotent."""
        async with self._lock:
            if not self._deleted:
                await self._delete()

    async def _delete(self) -> ExitRecord:
        init = self.init
        if self._runs(init):
            # A runtime waits for what it kills, which a freezer of the pod may hold.
            cgroups.kill(self.cgroups)
        faults.reached("shim delete/runtime")
        await self.runtime.delete(self.id, force=True)
        faults.reached("shim delete/runtime:done")
        if init.pid and not init.exited.is_set:
            try:
                async with asyncio.timeout(KILLED_TIMEOUT_S):
                    await init.exited.wait()
            except TimeoutError:
                raise errors.DeadlineExceeded(
                    f"{init.name}: process {init.pid} does not end within {KILLED_TIMEOUT_S:g} s of SIGKILL"
                ) from None
        cgroups.remove_empty(self._above)
        init.enter(Phase.STOPPED)
        for process in list(self.execs.values()):
            await process.close(drain=False)
        await init.close(drain=True)
        unmount_root(self.bundle / "rootfs")
        self._forget()
        record = init.exited.value or ExitRecord(id=self.id, pid=init.pid, exit_status=0, exited_at_ns=0)
        self._deleted = True
        self._publish(
            "/tasks/delete",
            events_pb2.TaskDelete(
                container_id=self.id,
                pid=record.pid,
                exit_status=record.exit_status,
                exited_at=wire.timestamp(record.exited_at_ns),
            ),
        )
        return record

    @staticmethod
    def _runs(process: Process) -> bool:
        return bool(process.pid) and not process.exited.is_set

    # events

    def _publish_exit(self, record: ExitRecord) -> None:
        self._publish(
            "/tasks/exit",
            events_pb2.TaskExit(
                container_id=self.id,
                id=record.exec_id or self.id,
                pid=record.pid,
                exit_status=record.exit_status,
                exited_at=wire.timestamp(record.exited_at_ns),
            ),
        )

    def _publish(self, topic: str, event: Message) -> None:
        self._shim.events.publish(topic, event)
