"""The RPCs of containers: create, start, stop, remove, status, update, logs."""

from __future__ import annotations

import msgspec

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.api.codec import to_struct
from atoll.cri import views, wanted
from atoll.cri.selection import find
from atoll.engine.engine import Engine
from atoll.oci.config import LinuxContainerResources


class Containers:
    """RPCs of containers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def CreateContainer(self, request: pb.CreateContainerRequest, context: object) -> pb.CreateContainerResponse:
        pod = self._engine.pods.get(request.pod_sandbox_id)
        container = await self._engine.containers.create(pod, wanted.container(request.config))
        return pb.CreateContainerResponse(container_id=container.id)

    async def StartContainer(self, request: pb.StartContainerRequest, context: object) -> pb.StartContainerResponse:
        pod, container = find(self._engine, request.container_id)
        await self._engine.containers.start(pod, container.id)
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest, context: object) -> pb.StopContainerResponse:
        try:
            container = self._engine.containers.get(request.container_id)
        except errors.NotFound:
            return pb.StopContainerResponse()
        await self._engine.containers.stop(self._engine.pod_of(container), container.id, float(request.timeout))
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest, context: object) -> pb.RemoveContainerResponse:
        try:
            container = self._engine.containers.get(request.container_id)
        except errors.NotFound:
            return pb.RemoveContainerResponse()
        await self._engine.containers.remove(self._engine.pod_of(container), container.id)
        return pb.RemoveContainerResponse()

    async def ContainerStatus(self, request: pb.ContainerStatusRequest, context: object) -> pb.ContainerStatusResponse:
        container = self._engine.containers.get(request.container_id)
        answer = pb.ContainerStatusResponse(status=views.container_status(container, self._engine.parts.images.find))
        if request.verbose:
            info = {
                "sandboxID": container.sandbox_id,
                "pid": container.status.get().pid,
                "snapshotKey": container.record.snapshot_key,
                "snapshotter": "overlay",
                "runtimeSpec": msgspec.Raw(container.record.spec),
                "config": container.metadata.config,
            }
            answer.info["info"] = msgspec.json.encode(info).decode()
        return answer

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, context: object
    ) -> pb.UpdateContainerResourcesResponse:
        pod, container = find(self._engine, request.container_id)
        await self._engine.containers.update(pod, container, to_struct(LinuxContainerResources, request.linux))
        return pb.UpdateContainerResourcesResponse()

    async def CheckpointContainer(
        self, request: pb.CheckpointContainerRequest, context: object
    ) -> pb.CheckpointContainerResponse:
        pod, container = find(self._engine, request.container_id)
        timeout_s = float(max(request.timeout, 0))
        await self._engine.checkpoints.write(pod, container, request.location, timeout_s)
        return pb.CheckpointContainerResponse()

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest, context: object
    ) -> pb.ReopenContainerLogResponse:
        pod, container = find(self._engine, request.container_id)
        await self._engine.containers.reopen_log(pod, container)
        return pb.ReopenContainerLogResponse()
