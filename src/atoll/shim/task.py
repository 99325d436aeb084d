"""The Task service, versions 2 and 3: requests in, calls of `Container` out.

What changes a container runs to its end although its caller goes away. Every error is one of
`atoll.errors`; the server turns it into its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty

import atoll
from atoll import errors
from atoll.api import containerd_events_pb2 as events_pb2
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.api import containerd_task_types_pb2 as types_pb2
from atoll.api import containerd_task_v3_pb2 as pb
from atoll.oci import runtime as oci
from atoll.shim import metrics, runtimes, wire
from atoll.shim.container import Container, CreateOptions
from atoll.shim.freezer import Freezer
from atoll.shim.process import Process
from atoll.shim.records import ExitRecord
from atoll.shim.rootfs import RootMount
from atoll.shim.rules import Phase
from atoll.shim.shim import Shim
from atoll.shim.stdio.request import StdioRequest
from atoll.ttrpc.service import CallContext

CONTAINERS_LIMIT = 1024
KILLED_TIMEOUT_S = 1.0

T = TypeVar("T")


class TaskService:
    """The containers of this shim. Method names are the protocol's."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._containers: dict[str, Container] = {}
        # Reserved while a Create runs, so that a second one of the same id is refused at once.
        self._creating: set[str] = set()
        # Whether a sandbox keeps the shim alive although it has no container.
        self.has_sandbox = False
        self.freezer = Freezer(f"sandbox {shim.request.id}")

    @property
    def containers(self) -> tuple[Container, ...]:
        """The containers there are."""
        return tuple(self._containers.values())

    @property
    def running(self) -> tuple[Container, ...]:
        """The containers that have a process, started or not."""
        return tuple(found for found in self.containers if found.init.pid and not found.init.exited.is_set)

    def forget(self, container: Container) -> None:
        """Drop a container that was removed."""
        self._containers.pop(container.id, None)

    def container(self, container_id: str) -> Container:
        """The container of that id; `NotFound`."""
        container = self._containers.get(container_id)
        if container is None:
            raise errors.NotFound(f"container {container_id}: not found")
        return container

    async def let_go(self) -> None:
        """Close the streams of every process there is; the processes go on."""
        for container in self.containers:
            for process in (container.init, *container.execs.values()):
                await process.close(drain=False)

    def _process(self, container_id: str, exec_id: str) -> Process:
        return self.container(container_id).process(exec_id)

    # life

    async def Create(self, request: pb.CreateTaskRequest, context: CallContext) -> pb.CreateTaskResponse:
        container = await self._adding(self._create(request), f"create/{request.id}")
        return pb.CreateTaskResponse(pid=container.init.pid)

    async def _create(self, request: pb.CreateTaskRequest) -> Container:
        wire.identifier(request.id, "container id")
        if request.id in self._containers or request.id in self._creating:
            raise errors.AlreadyExists(f"container {request.id}: exists")
        if len(self._containers) >= CONTAINERS_LIMIT:
            raise errors.ResourceExhausted(f"this shim has {CONTAINERS_LIMIT} containers")
        bundle = wire.absolute(request.bundle, "bundle")
        options = runtimes.options(request.options)
        runtime, record = runtimes.choose(self._shim, request.id, options)
        container = Container(
            self._shim, runtime, _stdio(self._shim, request), bundle, _create_options(request, options)
        )
        self._creating.add(request.id)
        try:
            await container.create(
                record, lambda pid: self._shim.events.publish("/tasks/create", _created(request, pid))
            )
            self._containers[request.id] = container
        finally:
            self._creating.discard(request.id)
        return container

    async def Start(self, request: pb.StartRequest, context: CallContext) -> pb.StartResponse:
        container = self.container(request.id)
        work = container.start_exec(request.exec_id) if request.exec_id else container.start()
        return pb.StartResponse(pid=await self._adding(work, f"start/{request.id}/{request.exec_id}"))

    async def Delete(self, request: pb.DeleteRequest, context: CallContext) -> pb.DeleteResponse:
        container = self.container(request.id)
        work = container.delete_exec(request.exec_id) if request.exec_id else self._delete(container)
        record = await self._shim.own(work, name=f"delete/{request.id}/{request.exec_id}")
        return pb.DeleteResponse(
            pid=record.pid, exit_status=record.exit_status, exited_at=wire.timestamp(record.exited_at_ns)
        )

    async def _delete(self, container: Container) -> ExitRecord:
        record = await container.delete()
        self.forget(container)
        return record

    async def Exec(self, request: pb.ExecProcessRequest, context: CallContext) -> Empty:
        container = self.container(request.id)
        wire.identifier(request.exec_id, "exec id")
        with self.freezer.adding(f"exec/{request.id}/{request.exec_id}"):
            container.add_exec(_stdio(self._shim, request), request.spec.value)
        return Empty()

    async def _adding(self, work: Coroutine[None, None, T], name: str) -> T:
        """Do what adds a process or changes a container's freezer: not while everything is paused."""
        return await self._shim.own(self.freezer.guarded(work, name), name=name)

    async def Wait(self, request: pb.WaitRequest, context: CallContext) -> pb.WaitResponse:
        record = await self._process(request.id, request.exec_id).exited.wait()
        return pb.WaitResponse(exit_status=record.exit_status, exited_at=wire.timestamp(record.exited_at_ns))

    async def Shutdown(self, request: pb.ShutdownRequest, context: CallContext) -> Empty:
        if not self._containers and not self._creating and not self.has_sandbox:
            self._shim.end()
        return Empty()

    # questions

    async def State(self, request: pb.StateRequest, context: CallContext) -> pb.StateResponse:
        container = self.container(request.id)
        process = container.process(request.exec_id)
        stdio = process.request
        answer = pb.StateResponse(
            id=request.id,
            exec_id=request.exec_id,
            bundle=str(container.bundle),
            pid=process.pid,
            status=types_pb2.Status.Name(self._phase(container, process)),
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
        )
        record = process.exited.value
        if record is not None:
            answer.exit_status = record.exit_status
            answer.exited_at.CopyFrom(wire.timestamp(record.exited_at_ns))
        return answer

    def _phase(self, container: Container, process: Process) -> Phase:
        phase = container.phase_of(process)
        return Phase.PAUSED if self.freezer.is_frozen and phase is Phase.RUNNING else phase

    async def Pids(self, request: pb.PidsRequest, context: CallContext) -> pb.PidsResponse:
        answer = pb.PidsResponse()
        for pid, exec_id in self.container(request.id).pids():
            entry = answer.processes.add(pid=pid)
            if exec_id:
                entry.info.CopyFrom(wire.pack(runc_pb2.ProcessDetails(exec_id=exec_id)))
        return answer

    async def Stats(self, request: pb.StatsRequest, context: CallContext) -> pb.StatsResponse:
        container = self.container(request.id)
        return pb.StatsResponse(stats=metrics.of_cgroup(container.cgroups, f"container {request.id}"))

    async def Connect(self, request: pb.ConnectRequest, context: CallContext) -> pb.ConnectResponse:
        container = self._containers.get(request.id)
        pid = container.init.pid if container is not None else 0
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=atoll.__version__)

    # control

    async def Kill(self, request: pb.KillRequest, context: CallContext) -> Empty:
        container = self.container(request.id)
        await self._shim.own(self._kill(container, request), name=f"kill/{request.id}")
        return Empty()

    async def _kill(self, container: Container, request: pb.KillRequest) -> None:
        await container.kill(request.exec_id, request.signal, everything=request.all)
        if request.exec_id and request.signal == signal.SIGKILL and self.freezer.is_frozen:
            # It was let go to die; who freezes it before it has would keep it.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(container.exec(request.exec_id).exited.wait(), KILLED_TIMEOUT_S)
            await self.freezer.hold_again(container)

    async def Pause(self, request: pb.PauseRequest, context: CallContext) -> Empty:
        await self._adding(self.container(request.id).pause(), f"pause/{request.id}")
        return Empty()

    async def Resume(self, request: pb.ResumeRequest, context: CallContext) -> Empty:
        await self._adding(self.container(request.id).resume(), f"resume/{request.id}")
        return Empty()

    async def Update(self, request: pb.UpdateTaskRequest, context: CallContext) -> Empty:
        container = self.container(request.id)
        await self._shim.own(container.update(request.resources.value), name=f"update/{request.id}")
        return Empty()

    async def Checkpoint(self, request: pb.CheckpointTaskRequest, context: CallContext) -> Empty:
        container = self.container(request.id)
        work = container.checkpoint(_checkpoint(request, container))
        await self._adding(work, f"checkpoint/{request.id}")
        return Empty()

    async def ResizePty(self, request: pb.ResizePtyRequest, context: CallContext) -> Empty:
        stdio = self._process(request.id, request.exec_id).stdio
        if stdio is not None:
            stdio.resize(request.width, request.height)
        return Empty()

    async def CloseIO(self, request: pb.CloseIORequest, context: CallContext) -> Empty:
        stdio = self._process(request.id, request.exec_id).stdio
        if stdio is not None and request.stdin:
            stdio.close_stdin()
        return Empty()


