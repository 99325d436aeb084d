"""What pods and containers use: sampled when somebody asks, and by nobody else.

A sample is read from the cgroup's files on a thread, all that one question wants in one go. The last ones are
remembered, so that the next can tell how much CPU was used a second; whoever asks every ten seconds hears of these ten.
A container whose cgroup is not of this host, such as one in a virtual machine, is asked about through its shim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from atoll import errors
from atoll.api import containerd_cgroups_v1_pb2 as v1
from atoll.api import containerd_cgroups_v2_pb2 as v2
from atoll.concurrency import wait_all
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine import specs
from atoll.engine.containers import Containers
from atoll.engine.events import Event, EventType
from atoll.engine.layers import Layers, LayerSize
from atoll.engine.lines import tasks_of
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.engine.pods import Pods
from atoll.linux import cgroup_details, cgroup_usage, held, interfaces
from atoll.linux.cgroup import Cgroup
from atoll.linux.cgroup_details import Details
from atoll.linux.cgroup_files import UNLIMITED_BYTES
from atoll.linux.cgroup_usage import Memory, Places, Usage
from atoll.linux.held import Held
from atoll.linux.netlink import LinkCounters
from atoll.sandbox.controller import State as PodState
from atoll.sandbox.controller import TypedAny
from atoll.shim import records

log = logging.getLogger(__name__)

FRESH_NS = 100_000_000
"""How old a sample may be that answers a list; so many that ask at once share one."""
MIN_WINDOW_NS = 1_000_000_000
MAX_WINDOW_NS = 120_000_000_000
"""A CPU rate is told over a time between these: less is noise, more is no news."""
DEFAULT_INTERFACE = "eth0"
SLACK = 64


class Rate:
    """How much CPU was used a second, over the time since an earlier sample."""

    def __init__(self, started_at_ns: int = 0) -> None:
        """What was started then had used nothing then; 0 is not known."""
        self._older: tuple[int, int] | None = None
        self._newer: tuple[int, int] | None = (started_at_ns, 0) if started_at_ns else None

    def add(self, at_ns: int, cpu_ns: int) -> int | None:
        """The rate up to this sample, in ns a second; None where no earlier one says."""
        if self._newer is None or cpu_ns < self._newer[1]:
            self._older, self._newer = None, (at_ns, cpu_ns)
        elif at_ns - self._newer[0] >= MIN_WINDOW_NS:
            self._older, self._newer = self._newer, (at_ns, cpu_ns)
        if self._older is None or at_ns - self._older[0] > MAX_WINDOW_NS:
            return None
        return max(cpu_ns - self._older[1], 0) * 1_000_000_000 // (at_ns - self._older[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUsage:
    """One sample at `at_ns` since the epoch; without `usage` where it does not run. `nano_cores` is a `Rate`."""

    container: Container
    at_ns: int
    usage: Usage | None = None
    nano_cores: int | None = None
    layer: LayerSize | None = None
    processes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodUsage:
    """One sample of a pod and its running containers; no `interfaces` where it has the host's network, or none now."""

    pod: Pod
    at_ns: int
    containers: tuple[ContainerUsage, ...]
    path: str = "/"
    usage: Usage | None = None
    nano_cores: int | None = None
    default_interface: str = DEFAULT_INTERFACE
    interfaces: dict[str, LinkCounters] = field(default_factory=dict[str, LinkCounters])

    @property
    def processes(self) -> int:
        """Those in its containers."""
        return sum(one.processes for one in self.containers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerDetails:
    """More of a running container: what its cgroup counts, what its processes hold, the cgroup's path."""

    details: Details
    held: Held | None
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    at_ns: int
    places: Places | None = None
    usage: Usage | None = None
    processes: int = 0
    interfaces: dict[str, LinkCounters] = field(default_factory=dict[str, LinkCounters])


@dataclass(slots=True, kw_only=True)
class _Known:
    rate: Rate
    places: Places | None = None
    sample: _Sample | None = None


class Usages:
    """Samples of any number of pods and containers. What it remembers of one goes with that one."""

    def __init__(self, parts: Parts, pods: Pods, containers: Containers) -> None:
        self._parts = parts
        self._pods = pods
        self._containers = containers
        self._known: dict[str, _Known] = {}
        self.layers = Layers(parts.snapshotter, parts.blocking, parts.owner)
        parts.events.tap(self._forget)

    def _forget(self, event: Event) -> None:
        if event.type in (EventType.DELETED, EventType.STOPPED):
            self._known.pop(event.container_id, None)
        if event.type is EventType.DELETED:
            self.layers.forget(event.container_id)

    def _prune(self) -> None:
        """Drop what a question that came late has made again of those that are gone."""
        live = len(self._pods.list()) + len(self._containers.list())
        if len(self._known) > live + SLACK:
            ids = {one.id for one in (*self._pods.list(), *self._containers.list())}
            self._known = {key: known for key, known in self._known.items() if key in ids}

    # --- containers ---

    async def of_containers(self, wanted: Sequence[Container], *, fresh: bool = False) -> list[ContainerUsage]:
        """A sample of each, in order; a `fresh` one is of now, any other may be `FRESH_NS` old.

        What ends meanwhile has none.
        """
        self._prune()
        running = [one for one in wanted if one.status.get().state is State.RUNNING]
        jobs = [(self._known_of(one), self._bundle(one)) for one in running]
        found = dict(
            zip((one.id for one in running), await self._parts.blocking.run(self._read, jobs, fresh), strict=True)
        )
        await self._ask_shims([one for one in running if not found[one.id].places], found)
        sizes = await self.layers.sizes(
            [(one.record.snapshot_key, one.status.get().state is State.EXITED) for one in wanted], fresh=fresh
        )
        return [
            self._sampled(container, found.get(container.id), size)
            for container, size in zip(wanted, sizes, strict=True)
        ]

    def _known_of(self, container: Container) -> _Known:
        known = self._known.get(container.id)
        if known is None:
            known = self._known[container.id] = _Known(rate=Rate(container.status.get().started_at))
        return known

    def _bundle(self, container: Container) -> Path:
        return self._parts.paths.bundles / container.id

    def _read(self, jobs: Sequence[tuple[_Known, Path]], fresh: bool) -> list[_Sample]:
        """Blocks for some hundred microseconds a container."""
        found: list[_Sample] = []
        for known, bundle in jobs:
            if fresh or known.sample is None or time.time_ns() - known.sample.at_ns > FRESH_NS:
                if known.places is None:
                    known.places = self._places(bundle)
                known.sample = _sample(known.places)
            found.append(known.sample)
        return found

    def _places(self, bundle: Path) -> Places:
        """As the shim, or the driver of a foreign one, has recorded them; none where that cannot be read."""
        try:
            task = records.read(bundle / records.TASK, records.TaskRecord)
        except errors.DataLoss as error:
            log.warning("its shim is asked for statistics: %s", error)
            task = None
        return cgroup_usage.places(task.cgroups if task is not None else (), self._parts.host.hierarchies)

    async def _ask_shims(self, containers: Sequence[Container], found: dict[str, _Sample]) -> None:
        async def ask(container: Container) -> None:
            pod = self._pods.find(container.sandbox_id)
            if pod is None:
                return
            try:
                usage = decode(await (await tasks_of(pod)).stats(container.id))
            except errors.AtollError:
                return  # it ended, or nobody can tell now: a list has it without figures
            found[container.id] = replace(found[container.id], at_ns=time.time_ns(), usage=usage)

        await wait_all([ask(container) for container in containers])

    def _sampled(self, container: Container, sample: _Sample | None, size: LayerSize | None) -> ContainerUsage:
        if sample is None or sample.usage is None:
            return ContainerUsage(container=container, at_ns=time.time_ns(), layer=size)
        return ContainerUsage(
            container=container,
            at_ns=sample.at_ns,
            usage=sample.usage,
            nano_cores=self._nano_cores(container.id, sample.at_ns, sample.usage),
            layer=size,
            processes=sample.processes,
        )

    def _nano_cores(self, owner: str, at_ns: int, usage: Usage) -> int | None:
        known = self._known.get(owner)
        return known.rate.add(at_ns, usage.cpu_ns) if known is not None and usage.cpu_ns is not None else None

    async def details(self, wanted: Sequence[Container]) -> dict[str, ContainerDetails]:
        """More of those that run in a cgroup of this host, by ID."""
        running = [one for one in wanted if one.status.get().state is State.RUNNING]
        jobs = [(one.id, one.status.get().pid, self._known_of(one), self._bundle(one)) for one in running]
        return await self._parts.blocking.run(self._read_details, jobs)

    def _read_details(self, jobs: Sequence[tuple[str, int, _Known, Path]]) -> dict[str, ContainerDetails]:
        found: dict[str, ContainerDetails] = {}
        for container_id, init, known, bundle in jobs:
            if known.places is None:
                known.places = self._places(bundle)
            if known.places:
                try:
                    pids = cgroup_usage.processes(known.places)
                    details = cgroup_details.read_details(known.places)
                except OSError as error:
                    log.warning("container %s: is left out: %s", container_id[:13], error)
                    continue
                found[container_id] = ContainerDetails(
                    details=details, held=held.by(pids, init), path=self._path(known.places)
                )
        return found

    def _path(self, where: Places) -> str:
        """Below the hierarchy's root."""
        for mount in map(str, self._parts.host.hierarchies.mounts):
            for folder in (where.memory, where.cpuacct, where.unified):
                if folder.startswith(f"{mount}/"):
                    return folder.removeprefix(mount)
        return "/"

    # --- pods ---

    async def of_pods(self, wanted: Sequence[Pod], *, fresh: bool = False) -> list[PodUsage]:
        """A sample of each with its running containers, in order; as `of_containers`."""
        ids = {pod.id for pod in wanted}
        members = [one for one in self._containers.list() if one.sandbox_id in ids]
        members = [one for one in members if one.status.get().state is State.RUNNING]
        by_pod: dict[str, list[ContainerUsage]] = {}
        for one in await self.of_containers(members, fresh=fresh):
            by_pod.setdefault(one.container.sandbox_id, []).append(one)
        jobs = [(pod, self._known_pod(pod), self._has_own_cgroup(pod)) for pod in wanted]
        read = await self._parts.blocking.run(self._read_pods, jobs, fresh)
        return [self._pod_sampled(pod, by_pod.get(pod.id, []), found) for pod, found in zip(wanted, read, strict=True)]

    def _known_pod(self, pod: Pod) -> _Known:
        known = self._known.get(pod.id)
        if known is None:
            known = self._known[pod.id] = _Known(rate=Rate(pod.created_at_ns))
        return known

    def _has_own_cgroup(self, pod: Pod) -> bool:
        """Whether no other pod is in the same one."""
        parent = pod.config.cgroup_parent
        return not parent or not any(one is not pod and one.config.cgroup_parent == parent for one in self._pods.list())

    def _pod_places(self, pod: Pod) -> Places:
        hierarchies = self._parts.host.hierarchies
        try:
            folders = Cgroup(expanded(specs.pod_cgroup(self._parts, pod)), hierarchies).folders
        except errors.InvalidArgument:
            folders = ()
        return cgroup_usage.places(map(str, folders), hierarchies)

    def _read_pods(self, jobs: Sequence[tuple[Pod, _Known, bool]], fresh: bool) -> list[_Sample]:
        found: list[_Sample] = []
        for pod, known, has_cgroup in jobs:
            if fresh or known.sample is None or time.time_ns() - known.sample.at_ns > FRESH_NS:
                if known.places is None:
                    known.places = self._pod_places(pod)
                sample = _sample(known.places if has_cgroup else None, processes=False)
                known.sample = replace(sample, interfaces=_interfaces(pod))
            found.append(known.sample)
        return found

    def _pod_sampled(self, pod: Pod, containers: list[ContainerUsage], found: _Sample) -> PodUsage:
        usage = found.usage or total(one.usage for one in containers if one.usage is not None)
        joined = pod.attachment.networks if pod.attachment is not None else ()
        return PodUsage(
            pod=pod,
            at_ns=found.at_ns,
            containers=tuple(containers),
            path=expanded(specs.pod_cgroup(self._parts, pod)),
            usage=usage,
            nano_cores=self._nano_cores(pod.id, found.at_ns, usage) if usage is not None else None,
            default_interface=joined[0].ifname if joined else DEFAULT_INTERFACE,
            interfaces=found.interfaces,
        )


def _sample(where: Places | None, *, processes: bool = True) -> _Sample:
    """What a cgroup says now; nothing where it is gone, or its files cannot be read."""
    usage, count = None, 0
    try:
        if where:
            usage = cgroup_usage.read(where)
            count = len(cgroup_usage.processes(where)) if processes else 0
    except OSError as error:
        log.warning("cgroup: cannot be read: %s", error)
    return _Sample(at_ns=time.time_ns(), places=where, usage=usage, processes=count)


def _interfaces(pod: Pod) -> dict[str, LinkCounters]:
    path = pod.netns_path
    if not path or pod.state is not PodState.READY:
        return {}
    try:
        return interfaces.counters(pod.instance.pid if pod.instance is not None else 0, Path(path))
    except OSError:
        return {}  # it is being stopped


def expanded(path: str) -> str:
    """A slice that is named alone by its whole path, as systemd.slice(5) has it: `a-b.slice` is below `a.slice`."""
    if "/" in path or not path.endswith(".slice"):
        return path
    parts = path.removesuffix(".slice").split("-")
    return "/" + "/".join("-".join(parts[: at + 1]) + ".slice" for at in range(len(parts)))


def total(samples: Iterable[Usage]) -> Usage | None:
    """What several have used together; without limits and pressure, which do not add up. None for none."""
    every = list(samples)
    if not every:
        return None
    memories = [one.memory for one in every if one.memory is not None]
    swaps = [one.swap for one in memories if one.swap is not None]
    memory = Memory(
        usage=sum(one.usage for one in memories),
        working_set=sum(one.working_set for one in memories),
        rss=sum(one.rss for one in memories),
        limit=None,
        page_faults=sum(one.page_faults for one in memories),
        major_page_faults=sum(one.major_page_faults for one in memories),
        swap=sum(swaps) if swaps else None,
    )
    times = [one.cpu_ns for one in every if one.cpu_ns is not None]
    return Usage(cpu_ns=sum(times) if times else None, memory=memory if memories else None)


def decode(metrics: TypedAny) -> Usage:
    """What a shim answers: Any of cgroups v1 or v2 Metrics."""
    if metrics.type_url.endswith("cgroups.v2.Metrics"):
        new = v2.Metrics.FromString(metrics.value)
        memory = Memory(
            usage=new.memory.usage,
            working_set=max(new.memory.usage - new.memory.inactive_file, 0),
            rss=new.memory.anon,
            limit=_limit(new.memory.usage_limit),
            page_faults=new.memory.pgfault,
            major_page_faults=new.memory.pgmajfault,
            swap=new.memory.swap_usage,
            swap_limit=_limit(new.memory.swap_limit),
        )
        return Usage(cpu_ns=new.cpu.usage_usec * 1000, memory=memory)
    old = v1.Metrics.FromString(metrics.value)
    memory = Memory(
        usage=old.memory.usage.usage,
        working_set=max(old.memory.usage.usage - old.memory.total_inactive_file, 0),
        rss=old.memory.total_rss,
        limit=_limit(old.memory.hierarchical_memory_limit),
        page_faults=old.memory.total_pg_fault,
        major_page_faults=old.memory.total_pg_maj_fault,
    )
    return Usage(cpu_ns=old.cpu.usage.total, memory=memory)


def _limit(said: int) -> int | None:
    return said if 0 < said < UNLIMITED_BYTES else None
