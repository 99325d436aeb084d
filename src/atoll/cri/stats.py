"""The RPCs of resource use: of containers and pods, one, listed or streamed, in the CRI's words.

What is not counted is left out, so that nobody takes it for zero.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.api.codec import to_message
from atoll.container.store import Container
from atoll.cri import views
from atoll.cri.encoded import Encoded, batches, field, whole
from atoll.cri.lists import ITEMS, pods_named
from atoll.cri.selection import find, selected
from atoll.engine.engine import Engine
from atoll.engine.events import Event, EventType
from atoll.engine.pod import Pod
from atoll.engine.usage import ContainerUsage, PodUsage
from atoll.linux.cgroup_files import Pressure, PressureLine
from atoll.linux.cgroup_usage import Usage
from atoll.linux.netlink import LinkCounters

NS_PER_US = 1000
STATS = 1
"""The field of the answers for one pod or container."""
ATTRIBUTES = 1
LINUX = 2
CONTAINERS = 5
"""Fields of PodSandboxStats, ContainerStats and LinuxPodSandboxStats."""


class Statistics:
    """RPCs of resource use."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._mountpoint = str(engine.parts.paths.images)
        self._attributes: dict[str, bytes] = {}
        engine.parts.events.tap(self._forget)

    def _forget(self, event: Event) -> None:
        if event.type is EventType.DELETED:
            self._attributes.pop(event.container_id, None)

    # --- containers ---

    async def ContainerStats(self, request: pb.ContainerStatsRequest, context: object) -> Encoded:
        _, container = find(self._engine, request.container_id)
        return whole([field(STATS, one) for one in await self._of_containers([container], fresh=True)])

    async def ListContainerStats(self, request: pb.ListContainerStatsRequest, context: object) -> Encoded:
        return whole([field(ITEMS, one) for one in await self._listed_containers(request.filter)])

    async def StreamContainerStats(
        self, request: pb.StreamContainerStatsRequest, context: object
    ) -> AsyncGenerator[Encoded]:
        for batch in batches(field(ITEMS, one) for one in await self._listed_containers(request.filter)):
            yield batch

    async def _listed_containers(self, wanted: pb.ContainerStatsFilter) -> list[bytes]:
        labels = dict(wanted.label_selector)
        return await self._of_containers(
            [
                container
                for container in selected(self._engine, wanted.id, wanted.pod_sandbox_id)
                if self._engine.pod_of(container) is not None and views.has_labels(container.record.labels, labels)
            ]
        )

    async def _of_containers(self, wanted: list[Container], *, fresh: bool = False) -> list[bytes]:
        return [self._container(one) for one in await self._engine.usages.of_containers(wanted, fresh=fresh)]

    def _container(self, usage: ContainerUsage) -> bytes:
        """An encoded ContainerStats: who it is, which stays, and the figures."""
        figures = pb.ContainerStats()
        if usage.usage is not None:
            _fill_cpu(figures.cpu, usage.usage, usage.nano_cores, usage.at_ns)
            _fill_memory(figures.memory, usage.usage, usage.at_ns)
            _fill_swap(figures, usage.usage, usage.at_ns)
            _fill_io(figures.io, usage.usage, usage.at_ns)
        layer = figures.writable_layer
        layer.fs_id.mountpoint = self._mountpoint
        layer.timestamp = usage.at_ns
        if usage.layer is not None:
            layer.timestamp = usage.layer.at_ns
            layer.used_bytes.value = usage.layer.bytes
            layer.inodes_used.value = usage.layer.inodes
        return self._attributes_of_container(usage.container) + figures.SerializeToString()

    def _attributes_of_container(self, container: Container) -> bytes:
        known = self._attributes.get(container.id)
        if known is None:
            attributes = pb.ContainerAttributes(id=container.id)
            config = container.metadata.config
            if config is not None:
                attributes.labels.update(config.labels)
                attributes.annotations.update(config.annotations)
                if config.metadata is not None:
                    to_message(config.metadata, attributes.metadata)
            known = self._kept(container.id, attributes.SerializeToString())
        return known

    def _kept(self, owner: str, attributes: bytes) -> bytes:
        """Attributes as a field, kept for as long as their owner is there: it may have gone since it was sampled."""
        encoded = field(ATTRIBUTES, attributes)
        if self._engine.pods.find(owner) is not None or self._engine.parts.containers.has(owner):
            self._attributes[owner] = encoded
        return encoded

    # --- pods ---

    async def PodSandboxStats(self, request: pb.PodSandboxStatsRequest, context: object) -> Encoded:
        pod = self._engine.pods.get(request.pod_sandbox_id)
        if views.pod_state(pod) != pb.SANDBOX_READY:
            raise errors.FailedPrecondition(f"pod {pod.id[:13]}: is not ready, it uses nothing")
        return whole([field(STATS, one) for one in await self._of_pods([pod], fresh=True)])

    async def ListPodSandboxStats(self, request: pb.ListPodSandboxStatsRequest, context: object) -> Encoded:
        return whole([field(ITEMS, one) for one in await self._listed_pods(request.filter)])

    async def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest, context: object
    ) -> AsyncGenerator[Encoded]:
        for batch in batches(field(ITEMS, one) for one in await self._listed_pods(request.filter)):
            yield batch

    async def _listed_pods(self, wanted: pb.PodSandboxStatsFilter) -> list[bytes]:
        """Those that are ready: others use nothing."""
        labels = dict(wanted.label_selector)
        return await self._of_pods(
            [
                pod
                for pod in pods_named(self._engine, wanted.id)
                if views.pod_state(pod) == pb.SANDBOX_READY and views.has_labels(pod.config.labels, labels)
            ]
        )

    async def _of_pods(self, wanted: list[Pod], *, fresh: bool = False) -> list[bytes]:
        return [self._pod(one) for one in await self._engine.usages.of_pods(wanted, fresh=fresh)]

    def _pod(self, usage: PodUsage) -> bytes:
        """An encoded PodSandboxStats."""
        figures = pb.LinuxPodSandboxStats()
        if usage.usage is not None:
            _fill_cpu(figures.cpu, usage.usage, usage.nano_cores, usage.at_ns)
            _fill_memory(figures.memory, usage.usage, usage.at_ns)
            _fill_io(figures.io, usage.usage, usage.at_ns)
        if usage.interfaces:
            figures.network.timestamp = usage.at_ns
        for name, counters in usage.interfaces.items():
            is_default = name == usage.default_interface
            _fill_interface(
                figures.network.default_interface if is_default else figures.network.interfaces.add(), name, counters
            )
        figures.process.timestamp = usage.at_ns
        figures.process.process_count.value = usage.processes
        containers = [field(CONTAINERS, self._container(one)) for one in usage.containers]
        linux = b"".join((figures.SerializeToString(), *containers))
        return self._attributes_of_pod(usage.pod) + field(LINUX, linux)

    def _attributes_of_pod(self, pod: Pod) -> bytes:
        known = self._attributes.get(pod.id)
        if known is None:
            attributes = pb.PodSandboxAttributes(
                id=pod.id, labels=pod.config.labels, annotations=pod.config.annotations
            )
            if pod.config.metadata is not None:
                to_message(pod.config.metadata, attributes.metadata)
            known = self._kept(pod.id, attributes.SerializeToString())
        return known


