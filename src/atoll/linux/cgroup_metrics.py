"""A cgroup's figures as the messages that containerd's shims send: io.containerd.cgroups.v1 and v2 Metrics."""

from __future__ import annotations

from atoll.api import containerd_cgroups_v1_pb2 as v1
from atoll.api import containerd_cgroups_v2_pb2 as v2
from atoll.linux.cgroup import Cgroup
from atoll.linux.cgroup_stats import CgroupStats, CPUStats, MemoryStats, Pressure, read_stats

# What these messages say where there is no limit.
V1_NO_LIMIT = (1 << 63) - 4096
V2_NO_LIMIT = (1 << 64) - 1
_V1_ENTRIES = frozenset(("usage", "swap", "kernel", "kernel_tcp"))
# memory.stat keys of version 1 that the message spells differently.
_V1_SPELLING = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_V2_SPELLING = {
    "workingset_refault_file": "workingset_refault",
    "workingset_activate_file": "workingset_activate",
}


def metrics_message(group: Cgroup) -> v1.Metrics | v2.Metrics:
    """The metrics of `group` in the message of this host's layout. Raises `FileNotFoundError` where it is gone."""
    stats = read_stats(group)
    return v2_message(stats) if group.is_v2 else v1_message(stats)


def v1_message(stats: CgroupStats) -> v1.Metrics:
    message = v1.Metrics()
    if stats.pids is not None:
        message.pids.current = stats.pids.current
        message.pids.limit = stats.pids.limit or 0
    if stats.cpu is not None:
        _v1_cpu(message.cpu, stats.cpu)
    if stats.memory is not None:
        _v1_memory(message.memory, stats.memory)
        for name in ("oom_kill_disable", "under_oom", "oom_kill"):
            setattr(message.memory_oom_control, name, stats.memory_events.get(name, 0))
    for device in stats.io:
        for op, count, size in (
            ("Read", device.reads, device.read_bytes),
            ("Write", device.writes, device.write_bytes),
        ):
            place = {"major": device.major, "minor": device.minor, "op": op}
            message.blkio.io_service_bytes_recursive.add(value=size, **place)
            message.blkio.io_serviced_recursive.add(value=count, **place)
    return message


def _v1_cpu(message: v1.CPUStat, cpu: CPUStats) -> None:
    message.usage.total = cpu.usage_ns
    message.usage.user = cpu.user_ns
    message.usage.kernel = cpu.system_ns
    message.throttling.periods = cpu.periods
    message.throttling.throttled_periods = cpu.throttled_periods
    message.throttling.throttled_time = cpu.throttled_ns


def _v1_memory(message: v1.MemoryStat, memory: MemoryStats) -> None:
    known = message.DESCRIPTOR.fields_by_name
    for key, value in memory.detail.items():
        is_total = key.startswith("total_")
        plain = key.removeprefix("total_")
        name = ("total_" if is_total else "") + _V1_SPELLING.get(plain, plain)
        if name in known and name not in _V1_ENTRIES:
            setattr(message, name, value)
    message.usage.usage = memory.usage_bytes
    message.usage.limit = V1_NO_LIMIT if memory.limit_bytes is None else memory.limit_bytes
    message.usage.max = memory.peak_bytes or 0
    message.usage.failcnt = memory.failures
    if memory.swap_usage_bytes is not None:  # this message counts memory and swap together
        message.swap.usage = memory.usage_bytes + memory.swap_usage_bytes
        unlimited = memory.limit_bytes is None or memory.swap_limit_bytes is None
        message.swap.limit = V1_NO_LIMIT if unlimited else (memory.limit_bytes or 0) + (memory.swap_limit_bytes or 0)


def v2_message(stats: CgroupStats) -> v2.Metrics:
    message = v2.Metrics()
    if stats.pids is not None:
        message.pids.current = stats.pids.current
        message.pids.limit = stats.pids.limit or 0
    if stats.cpu is not None:
        _v2_cpu(message.cpu, stats.cpu)
    if stats.memory is not None:
        _v2_memory(message.memory, stats.memory)
    for name in ("low", "high", "max", "oom", "oom_kill", "oom_group_kill"):
        setattr(message.memory_events, name, stats.memory_events.get(name, 0))
    for device in stats.io:
        message.io.usage.add(
            major=device.major,
            minor=device.minor,
            rbytes=device.read_bytes,
            wbytes=device.write_bytes,
            rios=device.reads,
            wios=device.writes,
        )
    for target, pressure in (
        (message.cpu, stats.cpu_pressure),
        (message.memory, stats.memory_pressure),
        (message.io, stats.io_pressure),
    ):
        if pressure is not None:
            _pressure(target.psi, pressure)
    return message


def _v2_cpu(message: v2.CPUStat, cpu: CPUStats) -> None:
    message.usage_usec = cpu.usage_ns // 1000
    message.user_usec = cpu.user_ns // 1000
    message.system_usec = cpu.system_ns // 1000
    message.nr_periods = cpu.periods
    message.nr_throttled = cpu.throttled_periods
    message.throttled_usec = cpu.throttled_ns // 1000


def _v2_memory(message: v2.MemoryStat, memory: MemoryStats) -> None:
    known = message.DESCRIPTOR.fields_by_name
    for key, value in memory.detail.items():
        name = _V2_SPELLING.get(key, key)
        if name in known and name != "psi":
            setattr(message, name, value)
    message.usage = memory.usage_bytes
    message.usage_limit = V2_NO_LIMIT if memory.limit_bytes is None else memory.limit_bytes
    message.max_usage = memory.peak_bytes or 0
    if memory.swap_usage_bytes is not None:
        message.swap_usage = memory.swap_usage_bytes
        message.swap_limit = V2_NO_LIMIT if memory.swap_limit_bytes is None else memory.swap_limit_bytes


def _pressure(message: v2.PSIStats, pressure: Pressure) -> None:
    for target, line in ((message.some, pressure.some), (message.full, pressure.full)):
        if line is not None:
            target.avg10, target.avg60, target.avg300 = line.avg10, line.avg60, line.avg300
            target.total = line.total_us
