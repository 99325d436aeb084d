"""What plugins of NRI are told of pods and containers, and what becomes of their answers.

    run a pod           RunPodSandbox before it is READY; a refusal undoes the run
    stop, remove it     StopPodSandbox when its sandbox has ended, RemovePodSandbox before its record goes
    create a container  CreateContainer adjusts the spec before it is recorded; PostCreateContainer
    start it            StartContainer between create and start of the OCI runtime; PostStartContainer
    update it           UpdateContainer may change the limits; PostUpdateContainer
    exit, remove it     StopContainer when its exit is on disk, RemoveContainer before its record goes

A refusal fails what can still be refused: run, create, start, update. Of the rest it is logged. Where no plugin wants
an event nothing is made for it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from google.protobuf.message import Message

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.container.config import ContainerConfig
from atoll.container.store import Container
from atoll.engine import nri_views as views
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.nri import adjust
from atoll.nri.merge import Updates
from atoll.nri.plugins import Plugins, Runtime
from atoll.oci import spec as oci
from atoll.oci.config import LinuxContainerResources

log = logging.getLogger(__name__)


class Nri:
    """The hooks of one daemon; without `plugins` each is a comparison. `cgroup_parent` is that of pods without one."""

    def __init__(self, plugins: Plugins | None = None, *, cgroup_parent: str = "") -> None:
        self._plugins = plugins
        self._cgroup_parent = cgroup_parent
        self._runtime: Runtime | None = None
        self._stopped: set[str] = set()

    @property
    def plugins(self) -> tuple[str, ...]:
        """The names of those that have joined, in the order in which they are asked."""
        return self._plugins.names if self._plugins is not None else ()

    async def start(self, runtime: Runtime) -> None:
        """Let plugins in: they see what there is now."""
        self._runtime = runtime
        if self._plugins is not None:
            await self._plugins.start(runtime)

    async def aclose(self) -> None:
        if self._plugins is not None:
            await self._plugins.aclose()

    def changing(self) -> AbstractAsyncContextManager[None]:
        """Around what makes or starts something, until it can be listed: no plugin joins meanwhile."""
        return contextlib.nullcontext() if self._plugins is None else self._plugins.changing()

    def wants(self, event: int) -> bool:
        """Whether a plugin subscribed to the event."""
        return self._plugins is not None and self._plugins.wants(event)

    def pod(self, pod: Pod) -> pb.PodSandbox:
        """A pod as plugins see it."""
        return views.pod_message(pod, self._cgroup_parent)

    # --- pods ---

    async def run_pod(self, pod: Pod) -> None:
        """Raises `FailedPrecondition` where a plugin refuses; those that were told are told of its end too."""
        if not self.wants(pb.RUN_POD_SANDBOX):
            return
        try:
            await self._tell(pb.RUN_POD_SANDBOX, pb.RunPodSandboxRequest(pod=self.pod(pod)), pb.RunPodSandboxResponse)
        except errors.AtollError:
            await self.stop_pod(pod)
            await self.remove_pod(pod)
            raise

    async def update_pod(
        self, pod: Pod, overhead: LinuxContainerResources | None, resources: LinuxContainerResources | None
    ) -> None:
        """Before its limits change; raises `FailedPrecondition` where a plugin refuses."""
        if self.wants(pb.UPDATE_POD_SANDBOX):
            request = pb.UpdatePodSandboxRequest(
                pod=self.pod(pod),
                overhead_linux_resources=views.limits_message(overhead),
                linux_resources=views.limits_message(resources),
            )
            await self._tell(pb.UPDATE_POD_SANDBOX, request, pb.UpdatePodSandboxResponse)

    async def updated_pod(self, pod: Pod) -> None:
        await self._note(
            pb.POST_UPDATE_POD_SANDBOX,
            lambda: pb.PostUpdatePodSandboxRequest(pod=self.pod(pod)),
            pb.PostUpdatePodSandboxResponse,
        )

    async def stop_pod(self, pod: Pod) -> None:
        """Its sandbox has ended; told once, however often it is stopped."""
        if pod.id in self._stopped or not self.wants(pb.STOP_POD_SANDBOX):
            return
        self._stopped.add(pod.id)
        await self._note(
            pb.STOP_POD_SANDBOX, lambda: pb.StopPodSandboxRequest(pod=self.pod(pod)), pb.StopPodSandboxResponse
        )

    async def remove_pod(self, pod: Pod) -> None:
        self._stopped.discard(pod.id)
        await self._note(
            pb.REMOVE_POD_SANDBOX, lambda: pb.RemovePodSandboxRequest(pod=self.pod(pod)), pb.RemovePodSandboxResponse
        )

    # --- containers ---

    async def create(
        self,
        pod: Pod,
        container_id: str,
        config: ContainerConfig,
        spec: oci.Spec,
        parts: Parts,
    ) -> oci.Spec:
        """The spec as plugins adjust it; raises where one refuses, two conflict, or this host cannot do it."""
        if not self.wants(pb.CREATE_CONTAINER) and not self.wants(pb.VALIDATE_CONTAINER_ADJUSTMENT):
            return spec
        try:
            return await self._adjusted(pod, container_id, config, spec, parts)
        except errors.AtollError:
            await self.not_created(pod, container_id, config, spec)
            raise

    async def _adjusted(
        self, pod: Pod, container_id: str, config: ContainerConfig, spec: oci.Spec, parts: Parts
    ) -> oci.Spec:
        assert self._plugins is not None
        request = pb.CreateContainerRequest(
            pod=self.pod(pod), container=views.new_container(container_id, pod.id, config, spec)
        )
        made = await self._plugins.create(request)
        place = adjust.Place(
            host=parts.host,
            runtime=parts.features[pod.handler_name],
            cdi_folders=tuple(Path(folder) for folder in parts.config.cdi.spec_dirs),
        )
        try:
            adjusted = await parts.blocking.run(adjust.apply, spec, made.adjust, place)
        except errors.AtollError as error:
            raise type(error)(f"{error}; asked for by the plugin {' or '.join(made.plugins)}") from error
        await self._apply(made.updates)
        return adjusted

    async def created(self, pod: Pod, container: Container) -> None:
        await self._note(
            pb.POST_CREATE_CONTAINER,
            lambda: pb.PostCreateContainerRequest(pod=self.pod(pod), container=views.container_message(container)),
            pb.PostCreateContainerResponse,
        )

    async def not_created(self, pod: Pod, container_id: str, config: ContainerConfig, spec: oci.Spec) -> None:
        """A creation failed after plugins had adjusted it."""
        await self._note(
            pb.REMOVE_CONTAINER,
            lambda: pb.RemoveContainerRequest(
                pod=self.pod(pod), container=views.new_container(container_id, pod.id, config, spec)
            ),
            pb.RemoveContainerResponse,
        )

    async def start_container(self, pod: Pod, container: Container, pid: int) -> None:
        """Its process is there and waits; raises `FailedPrecondition` where a plugin refuses."""
        if self.wants(pb.START_CONTAINER):
            message = views.container_message(container)
            message.pid = pid
            request = pb.StartContainerRequest(pod=self.pod(pod), container=message)
            await self._tell(pb.START_CONTAINER, request, pb.StartContainerResponse)

    async def started(self, pod: Pod, container: Container) -> None:
        await self._note(
            pb.POST_START_CONTAINER,
            lambda: pb.PostStartContainerRequest(pod=self.pod(pod), container=views.container_message(container)),
            pb.PostStartContainerResponse,
        )

    async def update(self, pod: Pod, container: Container, asked: LinuxContainerResources) -> pb.LinuxResources | None:
        """The limits that `asked` has become; None where no plugin had a say. Raises where one refuses."""
        if self._plugins is None or not self._plugins.wants(pb.UPDATE_CONTAINER):
            return None
        request = pb.UpdateContainerRequest(
            pod=self.pod(pod),
            container=views.container_message(container),
            linux_resources=views.limits_message(asked),
        )
        await self._apply(await self._plugins.update(request))
        return request.linux_resources

    async def updated(self, pod: Pod, container: Container) -> None:
        await self._note(
            pb.POST_UPDATE_CONTAINER,
            lambda: pb.PostUpdateContainerRequest(pod=self.pod(pod), container=views.container_message(container)),
            pb.PostUpdateContainerResponse,
        )

    async def stopped(self, pod: Pod, container: Container) -> None:
        """It has exited, however that came about."""
        if self._plugins is None or not self._plugins.wants(pb.STOP_CONTAINER):
            return
        request = pb.StopContainerRequest(pod=self.pod(pod), container=views.container_message(container))
        try:
            await self._apply(await self._plugins.stop(request))
        except errors.AtollError as error:
            log.warning("container %s: its end and NRI: %s", container.id[:13], error)

    async def remove(self, pod: Pod | None, container: Container) -> None:
        await self._note(
            pb.REMOVE_CONTAINER,
            lambda: pb.RemoveContainerRequest(
                pod=self.pod(pod) if pod is not None else None, container=views.container_message(container)
            ),
            pb.RemoveContainerResponse,
        )

    # --- how ---

    async def _tell(self, event: int, request: Message, answer: type[Message]) -> None:
        assert self._plugins is not None
        await self._plugins.tell(event, request, answer)

    async def _note(self, event: int, make: Callable[[], Message], answer: type[Message]) -> None:
        """Tell of what has happened already: a refusal comes too late."""
        if self.wants(event):
            try:
                await self._tell(event, make(), answer)
            except errors.AtollError as error:
                log.warning("%s", error)

    async def _apply(self, updates: Updates) -> None:
        """Change other containers as plugins asked in an answer; raises where one that must not fail does."""
        assert self._runtime is not None
        if updates.others:
            failed = await self._runtime.update("", updates.others)
            needed = [one.container_id[:13] for one in failed if not one.ignore_failure]
            if needed:
                raise errors.FailedPrecondition(f"nri: limits of other containers cannot be set: {', '.join(needed)}")
        if updates.evictions:
            await self._runtime.evict("", updates.evictions)
