"""The `podsandbox` sandboxer: the sandbox is a pause container, run through the Task service of any shim.

    <folder>/<id>/pause.json   the record
                  files/       hostname, hosts, resolv.conf, shm, unless the request names another folder
                  <id>/        the bundle of the shim and of the pause container, which share the sandbox's ID

Start acquires, in this order: pod files, root filesystem, bundle, shim, task. What it leaves is freed in reverse, the
same way after a failed start, by `shutdown`, and for a pod whose daemon died. The pod's containers are more tasks of
the same shim, and are run, paused and stopped by whoever made them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import signal
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import Blocking, Latch, run_to_completion
from atoll.identifiers import is_identifier, require_identifier
from atoll.linux import process
from atoll.linux.cgroup import Cgroup
from atoll.linux.cgroup_metrics import metrics_message
from atoll.runtime.bundle import Bundle, remove_mounted_tree
from atoll.runtime.link import Link
from atoll.runtime.shim import Launcher, LaunchRequest
from atoll.runtime.task import StdioPaths, TaskState, TaskStatus
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    CleanupFailed,
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Platform,
    Runtime,
    Sandbox,
    State,
    TypedAny,
)
from atoll.sandboxers import pause
from atoll.sandboxers.pause import PauseRecord, RootProvider, SpecFacts
from atoll.shim import pod_files, records
from atoll.shim.records import SandboxExit

log = logging.getLogger(__name__)

RECORD = "pause.json"
CLEANUP_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 30.0
RUNTIME_LABEL = "oci_runtime_type"
RUNNING = (TaskStatus.RUNNING, TaskStatus.PAUSED, TaskStatus.PAUSING)
EPOCH = datetime.fromtimestamp(0, UTC)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}


@dataclass(slots=True, kw_only=True)
class _Held:
    sandbox: Sandbox
    folder: Path
    request: LaunchRequest
    link: Link
    record: PauseRecord
    exit: Latch[ExitStatus] = field(default_factory=Latch[ExitStatus])


class PodSandboxController(Controller):
    """Pods held by pause containers.

    `folder` holds a folder for each pod. After a failed start the ID is unknown, unless `CleanupFailed` says that
    `shutdown` has something left to do.
    """

    def __init__(
        self, *, launcher: Launcher, roots: RootProvider, folder: Path, facts: SpecFacts, blocking: Blocking
    ) -> None:
        self._launcher = launcher
        self._roots = roots
        self._folder = folder
        self._facts = facts
        self._blocking = blocking
        self._held: dict[str, _Held] = {}

    def _hold(self, sandbox: Sandbox, record: PauseRecord) -> _Held:
        folder = self._folder / require_identifier(sandbox.id, "sandbox id")
        # Go shims look for their state in a folder of the container's ID beside the one they were started in.
        bundle = Bundle(id=sandbox.id, namespace=self._facts.namespace, path=folder / sandbox.id)
        request = LaunchRequest(id=sandbox.id, namespace=self._facts.namespace, runtime=sandbox.runtime, bundle=bundle)
        return _Held(sandbox=sandbox, folder=folder, request=request, link=Link(self._launcher, request), record=record)

    def _get(self, sandbox_id: str) -> _Held:
        held = self._held.get(sandbox_id)
        if held is None:
            raise errors.NotFound(f"sandbox {sandbox_id}: is not known to this sandboxer")
        return held

    # create and start

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        if sandbox.id in self._held:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is created already")
        require_identifier(sandbox.id, "sandbox id")
        record = pause.record_of(sandbox, options, self._folder / sandbox.id / "files")
        held = self._held[sandbox.id] = self._hold(sandbox, record)
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
            with _told(f"sandbox {sandbox.id}: create"):
                records.write(held.folder / RECORD, record)
        except BaseException as error:
            await self._undo(held, error)
            raise

    async def start(self, sandbox_id: str) -> ControllerInstance:
        held = self._get(sandbox_id)
        if held.record.is_stopped or held.exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: has ended; create another one")
        if held.record.pid:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is started already")
        try:
            with _told(f"sandbox {sandbox_id}: start"):
                return await self._start(held)
        except BaseException as error:
            await self._undo(held, error)
            raise

    async def _start(self, held: _Held) -> ControllerInstance:
        request, record = held.request, held.record
        run = self._blocking.run
        await run(lambda: pod_files.create(Path(record.files), record.config, shm=record.has_ipc))
        root = await self._roots.prepare(request.id)
        spec = await run(pause.build, request.id, record, root, self._facts)
        await run(request.bundle.create, spec)
        shim = await self._launcher.launch(request)
        held.link = Link(self._launcher, request, shim)
        pid = await shim.tasks.create(
            request.id,
            bundle=str(request.bundle.path),
            rootfs=root.mounts,
            stdio=StdioPaths(),
            options=request.runtime.options,
        )
        identity = process.identify(pid)
        pid = await shim.tasks.start(request.id) or pid
        self._note(
            held,
            image=root.image_name,
            snapshotter=root.snapshotter,
            pid=pid,
            start_ticks=identity.start_ticks if identity is not None else 0,
            boot_id=process.boot_id(),
            created_at_ns=time.time_ns(),
        )
        created_at = held.record.created_at
        assert created_at is not None
        return ControllerInstance(
            sandbox_id=request.id,
            pid=pid,
            created_at=created_at,
            labels={RUNTIME_LABEL: request.runtime.name},
            address=shim.bootstrap.endpoint,
            version=shim.bootstrap.version,
            spec=TypedAny(type_url=pause.SPEC_URL, value=spec),
        )

    def _note(self, held: _Held, **changes: object) -> None:
        """Change the record, on disk before in memory; raises `OSError`."""
        changed = msgspec.structs.replace(held.record, **changes)
        records.write(held.folder / RECORD, changed)
        held.record = changed

    async def _undo(self, held: _Held, cause: BaseException) -> None:
        left: list[str] = []
        try:
            left = await run_to_completion(self._free(held), within=CLEANUP_TIMEOUT_S)
        except errors.AtollError as error:
            left = [f"sandbox {held.request.id}: {error}"]
        if left:
            log.warning("sandbox %s: not undone after a failed start: %s", held.request.id, ", ".join(left))
            if isinstance(cause, errors.AtollError):
                raise CleanupFailed(cause, tuple(left)) from cause

    # the end

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        """SIGKILL, whatever the timeout: a pause container has nothing to finish."""
        held = self._held.get(sandbox_id)
        if held is None or held.exit.is_set:
            return
        with _told(f"sandbox {sandbox_id}: stop"):
            self._note(held, is_stopped=True)
        if not held.record.pid:
            self._settle(held, ExitStatus(exit_status=0, exited_at=datetime.now(UTC)))
            return
        try:
            await held.link.ask(lambda shim: shim.tasks.kill(sandbox_id, signal.SIGKILL, all_processes=True))
        except errors.NotFound as error:
            log.debug("sandbox %s: ended before SIGKILL: %s", sandbox_id, error)
        except errors.Unavailable:
            found = held.record.process
            if not held.link.is_gone or found is None:
                raise
            process.send_signal(found, signal.SIGKILL)
        try:
            await asyncio.wait_for(self.wait(sandbox_id), KILL_TIMEOUT_S)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"sandbox {sandbox_id}: pid {held.record.pid} survives SIGKILL for {KILL_TIMEOUT_S:g} s"
            ) from None

    async def wait(self, sandbox_id: str) -> ExitStatus:
        held = self._get(sandbox_id)
        if held.record.pid and not held.exit.is_set:
            try:
                ended = await held.link.ask(lambda shim: shim.tasks.wait(sandbox_id))
            except (errors.NotFound, errors.Unavailable) as error:
                await self._settle_without_shim(held, error)
            else:
                self._settle(held, ended)
        return await held.exit.wait()

    async def _settle_without_shim(self, held: _Held, error: errors.AtollError) -> None:
        """The exit as the shim recorded it, else one that says that nobody knows; not for a shim that may live."""
        if held.exit.is_set:
            return
        if isinstance(error, errors.Unavailable) and not held.link.is_gone:
            raise error
        recorded: ExitStatus | None = None
        try:
            recorded = await self._launcher.ended(held.request)
        except errors.DataLoss as fault:
            log.warning("sandbox %s: how it ended is lost: %s", held.request.id, fault)
        self._settle(held, recorded or _unknown_exit())

    def _settle(self, held: _Held, ended: ExitStatus) -> None:
        """Tell how the sandbox ended, after it is on disk: once, and the same to all."""
        if held.exit.is_set:
            return
        if held.record.exit is None and held.folder.is_dir():
            at_ns = (ended.exited_at - EPOCH) // timedelta(microseconds=1) * 1000
            try:
                self._note(held, exit=SandboxExit(exit_status=ended.exit_status, exited_at_ns=at_ns))
            except OSError as error:
                log.error("sandbox %s: its exit is not recorded: %s", held.request.id, error)
        held.exit.set(ended)

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
        left = await run_to_completion(self._free(held), within=CLEANUP_TIMEOUT_S)
        if left:
            raise errors.Unavailable(f"sandbox {sandbox_id}: not freed yet: {', '.join(left)}")

    async def _free(self, held: _Held) -> list[str]:
        """Everything of one sandbox, in reverse; what is left, in words. Idempotent.

        A root filesystem is not touched while the container may use it, and the record goes last.
        """
        left: list[str] = []
        sandbox_id = held.request.id
        await self._delete_task(held)
        await held.link.aclose()
        with _noting(left, "shim"):
            await self._launcher.delete(held.request)
        if not left:
            with _noting(left, "root filesystem"):
                await self._roots.remove(sandbox_id)
        with _noting(left, "pod files"):
            if held.record.files:
                await self._blocking.run(pod_files.remove, Path(held.record.files))
        if not left:
            with _noting(left, "folder"):
                await self._blocking.run(remove_mounted_tree, held.folder)
        if not left:
            held.exit.set(_unknown_exit())  # whoever still waits is told
            self._held.pop(sandbox_id, None)
        return left

    async def _delete_task(self, held: _Held) -> None:
        """Ask the shim to end and forget the container; what it does not do its `delete` does."""
        sandbox_id = held.request.id
        try:
            shim = await held.link.shim()
            with contextlib.suppress(errors.NotFound):
                await shim.tasks.kill(sandbox_id, signal.SIGKILL, all_processes=True)
            ended = await asyncio.wait_for(shim.tasks.wait(sandbox_id), KILL_TIMEOUT_S)
            self._settle(held, ended)
            await shim.tasks.delete(sandbox_id)
        except (errors.AtollError, TimeoutError) as error:
            log.info("sandbox %s: its task is freed without its shim: %s", sandbox_id, error)

    # questions

    async def platform(self, sandbox_id: str) -> Platform:
        self._get(sandbox_id)
        machine = platform.machine()
        return Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        held = self._get(sandbox_id)
        found: TaskState | None = None
        reason = ""
        if held.record.pid and not held.exit.is_set:
            try:
                found = await self._task(held)
            except errors.AtollError as error:
                reason = str(error)
        return await self._status(held, found, reason, verbose=verbose)

    async def _task(self, held: _Held) -> TaskState | None:
        """The pause container as the shim sees it; None, and the exit is settled, where it is provably over."""
        try:
            found = await held.link.ask(lambda shim: shim.tasks.state(held.request.id))
        except (errors.NotFound, errors.Unavailable) as error:
            await self._settle_without_shim(held, error)
            return None
        if found.status is TaskStatus.STOPPED and found.exited_at is not None:
            self._settle(held, ExitStatus(exit_status=found.exit_status, exited_at=found.exited_at))
        return found

    async def _status(self, held: _Held, found: TaskState | None, reason: str, *, verbose: bool) -> ControllerStatus:
        record, ended = held.record, held.exit.value
        is_running = found is not None and found.status in RUNNING
        state = State.READY if is_running else State.UNKNOWN if reason and ended is None else State.NOTREADY
        info = {}
        if verbose:
            info = await self._blocking.run(self._info, held, found)
        started = bool(record.pid)
        shim = await held.link.shim() if is_running else None
        return ControllerStatus(
            sandbox_id=held.request.id,
            state=state,
            pid=record.pid if started and state is not State.NOTREADY else 0,
            info=info,
            created_at=record.created_at,
            exited_at=ended.exited_at if ended is not None else None,
            address=shim.bootstrap.endpoint if shim is not None else "",
            version=shim.bootstrap.version if shim is not None else 0,
            reason=reason,
        )

    def _info(self, held: _Held, found: TaskState | None) -> dict[str, str]:
        try:
            spec = held.request.bundle.read_spec()
        except errors.NotFound:
            spec = None
        status = found.status if found is not None else None
        snapshot = held.request.id if held.record.image else ""
        return dict(pause.verbose(held.sandbox, held.record, status, spec, snapshot))

    async def metrics(self, sandbox_id: str) -> Metric:
        """Of the pod's cgroup, or of the pause container's where the pod has none."""
        held = self._get(sandbox_id)
        if not held.record.pid:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not started")
        path = held.record.cgroup_parent or pause.cgroups_path(sandbox_id, held.record, self._facts.namespace)
        if ".slice" in path:  # systemd knows where it is, and so does the runtime
            data = await held.link.ask(lambda shim: shim.tasks.stats(sandbox_id))
        else:
            group = Cgroup(path, self._facts.host.hierarchies)
            if not group.exists():
                raise errors.NotFound(f"sandbox {sandbox_id}: has no cgroup {group.path}")
            message = await self._blocking.run(metrics_message, group)
            data = TypedAny(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
        return Metric(timestamp=datetime.now(UTC), id=sandbox_id, data=data)

    async def ping(self, sandbox_id: str) -> None:
        held = self._get(sandbox_id)
        found = await self._task(held) if held.record.pid and not held.exit.is_set else None
        if found is None or found.status not in RUNNING:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")

    # changes

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        """Take the record as it is now; what a verbose status tells follows it."""
        self._get(sandbox_id).sandbox = sandbox

    async def pause(self, sandbox_id: str) -> None:
        """Freeze the pause container; the pod's containers are tasks of their own."""
        held = self._running(sandbox_id)
        if (await held.link.ask(lambda shim: shim.tasks.state(sandbox_id))).status is TaskStatus.RUNNING:
            await held.link.ask(lambda shim: shim.tasks.pause(sandbox_id))

    async def resume(self, sandbox_id: str) -> None:
        held = self._running(sandbox_id)
        if (await held.link.ask(lambda shim: shim.tasks.state(sandbox_id))).status is TaskStatus.PAUSED:
            await held.link.ask(lambda shim: shim.tasks.resume(sandbox_id))

    def _running(self, sandbox_id: str) -> _Held:
        held = self._get(sandbox_id)
        if not held.record.pid or held.exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")
        return held

    # restart

    async def recover(self, sandbox: Sandbox) -> ControllerStatus:
        """Take up a sandbox that an earlier daemon made; what is known of it now. Raises `NotFound` for none."""
        held = self._held.get(sandbox.id)
        if held is None:
            held = self._load(sandbox)
            if held is None:
                raise errors.NotFound(f"sandbox {sandbox.id}: has no folder {self._folder / sandbox.id}")
            self._held[sandbox.id] = held
        return await self.status(sandbox.id)

    def _load(self, sandbox: Sandbox) -> _Held | None:
        folder = self._folder / require_identifier(sandbox.id, "sandbox id")
        if not folder.is_dir():
            return None
        try:
            record = records.read(folder / RECORD, PauseRecord)
        except errors.DataLoss as error:
            log.error("sandbox %s: %s", sandbox.id, error)
            record = None
        if record is None:  # a crash while it was created, or a broken disk: there is nothing that could be started
            record = PauseRecord(
                config=pause.PodConfig(),
                netns="",
                files="",
                cgroup_parent="",
                runtime=sandbox.runtime.name,
                is_stopped=True,
                exit=SandboxExit(exit_status=UNKNOWN_EXIT_STATUS, exited_at_ns=time.time_ns()),
            )
        held = self._hold(sandbox, record)
        if record.ended is not None:
            held.exit.set(record.ended)
        return held

    async def aclose(self) -> None:
        """Let go of the connections; the sandboxes live on."""
        for held in self._held.values():
            await held.link.aclose()


@contextlib.contextmanager
def _told(what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise errors.Unavailable(f"{what}: {error.filename or 'the disk'}: {error.strerror}") from error


@contextlib.contextmanager
def _noting(left: list[str], what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        left.append(f"{what}: {error.filename or ''}: {error.strerror}")
    except errors.AtollError as error:
        left.append(f"{what}: {error}")


def _unknown_exit() -> ExitStatus:
    return ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=datetime.now(UTC))
