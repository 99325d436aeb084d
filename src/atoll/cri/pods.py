"""The RPCs of pods: run, stop, remove, status."""

from __future__ import annotations

import time

import msgspec

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.api.codec import to_struct
from atoll.cri import views, wanted
from atoll.engine import pod_limits
from atoll.engine.engine import Engine
from atoll.engine.pod import Pod
from atoll.oci.config import LinuxContainerResources


class Pods:
    """RPCs of pods."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: object) -> pb.RunPodSandboxResponse:
        pod = await self._engine.pods.run(wanted.pod(request.config), request.runtime_handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod.id)

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest, context: object) -> pb.StopPodSandboxResponse:
        await self._engine.pods.stop(request.pod_sandbox_id)
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: object
    ) -> pb.RemovePodSandboxResponse:
        await self._engine.pods.remove(request.pod_sandbox_id)
        return pb.RemovePodSandboxResponse()

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest, context: object
    ) -> pb.UpdatePodSandboxResourcesResponse:
        pods = self._engine.pods
        pod = pods.get(request.pod_sandbox_id)
        await pod_limits.update(
            self._engine.parts,
            pods.controller(pod),
            pod,
            overhead=_limits(request.overhead) if request.HasField("overhead") else None,
            resources=_limits(request.resources) if request.HasField("resources") else None,
        )
        return pb.UpdatePodSandboxResourcesResponse()

    async def PodSandboxStatus(
        self, request: pb.PodSandboxStatusRequest, context: object
    ) -> pb.PodSandboxStatusResponse:
        pod = self._engine.pods.get(request.pod_sandbox_id)
        answer = pb.PodSandboxStatusResponse(status=views.pod_status(pod), timestamp=time.time_ns())
        find = self._engine.parts.images.find
        answer.containers_statuses.extend(
            views.container_status(container, find) for container in self._engine.containers.list(pod.id)
        )
        if request.verbose:
            answer.info["info"] = msgspec.json.encode(_pod_info(pod)).decode()
        return answer


def _limits(asked: pb.LinuxContainerResources) -> LinuxContainerResources:
    return to_struct(LinuxContainerResources, asked)


def _pod_info(pod: Pod) -> dict[str, object]:
    """The verbose answer: what an operator asks next."""
    limits = pod_limits.resources_now(pod)
    return {
        "pid": pod.instance.pid if pod.instance is not None else 0,
        "state": str(pod.state),
        "reason": pod.reason,
        "netNamespacePath": pod.netns_path,
        "ip": pod.ip,
        "sandboxer": pod.handler.sandboxer,
        "runtimeType": pod.handler.shim,
        "taskAddress": pod.instance.address if pod.instance is not None else "",
        "config": pod.config,
        "overhead": limits.overhead,
        "resources": limits.resources,
    }
