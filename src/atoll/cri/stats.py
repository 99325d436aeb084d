"""A container's resource use in the CRI's words, from its cgroup and its writable layer."""

from __future__ import annotations

import time

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.api.codec import to_message
from atoll.container.status import State
from atoll.container.store import Container
from atoll.cri import views
from atoll.cri.selection import find, selected
from atoll.engine.engine import Engine
from atoll.engine.pod import Pod
from atoll.engine.usage import Usage, usage_of

UNLIMITED_BYTES = 1 << 62


class Statistics:
    """RPCs of resource use."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ContainerStats(self, request: pb.ContainerStatsRequest, context: object) -> pb.ContainerStatsResponse:
        pod, container = find(self._engine, request.container_id)
        return pb.ContainerStatsResponse(stats=await of_container(self._engine, pod, container))

    async def ListContainerStats(
        self, request: pb.ListContainerStatsRequest, context: object
    ) -> pb.ListContainerStatsResponse:
        wanted = request.filter
        answer = pb.ListContainerStatsResponse()
        for container in selected(self._engine, wanted.id, wanted.pod_sandbox_id):
            # Read one by one: a pod may have gone since the list was made.
            pod = self._engine.pod_of(container)
            if pod is not None and views.has_labels(container.record.labels, wanted.label_selector):
                answer.stats.append(await of_container(self._engine, pod, container))
        return answer


async def of_container(engine: Engine, pod: Pod, container: Container) -> pb.ContainerStats:
    """One sample; a container that does not run has no CPU and memory figures."""
    config = container.metadata.config
    answer = pb.ContainerStats()
    answer.attributes.id = container.id
    if config is not None:
        answer.attributes.labels.update(config.labels)
        answer.attributes.annotations.update(config.annotations)
        if config.metadata is not None:
            to_message(config.metadata, answer.attributes.metadata)
    now = time.time_ns()
    await _fill_layer(engine, container, answer, now)
    if container.status.get().state is State.RUNNING:
        try:
            _fill(answer, await usage_of(pod, container), now)
        except (errors.NotFound, errors.Unavailable):
            return answer
    return answer


async def _fill_layer(engine: Engine, container: Container, answer: pb.ContainerStats, now: int) -> None:
    layer = answer.writable_layer
    layer.timestamp = now
    layer.fs_id.mountpoint = str(engine.parts.paths.images)
    try:
        used = await engine.parts.snapshotter.usage(container.record.snapshot_key)
    except (errors.NotFound, errors.DataLoss):
        return
    layer.used_bytes.value = used.bytes
    layer.inodes_used.value = used.inodes


def _fill(answer: pb.ContainerStats, usage: Usage, now: int) -> None:
    answer.cpu.timestamp = answer.memory.timestamp = now
    answer.cpu.usage_core_nano_seconds.value = usage.cpu_ns
    memory = answer.memory
    memory.usage_bytes.value = usage.memory_bytes
    memory.working_set_bytes.value = usage.working_set_bytes
    memory.rss_bytes.value = usage.rss_bytes
    memory.page_faults.value = usage.page_faults
    memory.major_page_faults.value = usage.major_page_faults
    memory.available_bytes.value = (
        0 if usage.limit_bytes > UNLIMITED_BYTES else max(usage.limit_bytes - usage.working_set_bytes, 0)
    )
