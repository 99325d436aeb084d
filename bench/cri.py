"""One CRI client for every daemon under test, blocking, and the pods and containers that are run.

They are what a kubelet asks for: RuntimeDefault seccomp for pod and container, a log folder, a memory limit
and CPU shares.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from atoll.api import cri_runtime_v1_pb2 as pb

IMAGE = "docker.io/atoll/busybox:latest"
CALL_TIMEOUT_S = 60.0
MEMORY_LIMIT_BYTES = 64 << 20
CPU_SHARES = 102

_Answer = TypeVar("_Answer", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRequest:
    """A pod's config with the runtime handler that it is to have."""

    config: pb.PodSandboxConfig
    handler: str = ""


def pod_request(
    name: str, *, logs: Path, handler: str = "", host_network: bool = False, cgroup_parent: str = ""
) -> PodRequest:
    """A pod that was never asked for before; its logs go to a folder of its own in `logs`."""
    uid = secrets.token_hex(8)
    options = pb.NamespaceOption(network=pb.NODE if host_network else pb.POD, pid=pb.CONTAINER, ipc=pb.POD)
    seccomp = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid=uid, namespace="bench", attempt=0),
        hostname="" if host_network else name,
        log_directory=str(logs / f"{name}_{uid}"),
        labels={"bench": "yes"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            security_context=pb.LinuxSandboxSecurityContext(namespace_options=options, seccomp=seccomp),
        ),
    )
    return PodRequest(config=config, handler=handler)


def container_config(command: Iterable[str] = ("sleep", "3600")) -> pb.ContainerConfig:
    options = pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.POD)
    seccomp = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main", attempt=0),
        image=pb.ImageSpec(image=IMAGE),
        command=list(command),
        log_path="main_0.log",
        linux=pb.LinuxContainerConfig(
            resources=pb.LinuxContainerResources(memory_limit_in_bytes=MEMORY_LIMIT_BYTES, cpu_shares=CPU_SHARES),
            security_context=pb.LinuxContainerSecurityContext(namespace_options=options, seccomp=seccomp),
        ),
    )


class Cri:
    """The calls of runtime.v1 that are measured; a context, for it holds a connection."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, method: str, request: Message, answer: type[_Answer], *, service: str = "RuntimeService") -> _Answer:
        full = f"/runtime.v1.{service}/{method}" if "." not in service else f"/{service}/{method}"
        ask = self._channel.unary_unary(
            full, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        return ask(request, timeout=CALL_TIMEOUT_S)

    def raw(self, method: str) -> Callable[[bytes], bytes]:
        """A call of bytes answered in bytes, for what is to be timed without the client's own decoding."""
        ask = self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
        return lambda request: ask(request, timeout=CALL_TIMEOUT_S)

    def future(
        self, method: str, request: Message, answer: type[_Answer], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> grpc.Future:
        """The same, under way."""
        ask = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return ask.future(request, timeout=timeout_s)

    def version(self) -> pb.VersionResponse:
        return self.call("Version", pb.VersionRequest(), pb.VersionResponse)

    def is_ready(self) -> bool:
        """Whether the runtime and its network say that they are."""
        try:
            status = self.call("Status", pb.StatusRequest(), pb.StatusResponse).status
        except grpc.RpcError:
            return False
        told = {one.type: one.status for one in status.conditions}
        return told.get("RuntimeReady", False) and told.get("NetworkReady", False)

    def has_image(self, image: str = IMAGE) -> bool:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        return self.call("ImageStatus", request, pb.ImageStatusResponse, service="ImageService").HasField("image")

    def run_pod(self, request: PodRequest) -> str:
        asked = pb.RunPodSandboxRequest(config=request.config, runtime_handler=request.handler)
        return self.call("RunPodSandbox", asked, pb.RunPodSandboxResponse).pod_sandbox_id

    def stop_pod(self, pod: str) -> None:
        self.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod), pb.StopPodSandboxResponse)

    def remove_pod(self, pod: str) -> None:
        self.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod), pb.RemovePodSandboxResponse)

    def create(self, pod: str, request: PodRequest, config: pb.ContainerConfig) -> str:
        asked = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=request.config)
        return self.call("CreateContainer", asked, pb.CreateContainerResponse).container_id

    def start(self, container: str) -> None:
        self.call("StartContainer", pb.StartContainerRequest(container_id=container), pb.StartContainerResponse)

    def stop(self, container: str, timeout_s: int = 0) -> None:
        request = pb.StopContainerRequest(container_id=container, timeout=timeout_s)
        self.call("StopContainer", request, pb.StopContainerResponse)

    def remove(self, container: str) -> None:
        self.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container), pb.RemoveContainerResponse)

    def exec_sync(self, container: str, command: Iterable[str]) -> pb.ExecSyncResponse:
        request = pb.ExecSyncRequest(container_id=container, cmd=list(command), timeout=30)
        return self.call("ExecSync", request, pb.ExecSyncResponse)

    def pods(self) -> list[pb.PodSandbox]:
        return list(self.call("ListPodSandbox", pb.ListPodSandboxRequest(), pb.ListPodSandboxResponse).items)

    def container_status(self, container: str) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=container)
        return self.call("ContainerStatus", request, pb.ContainerStatusResponse).status

    def container_info(self, container: str) -> dict[str, Any]:
        """What the runtime tells about it besides the protocol, as JSON."""
        asked = pb.ContainerStatusRequest(container_id=container, verbose=True)
        return json.loads(self.call("ContainerStatus", asked, pb.ContainerStatusResponse).info["info"])

    def remove_all(self) -> None:
        """Stop and remove every pod that the daemon knows."""
        for pod in self.pods():
            self.stop_pod(pod.id)
            self.remove_pod(pod.id)
