"""Limits of the request as the runtime spec's resources.

Source: the CRI's LinuxContainerResources (zero means not set); config-linux.md of the runtime spec.
"""

from __future__ import annotations

import re

from atoll import errors
from atoll.linux.cgroup import Limits
from atoll.linux.cgroup_layout import Layout, validated
from atoll.linux.host import HostFacts
from atoll.oci import spec
from atoll.oci.config import LinuxContainerResources

CPU_SHARES_MIN = 2
CPU_SHARES_MAX = 262144
OOM_SCORE_MIN = -1000
OOM_SCORE_MAX = 1000
PIDS_MAX = "pids.max"
PIDS_HIGHEST = 4 << 20
"""The most that a kernel counts: PID_MAX_LIMIT."""
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_UNIFIED_KEY = re.compile(r"[a-z]+(\.[A-Za-z0-9_]+)+")


def resolve(
    asked: LinuxContainerResources, host: HostFacts, devices: tuple[spec.DeviceRule, ...] = ()
) -> spec.Resources:
    """The resources of a container. Raises `InvalidArgument` naming the field, `FailedPrecondition` for a limit
    whose controller this host lacks."""
    return spec.Resources(
        devices=devices,
        memory=_memory(asked, host),
        cpu=_cpu(asked, host),
        pids=_pids(asked, host),
        hugepage_limits=_hugepages(asked, host),
        unified=_unified(asked, host),
    )


def _memory(asked: LinuxContainerResources, host: HostFacts) -> spec.Memory | None:
    limit, swap = asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes
    if limit < 0 or swap < -1:
        raise errors.InvalidArgument("resources.memory_limit_in_bytes: must not be negative")
    if limit and "memory" not in host.hierarchies.controllers:
        raise errors.FailedPrecondition("resources.memory_limit_in_bytes: this host has no memory cgroup controller")
    if swap and not host.swap_limit:
        raise errors.FailedPrecondition("resources.memory_swap_limit_in_bytes: this host cannot limit swap")
    if 0 < swap < limit:
        raise errors.InvalidArgument(
            "resources.memory_swap_limit_in_bytes: is memory and swap, so not below the memory limit"
        )
    if not limit and not swap:
        return None
    # Without a word about swap a limited container gets none.
    total = swap or (limit if host.swap_limit else 0)
    return spec.Memory(limit=limit or None, swap=total or None)


def _cpu(asked: LinuxContainerResources, host: HostFacts) -> spec.CPU | None:
    if asked.cpu_period and not 1000 <= asked.cpu_period <= 1_000_000:
        raise errors.InvalidArgument("resources.cpu_period: must be from 1000 to 1000000 µs")
    if asked.cpu_quota and asked.cpu_quota != -1 and asked.cpu_quota < 1000:
        raise errors.InvalidArgument("resources.cpu_quota: must be at least 1000 µs, or -1 for none")
    if asked.cpu_shares < 0:
        raise errors.InvalidArgument("resources.cpu_shares: must not be negative")
    require_cpuset("resources.cpuset_cpus", asked.cpuset_cpus, host.cpus)
    require_cpuset("resources.cpuset_mems", asked.cpuset_mems, host.memory_nodes)
    cpu = spec.CPU(
        shares=min(max(asked.cpu_shares, CPU_SHARES_MIN), CPU_SHARES_MAX) if asked.cpu_shares else None,
        quota=asked.cpu_quota or None,
        period=asked.cpu_period or None,
        cpus=asked.cpuset_cpus,
        mems=asked.cpuset_mems,
    )
    return cpu if cpu != spec.CPU() else None


def require_cpuset(field: str, value: str, there: frozenset[int]) -> None:
    """Raises `InvalidArgument` naming `field` where `value` is no list, or of what is not among `there`."""
    if value and not _CPU_LIST.fullmatch(value):
        raise errors.InvalidArgument(f"{field}: {value[:60]!r} is no list such as 0-3,7")
    for part in value.split(",") if value and there else ():
        first, _, last = part.partition("-")
        if int(first) > int(last or first) or not {int(first), int(last or first)} <= there:
            raise errors.InvalidArgument(f"{field}: {value[:60]!r}: this host has {min(there)} to {max(there)}")


