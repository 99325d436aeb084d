"""The limits of a container's cgroup: the protocol's words and the runtime spec's.

What the protocol leaves out is not set; a set value is put over the one that is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import msgspec

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.linux.cgroup_layout import Layout
from atoll.linux.host import HostFacts
from atoll.oci import spec
from atoll.oci.resources import require_cpuset

MEMORY = (
    ("limit", pb.MemLimit),
    ("reservation", pb.MemReservation),
    ("swap", pb.MemSwapLimit),
    ("kernel", pb.MemKernelLimit),
    ("kernel_tcp", pb.MemTCPLimit),
    ("swappiness", pb.MemSwappiness),
    ("disable_oom_killer", pb.MemDisableOomKiller),
    ("use_hierarchy", pb.MemUseHierarchy),
)
"""The values of a container's memory, of the same name in the protocol and in the spec, and who owns each."""
CPU = (
    ("shares", pb.CPUShares),
    ("quota", pb.CPUQuota),
    ("period", pb.CPUPeriod),
    ("realtime_runtime", pb.CPURealtimeRuntime),
    ("realtime_period", pb.CPURealtimePeriod),
)
CPU_SETS = (("cpus", pb.CPUSetCPUs), ("mems", pb.CPUSetMems))
CLASSES = (("blockio_class", pb.BlockioClass), ("rdt_class", pb.RdtClass))


class _Valued(Protocol):
    @property
    def value(self) -> int: ...


OptionalT = TypeVar("OptionalT", pb.OptionalInt64, pb.OptionalUInt32, pb.OptionalFileMode)


def some(value: int | None, kind: type[OptionalT]) -> OptionalT | None:
    """A number as the protocol has one that may be missing."""
    return None if value is None else kind(value=value)


def number(message: _Valued, *, present: bool) -> int | None:
    """The number of such a message."""
    return message.value if present else None


def to_message(found: spec.Resources | None) -> pb.LinuxResources:
    """The limits of a spec."""
    message = pb.LinuxResources()
    if found is None:
        return message
    if found.memory is not None:
        _fill(message.memory, found.memory, MEMORY)
    if found.cpu is not None:
        _fill(message.cpu, found.cpu, CPU)
        message.cpu.cpus, message.cpu.mems = found.cpu.cpus, found.cpu.mems
    for limit in found.hugepage_limits:
        message.hugepage_limits.add(page_size=limit.page_size, limit=limit.limit)
    if found.pids is not None and found.pids.limit is not None:
        message.pids.limit = found.pids.limit
    message.unified.update(found.unified)
    for rule in found.devices:
        message.devices.add(
            allow=rule.allow is True,
            type=rule.type,
            major=some(rule.major, pb.OptionalInt64),
            minor=some(rule.minor, pb.OptionalInt64),
            access=rule.access,
        )
    return message


def _fill(message: pb.LinuxMemory | pb.LinuxCPU, part: spec.Part, fields: Iterable[tuple[str, int]]) -> None:
    for name, _ in fields:
        value: int | bool | None = getattr(part, name)
        # Of a flag that is off the spec says nothing, as of a number that is not set.
        if value is not None and value is not False:
            getattr(message, name).value = value


def overlay(now: spec.Resources | None, wanted: pb.LinuxResources, host: HostFacts) -> spec.Resources:
    """`now` with every limit that is set in `wanted`; raises `FailedPrecondition` for what this host has not.

    Raises `InvalidArgument` for a list of processors or memory nodes that is none.

    A memory limit without one of swap leaves no swap beyond it, as the request of a container does.
    """
    now = now or spec.Resources()
    for name, _ in CLASSES:
        if wanted.HasField(name) and getattr(wanted, name).value:
            raise errors.FailedPrecondition(f"{name} {getattr(wanted, name).value!r}: this host has no such classes")
    if wanted.unified and host.hierarchies.layout is not Layout.V2:
        raise errors.FailedPrecondition("unified: this host does not run cgroup version 2 alone")
    for limit in wanted.hugepage_limits:
        if limit.page_size not in host.hugepage_sizes or "hugetlb" not in host.hierarchies.controllers:
            raise errors.FailedPrecondition(
                f"hugepage_limits: this host cannot limit pages of {limit.page_size[:20]!r}"
            )
    memory = _changes(wanted.memory, MEMORY)
    if memory.get("swap") and not host.swap_limit:
        raise errors.FailedPrecondition("memory.swap: this host cannot limit swap")
    if "limit" in memory and "swap" not in memory and host.swap_limit:
        memory["swap"] = memory["limit"]
    require_cpuset("cpu.cpus", wanted.cpu.cpus, host.cpus)
    require_cpuset("cpu.mems", wanted.cpu.mems, host.memory_nodes)
    cpu: dict[str, int | bool | str] = {
        **_changes(wanted.cpu, CPU),
        **{name: getattr(wanted.cpu, name) for name, _ in CPU_SETS if getattr(wanted.cpu, name)},
    }
    pages = {limit.page_size: limit for limit in now.hugepage_limits}
    for limit in wanted.hugepage_limits:
        pages[limit.page_size] = spec.HugepageLimit(page_size=limit.page_size, limit=limit.limit)
    pids = spec.Pids(limit=wanted.pids.limit or -1) if wanted.HasField("pids") else now.pids
    return msgspec.structs.replace(
        now,
        devices=(*now.devices, *map(rule, wanted.devices)),
        memory=msgspec.structs.replace(now.memory or spec.Memory(), **memory) if memory else now.memory,
        cpu=msgspec.structs.replace(now.cpu or spec.CPU(), **cpu) if cpu else now.cpu,
        pids=pids,
        hugepage_limits=tuple(pages.values()),
        unified={**now.unified, **wanted.unified},
    )


def _changes(message: pb.LinuxMemory | pb.LinuxCPU, fields: Iterable[tuple[str, int]]) -> dict[str, int | bool]:
    return {name: getattr(message, name).value for name, _ in fields if message.HasField(name)}


def rule(message: pb.LinuxDeviceCgroup) -> spec.DeviceRule:
    """A rule of the device cgroup."""
    return spec.DeviceRule(
        allow=message.allow,
        type=message.type,
        major=number(message.major, present=message.HasField("major")),
        minor=number(message.minor, present=message.HasField("minor")),
        access=message.access,
    )
