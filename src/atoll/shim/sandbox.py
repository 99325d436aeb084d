"""The Sandbox service: one pod, whose namespaces, files and cgroup this shim makes and is.

    (nothing) ──CreateSandbox──> CREATED ──StartSandbox──> READY ──StopSandbox, end of its init──> NOTREADY
                                    └──────────────────────┴───────────────┴──ShutdownSandbox──> the process ends

The calls may be repeated. The life of the pod itself is in `pod`.
"""

from __future__ import annotations

import time

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import containerd_runtime_sandbox_v1_pb2 as pb
from atoll.api import containerd_types_pb2 as types_pb2
from atoll.api.codec import to_struct
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.linux.host import architecture
from atoll.sandbox import annotations
from atoll.sandbox.config import PodConfig
from atoll.shim import metrics, wire
from atoll.shim.pod import Pod, PodRequest
from atoll.shim.rootfs import RootMount
from atoll.shim.shim import Shim
from atoll.shim.task import TaskService
from atoll.ttrpc.service import CallContext

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


class SandboxService:
    """The pod of this shim. Method names are the protocol's."""

    def __init__(self, shim: Shim, task: TaskService) -> None:
        self._shim = shim
        self._task = task
        self._pod: Pod | None = None

    @property
    def pod(self) -> Pod | None:
        """The pod, where there is one."""
        return None if self._pod is None or self._pod.is_nothing else self._pod

    async def let_go(self) -> None:
        """End the process that holds the pod's namespaces, if there is one."""
        if self._pod is not None:
            await self._pod.let_go()

    def _find(self, sandbox_id: str) -> Pod:
        if self._pod is None or self._pod.id != sandbox_id:
            raise errors.NotFound(f"sandbox {sandbox_id}: not found in this shim")
        return self._pod

    async def CreateSandbox(self, request: pb.CreateSandboxRequest, context: CallContext) -> pb.CreateSandboxResponse:
        if request.sandbox_id != self._shim.request.id:
            raise errors.InvalidArgument(
                f"sandbox {request.sandbox_id}: this shim was started for {self._shim.request.id}"
            )
        wanted = _pod_request(request)
        if self._pod is None or self._pod.is_nothing:
            self._pod = Pod(self._shim, self._task, wanted)
        elif self._pod.request != wanted:
            raise errors.AlreadyExists(f"sandbox {request.sandbox_id}: exists, and was asked for otherwise")
        await self._shim.own(self._pod.create(), name="sandbox/create")
        return pb.CreateSandboxResponse()

    async def StartSandbox(self, request: pb.StartSandboxRequest, context: CallContext) -> pb.StartSandboxResponse:
        pod = self._find(request.sandbox_id)
        await self._shim.own(pod.start(), name="sandbox/start")
        return pb.StartSandboxResponse(
            pid=pod.pid,
            created_at=wire.timestamp(pod.created_at_ns),
            spec=AnyMessage(type_url=SPEC_URL, value=pod.spec()),
        )

    async def Platform(self, request: pb.PlatformRequest, context: CallContext) -> pb.PlatformResponse:
        return pb.PlatformResponse(platform=types_pb2.Platform(os="linux", architecture=architecture()))

    async def StopSandbox(self, request: pb.StopSandboxRequest, context: CallContext) -> pb.StopSandboxResponse:
        pod = self._find(request.sandbox_id)
        await self._shim.own(pod.stop(timeout_s=request.timeout_secs), name="sandbox/stop")
        return pb.StopSandboxResponse()

    async def WaitSandbox(self, request: pb.WaitSandboxRequest, context: CallContext) -> pb.WaitSandboxResponse:
        ended = await self._find(request.sandbox_id).exited.wait()
        return pb.WaitSandboxResponse(exit_status=ended.exit_status, exited_at=wire.timestamp(ended.exited_at_ns))

    async def SandboxStatus(self, request: pb.SandboxStatusRequest, context: CallContext) -> pb.SandboxStatusResponse:
        pod = self._find(request.sandbox_id)
        answer = pb.SandboxStatusResponse(
            sandbox_id=pod.id,
            pid=pod.pid,
            state=pod.state,
            created_at=wire.timestamp(pod.created_at_ns),
        )
        ended = pod.exited.value
        if ended is not None:
            answer.exited_at.CopyFrom(wire.timestamp(ended.exited_at_ns))
        if request.verbose:
            answer.info.update(pod.info().encode())
        return answer

    async def PingSandbox(self, request: pb.PingRequest, context: CallContext) -> pb.PingResponse:
        self._find(request.sandbox_id)
        return pb.PingResponse()

    async def ShutdownSandbox(
        self, request: pb.ShutdownSandboxRequest, context: CallContext
    ) -> pb.ShutdownSandboxResponse:
        if self._pod is not None:
            await self._shim.own(self._find(request.sandbox_id).shutdown(), name="sandbox/shutdown")
        self._shim.end()
        return pb.ShutdownSandboxResponse()

    async def SandboxMetrics(
        self, request: pb.SandboxMetricsRequest, context: CallContext
    ) -> pb.SandboxMetricsResponse:
        pod = self._find(request.sandbox_id)
        folders = pod.cgroup_folders()
        if any(folder.is_dir() for folder in folders):
            data = metrics.of_cgroup(folders, f"sandbox {pod.id}")
        else:
            data = metrics.of_cgroups(container.cgroups for container in self._task.running)
        found = types_pb2.Metric(timestamp=wire.timestamp(time.time_ns()), id=pod.id, data=data)
        return pb.SandboxMetricsResponse(metrics=found)


def _pod_request(request: pb.CreateSandboxRequest) -> PodRequest:
    wire.identifier(request.sandbox_id, "sandbox id")
    bundle = wire.absolute(request.bundle_path, "bundle path")
    config = PodSandboxConfig()
    if request.HasField("options") and request.options.type_url:
        if wire.type_name(request.options) != config.DESCRIPTOR.full_name:
            raise errors.InvalidArgument(
                f"sandbox options {request.options.type_url}: must be a {config.DESCRIPTOR.full_name}"
            )
        try:
            config.ParseFromString(request.options.value)
        except DecodeError as error:
            raise errors.InvalidArgument(f"sandbox options: cannot be decoded: {error}") from error
    pod = annotations.with_asked(to_struct(PodConfig, config), request.annotations)
    netns = wire.absolute(request.netns_path, "network namespace") if request.netns_path else None
    files = request.annotations.get(annotations.FILES, "")
    own_cgroup = request.annotations.get(annotations.CGROUP, "")
    return PodRequest(
        id=request.sandbox_id,
        bundle=bundle,
        config=pod,
        netns=str(netns or ""),
        files=wire.absolute(files, annotations.FILES) if files else bundle / "files",
        cgroup=own_cgroup or pod.cgroup_parent,
        owns_cgroup=bool(own_cgroup),
        rootfs=tuple(RootMount.of(mount) for mount in request.rootfs),
    )
