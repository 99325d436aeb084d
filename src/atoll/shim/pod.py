"""The life of the pod that a shim serves.

What Create acquires, in this order, and what Shutdown gives back in reverse: the record, the cgroup, the
pod files, the root filesystem's mounts if any were given, the holder with the namespaces and the sysctls in
them. Stop ends the holder already, so that a stopped pod holds no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from atoll import errors, faults
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.concurrency import Latch
from atoll.linux.cgroup import Limits
from atoll.oci.spec import Resources
from atoll.sandbox.config import PodConfig
from atoll.sandbox.info import SandboxInfo
from atoll.sandbox.resources import NOTHING, UpdatedResources
from atoll.shim import pod_files, pod_links, pod_sysctls, records
from atoll.shim.container import Container
from atoll.shim.pod_cgroup import PodCgroup, PodResources
from atoll.shim.pod_holder import Holder
from atoll.shim.pod_namespaces import PodNamespaces
from atoll.shim.reaper import Exit
from atoll.shim.records import SandboxExit, SandboxRecord
from atoll.shim.rootfs import RootMount, mount_root, unmount_root
from atoll.shim.shim import Shim
from atoll.shim.task import TaskService

READY = "SANDBOX_READY"
NOTREADY = "SANDBOX_NOTREADY"
KILLED_TIMEOUT_S = 10.0
STOP_TIMEOUT_LIMIT_S = 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRequest:
    """What a pod is asked to be; every path absolute.

    `cgroup` is the parent of its containers' cgroups, empty for none; `owns_cgroup`: nobody else uses it.
    """

    id: str
    bundle: Path
    config: PodConfig
    netns: str
    files: Path
    cgroup: str
    owns_cgroup: bool
    rootfs: tuple[RootMount, ...] = ()


class Pod:
    """One pod; `exited` is set when it has ended, whoever ended it."""

    def __init__(self, shim: Shim, task: TaskService, request: PodRequest) -> None:
        self.id = request.id
        self.request = request
        self.created_at_ns = 0
        self.exited: Latch[SandboxExit] = Latch()
        self._shim = shim
        self._task = task
        self._namespaces = PodNamespaces.of(request.config, request.netns)
        self._sysctls = self._checked_sysctls()
        self._cgroup = PodCgroup(request.cgroup, exclusive=request.owns_cgroup) if request.cgroup else None
        self._made_cgroup = False
        self._created = False
        self._started = False
        self._holder: Holder | None = None
        linux = request.config.linux
        self._resources = PodResources(
            overhead=(linux.overhead if linux is not None else None) or NOTHING,
            resources=(linux.resources if linux is not None else None) or NOTHING,
        )
        self._annotations: Mapping[str, str] = request.config.annotations
        # How long a stop under way goes on being polite.
        self._polite: asyncio.Timeout | None = None
        self._lock = asyncio.Lock()

    def _checked_sysctls(self) -> dict[str, str]:
        linux = self.request.config.linux
        spaces = self._namespaces
        asked = pod_sysctls.checked(
            linux.sysctls if linux is not None else {}, network=spaces.network, ipc=spaces.ipc, uts=spaces.uts
        )
        return pod_sysctls.with_defaults(asked, network=spaces.network, users=spaces.users is not None)

    @property
    def pid(self) -> int:
        """The process that stands for the pod; 0 before its start and after its end."""
        if self._holder is None or not self._started or self.exited.is_set:
            return 0
        return self._holder.pid

    @property
    def state(self) -> str:
        return READY if self._started and not self.exited.is_set else NOTREADY

    @property
    def is_nothing(self) -> bool:
        """Whether its creation failed without a trace, so that another may be asked for."""
        return not self._created

    def cgroup_folders(self) -> tuple[Path, ...]:
        """The pod's cgroup, for its metrics; none where it has none."""
        return self._cgroup.folders if self._cgroup is not None else ()

    # create

    async def create(self) -> None:
        """Acquire everything; repeated, it does nothing. A failure is undone."""
        async with self._lock:
            if self._created:
                return
            try:
                await self._acquire()
            except (errors.AtollError, OSError) as error:
                raise self._failed("create", error, await self._release()) from error
            self._created = True
            self._task.has_sandbox = True
            self.created_at_ns = time.time_ns()

    async def _acquire(self) -> None:
        request, spaces = self.request, self._namespaces
        spaces.require_network()
        faults.reached("shim pod/record")
        self._write_record()
        faults.reached("shim pod/cgroup")
        if self._cgroup is not None and not self._cgroup.is_slice and not self._cgroup.exists():
            self._made_cgroup = True
            self._write_record()
            self._cgroup.create(request.config.linux)
        elif self._cgroup is not None and self._cgroup.is_made:  # by another pod, which may go before this one
            self._made_cgroup = True
        faults.reached("shim pod/files")
        pod_files.create(request.files, request.config, shm=spaces.ipc)
        pod_links.make(request.bundle, request.files)
        if request.rootfs:
            mount_root(request.rootfs, request.bundle / "rootfs")
        faults.reached("shim pod/holder")
        self._holder = await self._shim.holders.start(
            spaces, hostname=request.config.hostname, sysctls=self._sysctls, bundle=request.bundle
        )
        faults.reached("shim pod/holder:done")
        self._write_record()
        self._holder.keep()
        self._holder.ended.add_done_callback(self._on_holder_ended)

    def _write_record(self) -> None:
        record = SandboxRecord(
            id=self.id,
            files=str(self.request.files),
            cgroup=self._cgroup.path if self._cgroup is not None and self._made_cgroup else "",
            has_rootfs=bool(self.request.rootfs),
            holder=self._holder.id if self._holder is not None else None,
            exit=self.exited.value,
        )
        records.write(self.request.bundle / records.SANDBOX, record)

    def _failed(self, operation: str, error: Exception, left: list[str]) -> errors.AtollError:
        code = error.code if isinstance(error, errors.AtollError) else errors.Internal.code
        message = f"sandbox {self.id}: {operation}: {error}"
        if left:
            message += f"; left behind: {', '.join(left)}"
        return errors.from_status(code, message)

    # start

    async def start(self) -> None:
        """Make the pod ready: its pid stands for it from now on; repeated, it does nothing."""
        async with self._lock:
            if self.exited.is_set:
                raise errors.FailedPrecondition(f"sandbox {self.id}: has ended")
            if not self._created:
                raise errors.FailedPrecondition(f"sandbox {self.id}: is not created")
            self._started = True

    def _on_holder_ended(self, ended: asyncio.Future[Exit]) -> None:
        exit_ = ended.result()
        if self._created and not self._shim.is_killed:
            self._settle(SandboxExit(exit_status=exit_.status, exited_at_ns=exit_.at_ns))

    def _settle(self, ended: SandboxExit) -> None:
        if self.exited.set(ended):
            try:
                self._write_record()
            except OSError as error:
                log.error("sandbox exit not recorded: %s", error)
            log.info("sandbox ended status=%d", ended.exit_status)

    # stop

    async def stop(self, *, timeout_s: float) -> None:
        """End every process of the pod: SIGTERM and `timeout_s` seconds, then SIGKILL. Repeated, it does nothing.

        Raises `DeadlineExceeded` naming what survives SIGKILL for `KILLED_TIMEOUT_S`.
        """
        self._hasten(timeout_s)
        async with self._lock:
            await self._stop(min(timeout_s, STOP_TIMEOUT_LIMIT_S))

    def _hasten(self, timeout_s: float) -> None:
        """Let a stop under way be polite for `timeout_s` at most from now on."""
        if self._polite is not None and not self._polite.expired():
            now = asyncio.get_running_loop().time()
            self._polite.reschedule(min(self._polite.when() or now, now + timeout_s))

    async def _stop(self, timeout_s: float) -> None:
        running = [container for container in self._task.containers if not container.init.exited.is_set]
        if running and timeout_s > 0:
            for container in running:
                await _signal(container, signal.SIGTERM)
            self._task.freezer.thaw()  # the first that they see of it is the signal
            await self._end_politely(running, timeout_s)
        for container in running:
            await _signal(container, signal.SIGKILL)
        self._task.freezer.thaw()
        if self._cgroup is not None and self._cgroup.exclusive:
            self._cgroup.kill()
        if self._created and not self._started:
            self._settle(SandboxExit(exit_status=0, exited_at_ns=time.time_ns()))
        if self._holder is not None and self._namespaces.pid:
            self._holder.kill()
        survivors = await _all_ended(running, KILLED_TIMEOUT_S)
        if survivors:
            names = ", ".join(container.id for container in survivors)
            raise errors.DeadlineExceeded(f"sandbox {self.id}: survive SIGKILL for {KILLED_TIMEOUT_S:g} s: {names}")
        if self._created and not self._namespaces.pid:
            self._settle(SandboxExit(exit_status=0, exited_at_ns=time.time_ns()))
        await self._end_holder()

    async def _end_politely(self, running: list[Container], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s) as self._polite:
                await _ends_of(running)
        except TimeoutError:
            log.debug("containers outlive the %g s of a polite stop", timeout_s)
        finally:
            self._polite = None

    async def let_go(self) -> None:
        """End the holder and nothing else; what the pod is made of is left to whoever reads its record."""
        if self._holder is not None:
            self._holder.kill()
            if self._namespaces.pid:
                # Its end is that of all in its pid namespace, and waits for them (zap_pid_ns_processes in the kernel).
                self._task.freezer.thaw()
            await asyncio.wait({self._holder.ended}, timeout=KILLED_TIMEOUT_S)

    async def _end_holder(self) -> None:
        """Let the namespaces go: the network's, and the link in it, lives as long as a process in it."""
        if self._holder is None:
            return
        self._holder.kill()
        await asyncio.wait({self._holder.ended}, timeout=KILLED_TIMEOUT_S)
        if not self._holder.ended.done():
            raise errors.DeadlineExceeded(
                f"sandbox {self.id}: its holder {self._holder.pid} survives SIGKILL for {KILLED_TIMEOUT_S:g} s"
            )

    # changes

    async def pause(self) -> None:
        """Stop every process of the pod where it is; repeated, it does nothing. Errors as `Freezer.freeze`."""
        async with self._lock:
            self._require_running("pause")
            assert self._holder is not None
            await self._task.freezer.freeze(lambda: self._task.running, self._holder.pid)

    async def resume(self) -> None:
        """Let them go on; repeated, it does nothing."""
        async with self._lock:
            self._require_running("resume")
            self._task.freezer.thaw()

    def _require_running(self, operation: str) -> None:
        if self.state != READY:
            raise errors.FailedPrecondition(f"sandbox {self.id}: is not running, cannot {operation}")

    async def update(
        self, spec: Resources | None, update: UpdatedResources | None, annotations: own_pb2.Annotations
    ) -> None:
        """Change the limits of its cgroup, all of them or nothing, and what is told of its annotations.

        Raises `FailedPrecondition` for a pod that has ended and for one that has no cgroup, and as `PodCgroup.apply`.
        """
        async with self._lock:
            if self.exited.is_set:
                raise errors.FailedPrecondition(f"sandbox {self.id}: has ended, cannot update")
            changed = self._resources.updated(spec, update)
            if changed.limits != Limits():
                if self._cgroup is None:
                    raise errors.FailedPrecondition(f"sandbox {self.id}: has no cgroup, so it cannot be limited")
                self._cgroup.apply(changed.limits)
            self._resources = changed
            kept = {} if annotations.all else dict(self._annotations)
            for key in annotations.removed:
                kept.pop(key, None)
            self._annotations = {**kept, **annotations.values}

    # shutdown

    async def shutdown(self) -> None:
        """Stop the pod and give everything back; raises `Internal` naming what is left, and can be tried again."""
        self._hasten(0)
        async with self._lock:
            await self._stop(0)
            left: list[str] = []
            for container in self._task.containers:
                try:
                    await container.destroy()
                    self._task.forget(container)
                except (errors.AtollError, OSError) as error:
                    left.append(f"container {container.id} ({error})")
            left += await self._release()
            if left:
                raise errors.Internal(f"sandbox {self.id}: left behind: {', '.join(left)}")
            self._created = False
            self._task.has_sandbox = False

    async def _release(self) -> list[str]:
        """Undo `_acquire`, every step whatever the others do; what could not be undone."""
        left: list[str] = []
        request = self.request
        with _noting(left, "holder"):
            await self._end_holder()
            self._holder = None
        with _noting(left, "root filesystem"):
            if request.rootfs:
                unmount_root(request.bundle / "rootfs")
        with _noting(left, "pod files"):
            pod_links.remove(request.bundle, request.files)
            pod_files.remove(request.files)
        with _noting(left, "cgroup"):
            if self._cgroup is not None and self._made_cgroup:
                await self._cgroup.remove()
                self._made_cgroup = False
        if not left:
            with _noting(left, "record"):
                (request.bundle / records.SANDBOX).unlink(missing_ok=True)
        return left

    # questions

    def info(self) -> SandboxInfo:
        """What a verbose status tells, but for what only the sandbox's record has."""
        netns = self.request.netns
        return SandboxInfo(
            pid=self.pid,
            process_status=self._process_status(),
            net_namespace_closed=bool(netns) and not os.path.exists(netns),
            config=self.request.config,
            runtime_spec=msgspec.Raw(self.spec()),
            overhead=self._resources.overhead,
            resources=self._resources.resources,
            annotations=self._annotations,
            shim_pid=os.getpid(),
            files=str(self.request.files),
            cgroup=self._cgroup.path if self._cgroup is not None else "",
            netns=netns,
            containers=tuple(container.id for container in self._task.containers),
        )

    def _process_status(self) -> str:
        if self.state != READY:
            return "stopped" if self.exited.is_set else "created"
        return "paused" if self._task.freezer.is_frozen else "running"

    def spec(self) -> bytes:
        """The pod as a runtime spec, for clients that want one: its namespaces, sysctls and annotations."""
        spaces = self._namespaces
        namespaces: list[dict[str, str]] = []
        if spaces.network:
            namespaces.append({"type": "network", "path": spaces.netns})
        for kind, own in (("uts", spaces.uts), ("ipc", spaces.ipc), ("pid", spaces.pid)):
            if own:
                namespaces.append({"type": kind, "path": f"/proc/{self.pid}/ns/{kind}"})
        document = {
            "ociVersion": "1.0.2",
            "hostname": self.request.config.hostname if spaces.uts else "",
            "annotations": self._annotations,
            "linux": {"namespaces": namespaces, "sysctl": self._sysctls, "cgroupsPath": self.request.cgroup},
        }
        return msgspec.json.encode(document)


async def _signal(container: Container, number: int) -> None:
    with contextlib.suppress(errors.NotFound, errors.FailedPrecondition):
        await container.kill("", number, everything=False)


async def _ends_of(containers: list[Container]) -> None:
    for container in containers:
        if container.init.pid:
            await container.init.exited.wait()


async def _all_ended(containers: list[Container], timeout_s: float) -> list[Container]:
    """Wait for the inits, at most `timeout_s`; those that still run."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await _ends_of(containers)
    return [container for container in containers if container.init.pid and not container.init.exited.is_set]


@contextlib.contextmanager
def _noting(left: list[str], what: str) -> Generator[None]:
    point = f"shim undo/{what}"
    faults.reached(point, fails=False)  # what is inside cannot be left out
    try:
        yield
        faults.reached(f"{point}{faults.DONE}")
    except OSError as error:
        left.append(f"{what} {error.filename or ''} ({error.strerror})")
    except errors.AtollError as error:
        left.append(f"{what} ({error})")