def _stdio(shim: Shim, request: pb.CreateTaskRequest | pb.ExecProcessRequest) -> StdioRequest:
    return StdioRequest(
        id=request.id,
        exec_id=request.exec_id if isinstance(request, pb.ExecProcessRequest) else "",
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=request.stderr,
        terminal=request.terminal,
        namespace=shim.request.namespace,
    )


def _create_options(request: pb.CreateTaskRequest, options: runc_pb2.Options) -> CreateOptions:
    return CreateOptions(
        rootfs=tuple(RootMount.of(mount) for mount in request.rootfs),
        no_pivot=options.no_pivot_root,
        no_new_keyring=options.no_new_keyring,
        restore_from=wire.absolute(request.checkpoint, "checkpoint") if request.checkpoint else None,
        criu_work=wire.absolute(options.criu_work_path, "criu work path") if options.criu_work_path else None,
    )


def _created(request: pb.CreateTaskRequest, pid: int) -> events_pb2.TaskCreate:
    return events_pb2.TaskCreate(
        container_id=request.id,
        bundle=request.bundle,
        rootfs=request.rootfs,
        io=events_pb2.TaskIO(
            stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
        ),
        checkpoint=request.checkpoint,
        pid=pid,
    )


def _checkpoint(request: pb.CheckpointTaskRequest, container: Container) -> oci.CheckpointOptions:
    options = runc_pb2.CheckpointOptions()
    runtimes.unpack(request.options, options)
    return oci.CheckpointOptions(
        image=wire.absolute(request.path or options.image_path, "checkpoint path"),
        work=wire.absolute(options.work_path, "work path") if options.work_path else container.bundle / "criu",
        leave_running=not options.exit,
        tcp_established=options.open_tcp,
        external_unix_sockets=options.external_unix_sockets,
        terminal=options.terminal,
        file_locks=options.file_locks,
        empty_namespaces=tuple(options.empty_namespaces),
        cgroups_mode=options.cgroups_mode,
    )
