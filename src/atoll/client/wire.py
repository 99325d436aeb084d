"""The daemon's gRPC services as typed methods, and the one place where gRPC's errors become ours.

`Method` is one row of a service; `Wire` is one connection. Deadlines are seconds. A status that
the daemon sent keeps its kind and text; a connection that is not there or broke is `Unavailable`
with a text that says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from atoll import errors
from atoll.api import atoll_files_v1_pb2 as files_pb
from atoll.api import atoll_processes_v1_pb2 as processes_pb
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

MAX_MESSAGE_BYTES = 64 << 20
CONNECT_TIMEOUT_S = 10.0
_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]
# How gRPC begins what it says of a connection that is not there, which no daemon of ours says.
_TRANSPORT = (
    "stream removed",
    "failed to connect to all addresses",
    "socket closed",
    "recvmsg:",
    "goaway",
    "connection reset by peer",
    "broken pipe",
    "endpoint closing",
    "received rst_stream",
    "channel is closed",
    "cancelling all calls",
)


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, A]):
    """One method of a service: its gRPC path and its messages."""

    service: str
    name: str
    request: type[Q]
    response: type[A]

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


_RUNTIME = "runtime.v1.RuntimeService"
_IMAGE = "runtime.v1.ImageService"
_OWN = "atoll.v1.Runtime"

VERSION = Method(_RUNTIME, "Version", cri.VersionRequest, cri.VersionResponse)
RUN_POD = Method(_RUNTIME, "RunPodSandbox", cri.RunPodSandboxRequest, cri.RunPodSandboxResponse)
STOP_POD = Method(_RUNTIME, "StopPodSandbox", cri.StopPodSandboxRequest, cri.StopPodSandboxResponse)
REMOVE_POD = Method(_RUNTIME, "RemovePodSandbox", cri.RemovePodSandboxRequest, cri.RemovePodSandboxResponse)
POD_STATUS = Method(_RUNTIME, "PodSandboxStatus", cri.PodSandboxStatusRequest, cri.PodSandboxStatusResponse)
LIST_PODS = Method(_RUNTIME, "ListPodSandbox", cri.ListPodSandboxRequest, cri.ListPodSandboxResponse)
CREATE_CONTAINER = Method(_RUNTIME, "CreateContainer", cri.CreateContainerRequest, cri.CreateContainerResponse)
START_CONTAINER = Method(_RUNTIME, "StartContainer", cri.StartContainerRequest, cri.StartContainerResponse)
STOP_CONTAINER = Method(_RUNTIME, "StopContainer", cri.StopContainerRequest, cri.StopContainerResponse)
REMOVE_CONTAINER = Method(_RUNTIME, "RemoveContainer", cri.RemoveContainerRequest, cri.RemoveContainerResponse)
CONTAINER_STATUS = Method(_RUNTIME, "ContainerStatus", cri.ContainerStatusRequest, cri.ContainerStatusResponse)
LIST_CONTAINERS = Method(_RUNTIME, "ListContainers", cri.ListContainersRequest, cri.ListContainersResponse)
LIST_IMAGES = Method(_IMAGE, "ListImages", cri.ListImagesRequest, cri.ListImagesResponse)
IMAGE_STATUS = Method(_IMAGE, "ImageStatus", cri.ImageStatusRequest, cri.ImageStatusResponse)
REMOVE_IMAGE = Method(_IMAGE, "RemoveImage", cri.RemoveImageRequest, cri.RemoveImageResponse)
INFO = Method(_OWN, "Info", own.InfoRequest, own.InfoResponse)
EXEC = Method(_OWN, "Exec", own.ExecRequest, own.ExecResponse)
ATTACH = Method(_OWN, "Attach", own.AttachRequest, own.ExecResponse)
LOGS = Method(_OWN, "Logs", own.LogsRequest, own.LogsResponse)
WAIT = Method(_OWN, "Wait", own.WaitRequest, own.WaitResponse)
PULL = Method(_OWN, "Pull", own.PullRequest, own.PullResponse)
IMPORT = Method(_OWN, "Import", own.ImportRequest, own.ImportResponse)
PHASES = Method(_OWN, "Phases", own.PhasesRequest, own.PhasesResponse)
RELOAD = Method(_OWN, "Reload", own.ReloadRequest, own.ReloadResponse)
ABANDON = Method(_OWN, "Abandon", own.AbandonRequest, own.AbandonResponse)
_PROCESSES = "atoll.processes.v1.Processes"
PROCESS_SPAWN = Method(_PROCESSES, "Spawn", processes_pb.SpawnRequest, processes_pb.Process)
PROCESS_LIST = Method(_PROCESSES, "List", processes_pb.ListRequest, processes_pb.ListResponse)
PROCESS_GET = Method(_PROCESSES, "Get", processes_pb.ProcessRequest, processes_pb.Process)
PROCESS_FOLLOW = Method(_PROCESSES, "Follow", processes_pb.FollowRequest, processes_pb.FollowResponse)
PROCESS_WAIT = Method(_PROCESSES, "Wait", processes_pb.ProcessRequest, processes_pb.Process)
PROCESS_SIGNAL = Method(_PROCESSES, "Signal", processes_pb.SignalRequest, processes_pb.SignalResponse)
PROCESS_FORGET = Method(_PROCESSES, "Forget", processes_pb.ProcessRequest, processes_pb.ForgetResponse)
PROCESS_WRITE = Method(_PROCESSES, "Write", processes_pb.WriteRequest, processes_pb.WriteResponse)
PROCESS_CLOSE = Method(_PROCESSES, "CloseStdin", processes_pb.ProcessRequest, processes_pb.CloseStdinResponse)
PROCESS_RESIZE = Method(_PROCESSES, "Resize", processes_pb.ResizeRequest, processes_pb.ResizeResponse)
FILES_OPEN = Method("atoll.files.v1.Files", "Open", files_pb.OpenRequest, files_pb.OpenResponse)
FSCK = Method(_OWN, "Fsck", own.FsckRequest, own.FsckResponse)


class Duplex(Generic[Q, A]):
    """Both directions of one bidirectional call; `receive` is for one task alone.

    Cancelling `receive` cancels the call, as gRPC has it; `cancel` is idempotent.
    """

    def __init__(self, call: grpc.aio.StreamStreamCall[Q, A], socket: Path) -> None:
        self._call = call
        self._answers = aiter(call)
        self._socket = socket

    async def receive(self) -> A | None:
        """The next message; None at the end."""
        with translated(self._socket):
            try:
                return await anext(self._answers)
            except StopAsyncIteration:
                return None

    def cancel(self) -> None:
        self._call.cancel()


class Wire:
    """One connection to the daemon at `socket`; it reconnects by itself when the daemon comes back."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket.absolute()
        self.peer = ""
        """The name of a runtime that is none of ours: then nothing but the CRI is asked for."""
        target = "unix:" + urllib.parse.quote(str(self.socket))
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._closed = False

    async def ready(self, *, within: float = CONNECT_TIMEOUT_S) -> None:
        """Connect; `Unavailable` where nobody serves gRPC there within so many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._channel.channel_ready()
        except TimeoutError:
            raise errors.Unavailable(
                f"{self.socket}: something listens there but does not speak gRPC; is it an atoll daemon?"
            ) from None

    def _require(self, method: Method[Q, A]) -> None:
        if self.peer and not method.service.startswith("runtime.v1."):
            raise errors.Unimplemented(
                f"{self.peer} at {self.socket}: has no {method.service}.{method.name}, which only Atoll serves"
            )

    async def call(self, method: Method[Q, A], request: Q, *, timeout_s: float | None) -> A:
        """One request, one answer; `DeadlineExceeded` after `timeout_s`, `Unavailable` when the daemon goes."""
        self._require(method)
        unary: grpc.aio.UnaryUnaryMultiCallable[Q, A] = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        with translated(self.socket, f"{method.name}: no answer within {timeout_s or 0:g} s"), self._told_of_closing():
            return await unary(request, timeout=timeout_s)

    async def stream(self, method: Method[Q, A], request: Q) -> AsyncGenerator[A]:
        """One request, many answers; closing the iterator cancels the call."""
        self._require(method)
        many: grpc.aio.UnaryStreamMultiCallable[Q, A] = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        with translated(self.socket):
            call = many(request)
        try:
            with translated(self.socket), self._told_of_closing():
                async for answer in call:
                    yield answer
        finally:
            call.cancel()

    def duplex(self, method: Method[Q, A], requests: AsyncIterator[Q]) -> Duplex[Q, A]:
        """Both directions at once; the end of `requests` is the end of our side."""
        self._require(method)
        both: grpc.aio.StreamStreamMultiCallable[Q, A] = self._channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        with translated(self.socket):
            return Duplex(both(requests), self.socket)

    @contextlib.contextmanager
    def _told_of_closing(self) -> Generator[None]:
        """`Unavailable` for a call that ended with its client; gRPC tells that as a cancellation of the task."""
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise errors.Unavailable("the client was closed during the call") from None

    async def aclose(self) -> None:
        """Close the connection; calls under way raise `Unavailable`. Idempotent."""
        self._closed = True
        await self._channel.close()


@contextlib.contextmanager
def translated(socket: Path, late: str = "") -> Generator[None]:
    """Raise gRPC's errors as ours; `late` is the text where our own deadline ran out."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, socket, late) from None
    except grpc.aio.UsageError as error:
        raise errors.Unavailable(f"the client is closed: {error}") from None


