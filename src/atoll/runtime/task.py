"""The Task service of a shim, in our words: one client for versions 2 and 3.

The messages of both versions are the same under other names, so version 3's are sent to either.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import TypeVar

from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import Message

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc_wire
from atoll.api import containerd_task_v3_pb2 as wire
from atoll.sandbox.controller import ExitStatus, Mount, TypedAny
from atoll.sandbox.wire import from_any, from_timestamp, to_any, to_mount
from atoll.ttrpc.client import Client
from atoll.ttrpc.service import NAMESPACE_KEY

M = TypeVar("M", bound=Message)

PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
DETAILS = runc_wire.ProcessDetails.DESCRIPTOR.full_name
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
CREATE_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 30.0
STATE_TIMEOUT_S = 2.0
DELETE_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 5.0
SHUTDOWN_TIMEOUT_S = 3.0


class TaskStatus(IntEnum):
    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioPaths:
    """Where a process's stdio goes: '' is null, a path is a fifo, else a URI that the shim knows."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """A process as its shim sees it; `exited_at` is there once it has ended."""

    pid: int
    status: TaskStatus
    exit_status: int
    exited_at: datetime | None


class TaskClient:
    """Calls the tasks of one shim. `exec_id` empty means the container's init process.

    Errors are the shim's, with their codes; a connection that ended is `Unavailable`.
    """

    def __init__(self, client: Client, *, version: int, namespace: str) -> None:
        self._client = client
        self._service = f"containerd.task.v{version}.Task"
        self._metadata = {NAMESPACE_KEY: namespace}

    async def _call(self, method: str, request: Message, kind: type[M], timeout_s: float | None = CALL_TIMEOUT_S) -> M:
        return await self._client.call(self._service, method, request, kind, timeout=timeout_s, metadata=self._metadata)

    async def create(
        self,
        container_id: str,
        *,
        bundle: str,
        rootfs: tuple[Mount, ...],
        stdio: StdioPaths,
        options: TypedAny | None = None,
    ) -> int:
        """Make the container's init process, not yet running the command; its pid."""
        request = wire.CreateTaskRequest(
            id=container_id,
            bundle=bundle,
            rootfs=[to_mount(mount) for mount in rootfs],
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            options=None if options is None else to_any(options),
        )
        return (await self._call("Create", request, wire.CreateTaskResponse, CREATE_TIMEOUT_S)).pid

    async def start(self, container_id: str, exec_id: str = "") -> int:
        """Run the command; the pid."""
        request = wire.StartRequest(id=container_id, exec_id=exec_id)
        return (await self._call("Start", request, wire.StartResponse, CREATE_TIMEOUT_S)).pid

    async def delete(self, container_id: str, exec_id: str = "") -> ExitStatus:
        """Forget a process that is not running; how it ended."""
        request = wire.DeleteRequest(id=container_id, exec_id=exec_id)
        answer = await self._call("Delete", request, wire.DeleteResponse, DELETE_TIMEOUT_S)
        return ExitStatus(exit_status=answer.exit_status, exited_at=from_timestamp(answer.exited_at))

    async def exec(self, container_id: str, exec_id: str, *, spec: bytes, stdio: StdioPaths) -> None:
        """Register one more process; `spec` is the JSON of an OCI Process."""
        request = wire.ExecProcessRequest(
            id=container_id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=any_pb2.Any(type_url=PROCESS_URL, value=spec),
        )
        await self._call("Exec", request, empty_pb2.Empty)

    async def state(self, container_id: str, exec_id: str = "") -> TaskState:
        request = wire.StateRequest(id=container_id, exec_id=exec_id)
        answer = await self._call("State", request, wire.StateResponse, STATE_TIMEOUT_S)
        known = answer.status in set(TaskStatus)
        status = TaskStatus(answer.status) if known else TaskStatus.UNKNOWN
        return TaskState(
            pid=answer.pid,
            status=status,
            exit_status=answer.exit_status,
            # Go shims send their zero time, in the year 1, for a process that runs.
            exited_at=from_timestamp(answer.exited_at) if status is TaskStatus.STOPPED else None,
        )

    async def kill(self, container_id: str, signal: int, *, exec_id: str = "", all_processes: bool = False) -> None:
        """Send a signal; `NotFound` where the process has ended."""
        request = wire.KillRequest(id=container_id, exec_id=exec_id, signal=signal, all=all_processes)
        await self._call("Kill", request, empty_pb2.Empty)

    async def pids(self, container_id: str) -> tuple[int, ...]:
        answer = await self._call("Pids", wire.PidsRequest(id=container_id), wire.PidsResponse)
        return tuple(process.pid for process in answer.processes)

    async def exec_ids(self, container_id: str) -> tuple[str, ...]:
        """The execs that run, as far as the shim says which process is whose."""
        answer = await self._call("Pids", wire.PidsRequest(id=container_id), wire.PidsResponse)
        details = [process.info for process in answer.processes if process.info.type_url.endswith(DETAILS)]
        return tuple(found for one in details if (found := runc_wire.ProcessDetails.FromString(one.value).exec_id))

    async def pause(self, container_id: str) -> None:
        await self._call("Pause", wire.PauseRequest(id=container_id), empty_pb2.Empty)

    async def resume(self, container_id: str) -> None:
        await self._call("Resume", wire.ResumeRequest(id=container_id), empty_pb2.Empty)

    async def checkpoint(self, container_id: str, path: str, options: TypedAny | None = None) -> None:
        request = wire.CheckpointTaskRequest(
            id=container_id, path=path, options=None if options is None else to_any(options)
        )
        await self._call("Checkpoint", request, empty_pb2.Empty, CREATE_TIMEOUT_S)

    async def update(self, container_id: str, resources: bytes) -> None:
        """Change the limits; `resources` is the JSON of OCI LinuxResources."""
        value = any_pb2.Any(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", value=resources
        )
        await self._call("Update", wire.UpdateTaskRequest(id=container_id, resources=value), empty_pb2.Empty)

    async def resize_pty(self, container_id: str, *, exec_id: str = "", width: int, height: int) -> None:
        """Set the terminal's size in cells."""
        request = wire.ResizePtyRequest(id=container_id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, empty_pb2.Empty)

    async def close_io(self, container_id: str, exec_id: str = "") -> None:
        """Close the process's stdin."""
        await self._call("CloseIO", wire.CloseIORequest(id=container_id, exec_id=exec_id, stdin=True), empty_pb2.Empty)

    async def wait(self, container_id: str, exec_id: str = "") -> ExitStatus:
        """Block until the process has ended; no bound but the connection's life."""
        request = wire.WaitRequest(id=container_id, exec_id=exec_id)
        answer = await self._call("Wait", request, wire.WaitResponse, None)
        return ExitStatus(exit_status=answer.exit_status, exited_at=from_timestamp(answer.exited_at))

    async def stats(self, container_id: str) -> TypedAny:
        """Any of cgroups v1 or v2 Metrics."""
        return from_any((await self._call("Stats", wire.StatsRequest(id=container_id), wire.StatsResponse)).stats)

    async def connect(self, container_id: str) -> tuple[int, int]:
        """The pids of the shim and of the task; the latter is 0 for an unknown task."""
        request = wire.ConnectRequest(id=container_id)
        answer = await self._call("Connect", request, wire.ConnectResponse, CONNECT_TIMEOUT_S)
        return answer.shim_pid, answer.task_pid

    async def shutdown(self, container_id: str) -> None:
        """Ask the shim to end; it does where it holds no containers."""
        request = wire.ShutdownRequest(id=container_id)
        try:
            await self._call("Shutdown", request, empty_pb2.Empty, SHUTDOWN_TIMEOUT_S)
        except errors.Unavailable:
            return  # it ended before its answer arrived