def _hugepages(asked: LinuxContainerResources, host: HostFacts) -> tuple[spec.HugepageLimit, ...]:
    limits: list[spec.HugepageLimit] = []
    for entry in asked.hugepage_limits:
        if entry.page_size not in host.hugepage_sizes:
            raise errors.InvalidArgument(
                f"resources.hugepage_limits: this host has no pages of {entry.page_size[:20]!r}"
            )
        if "hugetlb" in host.hierarchies.controllers:
            limits.append(spec.HugepageLimit(page_size=entry.page_size, limit=entry.limit))
        elif entry.limit:  # zero needs no controller: where none accounts, the host reserves none for us either
            raise errors.FailedPrecondition("resources.hugepage_limits: this host has no hugetlb cgroup controller")
    return tuple(limits)


def _pids(asked: LinuxContainerResources, host: HostFacts) -> spec.Pids | None:
    """Of the unified key `pids.max`, the CRI's only word for it; it is kept on every version of cgroups."""
    text = asked.unified.get(PIDS_MAX)
    if text is None:
        return None
    if text != "max" and not (text.isascii() and text.isdecimal() and 0 < int(text) <= PIDS_HIGHEST):
        raise errors.InvalidArgument(f"resources.unified: {PIDS_MAX} {text[:60]!r}: must be a number above 0, or max")
    if "pids" not in host.hierarchies.controllers:
        raise errors.FailedPrecondition(f"resources.unified: {PIDS_MAX}: this host has no pids cgroup controller")
    return spec.Pids(limit=-1 if text == "max" else int(text))


def _unified(asked: LinuxContainerResources, host: HostFacts) -> dict[str, str]:
    wanted = {key: value for key, value in asked.unified.items() if key != PIDS_MAX}
    if not wanted:
        return {}
    if host.hierarchies.layout is not Layout.V2:
        raise errors.FailedPrecondition("resources.unified: this host does not run cgroup version 2 alone")
    for key in wanted:
        if not _UNIFIED_KEY.fullmatch(key):
            raise errors.InvalidArgument(f"resources.unified: {key[:60]!r} is no name of a cgroup file")
    return wanted


def oom_score_adj(asked: int, host: HostFacts) -> int:
    """`asked`, but not below the daemon's own, which only CAP_SYS_RESOURCE may undercut (proc(5))."""
    if not OOM_SCORE_MIN <= asked <= OOM_SCORE_MAX:
        raise errors.InvalidArgument(f"resources.oom_score_adj: {asked} is not from {OOM_SCORE_MIN} to {OOM_SCORE_MAX}")
    return asked if "CAP_SYS_RESOURCE" in host.capabilities else max(asked, host.oom_score_adj)


def cgroups_path(parent: str, container: str, *, systemd: bool) -> str:
    """The `cgroupsPath` of a container below the pod's `parent`, in the form that the cgroup driver takes.

    Raises `InvalidArgument` for a parent that could leave the hierarchy, or that is no slice with systemd.
    """
    folder = validated(parent) if parent.strip("/") else ""
    if not systemd:
        return f"{folder}/{container}"
    name = folder.rpartition("/")[2] or "system.slice"
    if not name.endswith(".slice"):
        raise errors.InvalidArgument(
            f"cgroup_parent: {parent[:200]!r}: the systemd driver needs a name that ends in .slice"
        )
    return f"{name}:atoll:{container}"


def limits(asked: LinuxContainerResources, host: HostFacts) -> Limits:
    """The same request as limits of a cgroup that Atoll itself makes, such as a pod's. Errors as `resolve`."""
    memory, cpu = _memory(asked, host) or spec.Memory(), _cpu(asked, host) or spec.CPU()
    return Limits(
        cpu_shares=cpu.shares,
        cpu_quota_us=cpu.quota,
        cpu_period_us=cpu.period,
        cpuset_cpus=cpu.cpus or None,
        cpuset_mems=cpu.mems or None,
        memory_bytes=memory.limit,
        memory_and_swap_bytes=memory.swap,
    )
