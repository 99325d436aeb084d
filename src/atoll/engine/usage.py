"""What a container uses now, from the Metrics that its shim answers, for either cgroup version."""

from __future__ import annotations

from dataclasses import dataclass

from atoll.api import containerd_cgroups_v1_pb2 as v1
from atoll.api import containerd_cgroups_v2_pb2 as v2
from atoll.container.store import Container
from atoll.engine.lines import tasks_of
from atoll.engine.pod import Pod
from atoll.sandbox.controller import TypedAny


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes and ns since the container's start; `working_set_bytes` is what cannot be had back without harm."""

    cpu_ns: int
    memory_bytes: int
    working_set_bytes: int
    rss_bytes: int
    limit_bytes: int
    page_faults: int
    major_page_faults: int
    pids: int


async def usage_of(pod: Pod, container: Container) -> Usage:
    """One sample; raises `NotFound` where the container has no task, `Unavailable` where its shim is gone."""
    return decode(await (await tasks_of(pod)).stats(container.id))


def decode(metrics: TypedAny) -> Usage:
    """Read Any of cgroups v1 or v2 Metrics."""
    if metrics.type_url.endswith("cgroups.v2.Metrics"):
        new = v2.Metrics.FromString(metrics.value)
        return Usage(
            cpu_ns=new.cpu.usage_usec * 1000,
            memory_bytes=new.memory.usage,
            working_set_bytes=max(new.memory.usage - new.memory.inactive_file, 0),
            rss_bytes=new.memory.anon,
            limit_bytes=new.memory.usage_limit,
            page_faults=new.memory.pgfault,
            major_page_faults=new.memory.pgmajfault,
            pids=new.pids.current,
        )
    old = v1.Metrics.FromString(metrics.value)
    return Usage(
        cpu_ns=old.cpu.usage.total,
        memory_bytes=old.memory.usage.usage,
        working_set_bytes=max(old.memory.usage.usage - old.memory.total_inactive_file, 0),
        rss_bytes=old.memory.total_rss,
        limit_bytes=old.memory.hierarchical_memory_limit,
        page_faults=old.memory.total_pg_fault,
        major_page_faults=old.memory.total_pg_maj_fault,
        pids=old.pids.current,
    )
