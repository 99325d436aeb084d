"""What plugins of NRI see of the engine and may ask of it beside their answers: the list, updates, evictions."""

from __future__ import annotations

import logging

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine import container_limits
from atoll.engine import nri_views as views
from atoll.engine.containers import Containers
from atoll.engine.parts import Parts
from atoll.engine.pods import Pods
from atoll.sandbox.controller import State as PodState

log = logging.getLogger(__name__)

LISTED = (State.CREATED, State.RUNNING)


class NriRuntime:
    """The pods and containers of one engine; `atoll.nri.plugins.Runtime`."""

    def __init__(self, parts: Parts, pods: Pods, containers: Containers) -> None:
        self._parts = parts
        self._pods = pods
        self._containers = containers

    async def listed(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        """Pods of which it is known what they are, and containers that are created or run."""
        pods = [self._parts.nri.pod(pod) for pod in self._pods.list() if pod.state is not PodState.UNKNOWN]
        known = {pod.id for pod in pods}
        found = [one for one in self._containers.list() if one.status.get().state in LISTED and one.sandbox_id in known]
        return pods, await self._parts.blocking.run(_messages, found)

    async def update(self, plugin: str, updates: list[pb.ContainerUpdate]) -> list[pb.ContainerUpdate]:
        failed: list[pb.ContainerUpdate] = []
        for update in updates:
            try:
                container = self._containers.get(update.container_id)
                pod = self._pods.get(container.sandbox_id)
                await container_limits.change(self._parts, pod, container, update.linux.resources)
            except errors.AtollError as error:
                log.warning(
                    "nri: %s: limits of container %s: %s", plugin or "an answer", update.container_id[:13], error
                )
                failed.append(update)
        return failed

    async def evict(self, plugin: str, evictions: list[pb.ContainerEviction]) -> None:
        for eviction in evictions:
            log.warning(
                "nri: %s evicts container %s: %s", plugin or "an answer", eviction.container_id[:13], eviction.reason
            )
            self._parts.owner.spawn(self._evict(eviction.container_id), name=f"container/{eviction.container_id}/evict")

    async def _evict(self, container_id: str) -> None:
        try:
            container = self._containers.get(container_id)
            await self._containers.stop(self._pods.find(container.sandbox_id), container.id, 0.0)
        except errors.AtollError as error:
            log.error("nri: container %s: is not evicted: %s", container_id[:13], error)


def _messages(found: list[Container]) -> list[pb.Container]:
    return [views.container_message(one) for one in found]
