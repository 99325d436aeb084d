"""The RPCs of metrics: their descriptors, and their values for every ready pod, at once or as a stream.

A value is a whole number, so times are in whole seconds. What a host does not count is left out.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.container.store import Container
from atoll.cri import views
from atoll.cri.encoded import Encoded, batches, field, whole
from atoll.cri.lists import ITEMS
from atoll.cri.metric_names import BASE_KEYS, DESCRIPTORS
from atoll.engine.engine import Engine
from atoll.engine.events import Event, EventType
from atoll.engine.usage import ContainerDetails, ContainerUsage, PodUsage
from atoll.linux.cgroup_details import Details
from atoll.linux.cgroup_files import Pressure
from atoll.linux.cgroup_usage import Usage
from atoll.linux.held import Held
from atoll.linux.netlink import LinkCounters
from atoll.oci import spec as oci

NS_PER_S = 1_000_000_000
US_PER_S = 1_000_000
POD_ID, POD_METRICS, CONTAINER_METRICS = 1, 2, 3
CONTAINER_ID, METRICS = 1, 2
"""Fields of PodSandboxMetrics and of ContainerMetrics."""
LOOPBACK = "lo"


class Writer:
    """The encoded metrics of one container or pod, whose labels stay as they are."""

    def __init__(self, *labels: str) -> None:
        """`labels` are the values of `BASE_KEYS`."""
        self._labels = labels
        self._heads: dict[tuple[str, tuple[str, ...]], bytes] = {}
        self._found: list[bytes] = []

    def add(self, name: str, value: int | None, *more: str) -> None:
        """One value, with the labels that only this metric has; nothing where it is not known."""
        if value is None:
            return
        head = self._heads.get((name, more))
        if head is None:
            metric = pb.Metric(name=name, metric_type=DESCRIPTORS[name].kind, label_values=(*self._labels, *more))
            head = self._heads[name, more] = metric.SerializeToString()
        self._found.append(head + pb.Metric(value=pb.UInt64Value(value=value)).SerializeToString())

    def take(self, number: int) -> bytes:
        """What was added since the last time, each as a field of this number."""
        found, self._found = self._found, []
        return b"".join(field(number, one) for one in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Disk:
    """The file system of the writable layers."""

    device: str
    size: int
    inodes: int
    free_inodes: int


@dataclass(slots=True, kw_only=True)
class _Known:
    """What stays of a container from one time to the next."""

    writer: Writer
    spec: bytes
    resources: oci.Resources


class Metrics:
    """RPCs of metrics."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pods: dict[str, Writer] = {}
        self._containers: dict[str, _Known] = {}
        engine.parts.events.tap(self._forget)

    def _forget(self, event: Event) -> None:
        if event.type in (EventType.STOPPED, EventType.DELETED):
            self._pods.pop(event.container_id, None)
            self._containers.pop(event.container_id, None)

    async def ListMetricDescriptors(
        self, request: pb.ListMetricDescriptorsRequest, context: object
    ) -> pb.ListMetricDescriptorsResponse:
        return pb.ListMetricDescriptorsResponse(
            descriptors=[
                pb.MetricDescriptor(name=name, help=one.help, label_keys=(*BASE_KEYS, *one.keys))
                for name, one in DESCRIPTORS.items()
            ]
        )

    async def ListPodSandboxMetrics(self, request: pb.ListPodSandboxMetricsRequest, context: object) -> Encoded:
        return whole([field(ITEMS, one) for one in await self._listed()])

    async def StreamPodSandboxMetrics(
        self, request: pb.StreamPodSandboxMetricsRequest, context: object
    ) -> AsyncGenerator[Encoded]:
        for batch in batches(field(ITEMS, one) for one in await self._listed()):
            yield batch

    async def _listed(self) -> list[bytes]:
        """Every ready pod."""
        usages = self._engine.usages
        ready = [pod for pod in self._engine.pods.list() if views.pod_state(pod) == pb.SANDBOX_READY]
        pods = await usages.of_pods(ready)
        details = await usages.details([one.container for pod in pods for one in pod.containers])
        disk = await self._engine.parts.blocking.run(_disk, str(self._engine.parts.paths.images))
        return [self._pod(pod, details, disk) for pod in pods]

    def _pod(self, pod: PodUsage, details: dict[str, ContainerDetails], disk: _Disk) -> bytes:
        writer = self._pods.get(pod.pod.id)
        if writer is None:
            writer = Writer(pod.path, pod.pod.id, "")
            if self._engine.pods.find(pod.pod.id) is not None:  # it may have gone since it was sampled
                self._pods[pod.pod.id] = writer
        for name, counters in pod.interfaces.items():
            if name != LOOPBACK:
                _add_network(writer, name, counters)
        parts = [field(POD_ID, pod.pod.id.encode()), writer.take(POD_METRICS)]
        for one in pod.containers:
            more = details.get(one.container.id)
            if more is not None:  # it has not ended meanwhile
                metrics = self._container(one, more, disk)
                parts.append(field(CONTAINER_METRICS, field(CONTAINER_ID, one.container.id.encode()) + metrics))
        return b"".join(parts)

    def _container(self, one: ContainerUsage, more: ContainerDetails, disk: _Disk) -> bytes:
        known = self._known(one.container, more)
        writer = known.writer
        if one.usage is not None:
            _add_usage(writer, one.usage)
        _add_details(writer, more.details)
        if more.held is not None:
            _add_held(writer, more.held)
        writer.add("container_processes", one.processes)
        if one.layer is not None:
            writer.add("container_fs_usage_bytes", one.layer.bytes, disk.device)
        writer.add("container_fs_limit_bytes", disk.size, disk.device)
        writer.add("container_fs_inodes_total", disk.inodes, disk.device)
        writer.add("container_fs_inodes_free", disk.free_inodes, disk.device)
        _add_resources(writer, known.resources)
        writer.add("container_start_time_seconds", one.container.status.get().started_at // NS_PER_S)
        writer.add("container_last_seen", one.at_ns // NS_PER_S)
        return writer.take(METRICS)

    def _known(self, container: Container, more: ContainerDetails) -> _Known:
        known = self._containers.get(container.id)
        document = container.record.spec
        if known is None or known.spec is not document:
            linux = oci.decode(document).linux
            resources = linux.resources if linux is not None else None
            writer = known.writer if known is not None else Writer(more.path, container.id, container.record.image)
            known = _Known(writer=writer, spec=document, resources=resources or oci.Resources())
            if self._engine.parts.containers.has(container.id):  # as for a pod
                self._containers[container.id] = known
        return known


def _add_usage(writer: Writer, usage: Usage) -> None:
    if usage.cpu_ns is not None:
        writer.add("container_cpu_usage_seconds_total", usage.cpu_ns // NS_PER_S)
    memory = usage.memory
    if memory is not None:
        writer.add("container_memory_usage_bytes", memory.usage)
        writer.add("container_memory_working_set_bytes", memory.working_set)
        writer.add("container_memory_rss", memory.rss)
        writer.add("container_memory_swap", memory.swap)
        writer.add("container_memory_failures_total", memory.page_faults, "pgfault", "hierarchy")
        writer.add("container_memory_failures_total", memory.major_page_faults, "pgmajfault", "hierarchy")
    _add_pressure(writer, "cpu", usage.cpu_pressure)
    _add_pressure(writer, "memory", usage.memory_pressure)
    _add_pressure(writer, "io", usage.io_pressure)


def _add_pressure(writer: Writer, what: str, pressure: Pressure | None) -> None:
    if pressure is not None:
        for word, line in (("waiting", pressure.some), ("stalled", pressure.full)):
            if line is not None:
                writer.add(f"container_pressure_{what}_{word}_seconds_total", line.total_us // US_PER_S)


def _add_details(writer: Writer, details: Details) -> None:
    for name, ns in (
        ("container_cpu_user_seconds_total", details.user_ns),
        ("container_cpu_system_seconds_total", details.system_ns),
        ("container_cpu_cfs_throttled_seconds_total", details.throttled_ns),
    ):
        writer.add(name, None if ns is None else ns // NS_PER_S)
    writer.add("container_cpu_cfs_periods_total", details.periods)
    writer.add("container_cpu_cfs_throttled_periods_total", details.throttled_periods)
    writer.add("container_memory_cache", details.cache)
    writer.add("container_memory_mapped_file", details.mapped)
    writer.add("container_memory_kernel_usage", details.kernel)
    writer.add("container_memory_max_usage_bytes", details.max_usage)
    writer.add("container_memory_failcnt", details.limit_hits)
    writer.add("container_oom_events_total", details.oom_kills)
    if details.own_faults is not None:
        writer.add("container_memory_failures_total", details.own_faults[0], "pgfault", "container")
        writer.add("container_memory_failures_total", details.own_faults[1], "pgmajfault", "container")
    if details.tasks is not None:
        writer.add("container_threads_max", details.max_tasks or 0)
    for size, pages in details.hugetlb.items():
        writer.add("container_hugetlb_usage_bytes", pages.usage, size)
        writer.add("container_hugetlb_max_usage_bytes", pages.max_usage, size)
    _add_devices(writer, details)


def _add_devices(writer: Writer, details: Details) -> None:
    for (major, minor), io in details.devices.items():
        device = device_name(major, minor)
        writer.add("container_fs_reads_bytes_total", io.read_bytes, device)
        writer.add("container_fs_reads_total", io.reads, device)
        writer.add("container_fs_writes_bytes_total", io.written_bytes, device)
        writer.add("container_fs_writes_total", io.writes, device)
        numbers = str(major), str(minor)
        writer.add("container_blkio_device_usage_total", io.read_bytes, device, *numbers, "Read")
        writer.add("container_blkio_device_usage_total", io.written_bytes, device, *numbers, "Write")


def _add_held(writer: Writer, held: Held) -> None:
    writer.add("container_file_descriptors", held.descriptors)
    writer.add("container_sockets", held.sockets)
    writer.add("container_threads", held.threads)
    writer.add("container_ulimits_soft", held.max_open_files, "max_open_files")


def _add_resources(writer: Writer, resources: oci.Resources) -> None:
    cpu, memory = resources.cpu or oci.CPU(), resources.memory or oci.Memory()
    writer.add("container_spec_cpu_period", cpu.period)
    writer.add("container_spec_cpu_shares", cpu.shares)
    if cpu.quota is not None and cpu.quota > 0:
        writer.add("container_spec_cpu_quota", cpu.quota)
    for name, limit in (
        ("container_spec_memory_limit_bytes", memory.limit),
        ("container_spec_memory_reservation_limit_bytes", memory.reservation),
        ("container_spec_memory_swap_limit_bytes", memory.swap),
    ):
        writer.add(name, max(limit or 0, 0))


def _add_network(writer: Writer, name: str, counters: LinkCounters) -> None:
    for way, octets, packets, dropped, faults in (
        ("receive", counters.rx_bytes, counters.rx_packets, counters.rx_dropped, counters.rx_errors),
        ("transmit", counters.tx_bytes, counters.tx_packets, counters.tx_dropped, counters.tx_errors),
    ):
        writer.add(f"container_network_{way}_bytes_total", octets, name)
        writer.add(f"container_network_{way}_packets_total", packets, name)
        writer.add(f"container_network_{way}_packets_dropped_total", dropped, name)
        writer.add(f"container_network_{way}_errors_total", faults, name)


def device_name(major: int, minor: int) -> str:
    """A block device by its file, by its numbers where it has none (sysfs(5), /sys/dev/block)."""
    try:
        return f"/dev/{Path(os.readlink(f'/sys/dev/block/{major}:{minor}')).name}"
    except OSError:
        return f"{major}:{minor}"


def _disk(path: str) -> _Disk:
    device = os.stat(path).st_dev
    found = os.statvfs(path)
    return _Disk(
        device=device_name(os.major(device), os.minor(device)),
        size=found.f_blocks * found.f_frsize,
        inodes=found.f_files,
        free_inodes=found.f_ffree,
    )
