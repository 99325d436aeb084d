"""runtime.v1.RuntimeService on the engine."""

from __future__ import annotations

import time

import msgspec

import atoll
from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.api.codec import to_struct
from atoll.container.config import ContainerConfig
from atoll.container.store import Container
from atoll.cri import stats, views
from atoll.engine.engine import Engine
from atoll.engine.execs import Cause, ExecRequest
from atoll.engine.pod import Pod
from atoll.oci.config import LinuxContainerResources
from atoll.sandbox.config import PodConfig

API_VERSION = "0.1.0"
"""Of the kubelet's runtime API; the value every CRI runtime answers."""


class RuntimeService:
    """Pods, containers, exec sync, statistics. What is not here is answered Unimplemented by gRPC."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Version(self, request: pb.VersionRequest, context: object) -> pb.VersionResponse:
        return pb.VersionResponse(
            version=API_VERSION,
            runtime_name="atoll",
            runtime_version=atoll.__version__,
            runtime_api_version="v1",
        )

    async def Status(self, request: pb.StatusRequest, context: object) -> pb.StatusResponse:
        parts = self._engine.parts
        network = await parts.network.status()
        answer = pb.StatusResponse()
        problem = parts.problems.get(parts.config.default_runtime, "")
        answer.status.conditions.add(
            type="RuntimeReady", status=not problem, reason="OCIRuntimeNotReady" if problem else "", message=problem
        )
        answer.status.conditions.add(
            type="NetworkReady", status=network.ready, reason=network.reason, message=network.message
        )
        answer.features.supplemental_groups_policy = True
        config = parts.config
        for name in ("", *sorted(config.runtimes)):
            features = parts.features[name or config.default_runtime]
            answer.runtime_handlers.add(
                name=name,
                features=pb.RuntimeHandlerFeatures(recursive_read_only_mounts=features.recursive_read_only),
            )
        if request.verbose:
            answer.info["config"] = msgspec.json.encode(config).decode()
        return answer

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, context: object) -> pb.RuntimeConfigResponse:
        config = self._engine.parts.config
        systemd = config.runtimes[config.default_runtime].systemd_cgroup
        return pb.RuntimeConfigResponse(
            linux=pb.LinuxRuntimeConfiguration(cgroup_driver=pb.SYSTEMD if systemd else pb.CGROUPFS)
        )

    # --- pods ---

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: object) -> pb.RunPodSandboxResponse:
        pod = await self._engine.pods.run(to_struct(PodConfig, request.config), request.runtime_handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod.id)

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest, context: object) -> pb.StopPodSandboxResponse:
        await self._engine.pods.stop(request.pod_sandbox_id)
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: object
    ) -> pb.RemovePodSandboxResponse:
        await self._engine.pods.remove(request.pod_sandbox_id)
        return pb.RemovePodSandboxResponse()

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

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest, context: object) -> pb.ListPodSandboxResponse:
        wanted = request.filter
        pods = self._engine.pods.list()
        if wanted.id:
            try:
                pods = (self._engine.pods.get(wanted.id),)
            except (errors.NotFound, errors.InvalidArgument):
                pods = ()
        return pb.ListPodSandboxResponse(
            items=[
                views.pod_item(pod)
                for pod in pods
                if (not wanted.HasField("state") or views.pod_state(pod) == wanted.state.state)
                and views.has_labels(pod.config.labels, wanted.label_selector)
            ]
        )

    # --- containers ---

    def _container(self, container_id: str) -> tuple[Pod, Container]:
        container = self._engine.containers.get(container_id)
        return self._engine.pods.get(container.sandbox_id), container

    async def CreateContainer(self, request: pb.CreateContainerRequest, context: object) -> pb.CreateContainerResponse:
        pod = self._engine.pods.get(request.pod_sandbox_id)
        container = await self._engine.containers.create(pod, to_struct(ContainerConfig, request.config))
        return pb.CreateContainerResponse(container_id=container.id)

    async def StartContainer(self, request: pb.StartContainerRequest, context: object) -> pb.StartContainerResponse:
        pod, container = self._container(request.container_id)
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

    async def ListContainers(self, request: pb.ListContainersRequest, context: object) -> pb.ListContainersResponse:
        wanted = request.filter
        return pb.ListContainersResponse(
            containers=[
                views.container_item(container)
                for container in self._selected(wanted.id, wanted.pod_sandbox_id)
                if (
                    not wanted.HasField("state")
                    or views.CONTAINER_STATES[container.status.get().state] == wanted.state.state
                )
                and views.has_labels(container.record.labels, wanted.label_selector)
            ]
        )

    def _selected(self, container_id: str, pod_id: str) -> tuple[Container, ...]:
        """By IDs or unique prefixes; what names nothing selects nothing."""
        try:
            pod = self._engine.pods.get(pod_id).id if pod_id else None
            if not container_id:
                return self._engine.containers.list(pod)
            container = self._engine.containers.get(container_id)
        except (errors.NotFound, errors.InvalidArgument):
            return ()
        return (container,) if pod in (None, container.sandbox_id) else ()

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
        pod, container = self._container(request.container_id)
        await self._engine.containers.update(pod, container, to_struct(LinuxContainerResources, request.linux))
        return pb.UpdateContainerResourcesResponse()

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest, context: object
    ) -> pb.ReopenContainerLogResponse:
        pod, container = self._container(request.container_id)
        await self._engine.containers.reopen_log(pod, container)
        return pb.ReopenContainerLogResponse()

    async def ExecSync(self, request: pb.ExecSyncRequest, context: object) -> pb.ExecSyncResponse:
        pod, container = self._container(request.container_id)
        asked = ExecRequest(command=tuple(request.cmd), timeout_s=float(max(request.timeout, 0)))
        result = await self._engine.execs.sync(pod, container, asked)
        if result.cause is Cause.TIMED_OUT:
            raise errors.DeadlineExceeded(f"exec in {container.id[:13]}: timeout {request.timeout}s exceeded")
        return pb.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit.exit_status)

    # --- statistics ---

    async def ContainerStats(self, request: pb.ContainerStatsRequest, context: object) -> pb.ContainerStatsResponse:
        pod, container = self._container(request.container_id)
        return pb.ContainerStatsResponse(stats=await stats.of_container(self._engine, pod, container))

    async def ListContainerStats(
        self, request: pb.ListContainerStatsRequest, context: object
    ) -> pb.ListContainerStatsResponse:
        wanted = request.filter
        answer = pb.ListContainerStatsResponse()
        for container in self._selected(wanted.id, wanted.pod_sandbox_id):
            # Read one by one: a pod may have gone since the list was made.
            pod = self._engine.pod_of(container)
            if pod is not None and views.has_labels(container.record.labels, wanted.label_selector):
                answer.stats.append(await stats.of_container(self._engine, pod, container))
        return answer


def _pod_info(pod: Pod) -> dict[str, object]:
    """The verbose answer: what an operator asks next."""
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
    }