def _fill_cpu(view: pb.CpuUsage, usage: Usage, nano_cores: int | None, at_ns: int) -> None:
    if usage.cpu_ns is None:
        return
    view.timestamp = at_ns
    view.usage_core_nano_seconds.value = usage.cpu_ns
    if nano_cores is not None:
        view.usage_nano_cores.value = nano_cores
    _fill_pressure(view, usage.cpu_pressure)


def _fill_memory(view: pb.MemoryUsage, usage: Usage, at_ns: int) -> None:
    memory = usage.memory
    if memory is None:
        return
    view.timestamp = at_ns
    view.usage_bytes.value = memory.usage
    view.working_set_bytes.value = memory.working_set
    view.rss_bytes.value = memory.rss
    view.page_faults.value = memory.page_faults
    view.major_page_faults.value = memory.major_page_faults
    if memory.available is not None:
        view.available_bytes.value = memory.available
    _fill_pressure(view, usage.memory_pressure)


def _fill_swap(view: pb.ContainerStats, usage: Usage, at_ns: int) -> None:
    memory = usage.memory
    if memory is None or memory.swap is None:
        return
    view.swap.timestamp = at_ns
    view.swap.swap_usage_bytes.value = memory.swap
    if memory.swap_available is not None:
        view.swap.swap_available_bytes.value = memory.swap_available


def _fill_io(view: pb.IoUsage, usage: Usage, at_ns: int) -> None:
    if usage.io_pressure is not None:
        view.timestamp = at_ns
        _fill_pressure(view, usage.io_pressure)


def _fill_pressure(view: pb.CpuUsage | pb.MemoryUsage | pb.IoUsage, pressure: Pressure | None) -> None:
    if pressure is not None:
        _fill_line(view.psi.Some, pressure.some)
        _fill_line(view.psi.Full, pressure.full)


def _fill_line(view: pb.PsiData, line: PressureLine | None) -> None:
    view.SetInParent()
    if line is not None:
        view.Total = line.total_us * NS_PER_US
        view.Avg10 = line.avg10
        view.Avg60 = line.avg60
        view.Avg300 = line.avg300


def _fill_interface(view: pb.NetworkInterfaceUsage, name: str, counters: LinkCounters) -> None:
    view.name = name
    view.rx_bytes.value = counters.rx_bytes
    view.rx_errors.value = counters.rx_errors
    view.tx_bytes.value = counters.tx_bytes
    view.tx_errors.value = counters.tx_errors