def from_rpc_error(error: grpc.aio.AioRpcError, socket: Path, late: str = "") -> errors.AtollError:
    """The error that a failed call stands for."""
    code: int = error.code().value[0]
    details = error.details() or ""
    lowered = details.lower()
    # A server that stops cancels what it serves, with the name of the status for a text.
    if (code in (1, 2, 13, 14) and lowered.startswith(_TRANSPORT)) or (code == 1 and details in ("", "CANCELLED")):
        return gone(socket, broke=not lowered.startswith("failed to connect"))
    if code == errors.Unimplemented.code and (
        details in ("Method not found!", "") or lowered.startswith(("unknown method", "unknown service"))
    ):
        return errors.Unimplemented(f"{socket}: the runtime there does not serve this; is it an atoll of this version?")
    if code == errors.DeadlineExceeded.code and details in ("Deadline Exceeded", "") and late:
        return errors.DeadlineExceeded(late)
    return errors.from_status(code, details or f"the daemon at {socket} said no more than {error.code().name}")


def gone(socket: Path, *, broke: bool) -> errors.Unavailable:
    """The error for a daemon that went away in the middle (`broke`) or is not there."""
    if broke:
        return errors.Unavailable(
            f"the daemon at {socket} went away during the call; what runs goes on without it: "
            "start it (`atoll serve`) and try again"
        )
    return errors.Unavailable(
        f"no daemon answers at {socket}; start one (`atoll serve`) or name its socket (--socket, ATOLL_SOCKET)"
    )
