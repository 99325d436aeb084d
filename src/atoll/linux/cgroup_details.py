"""What a sample of a cgroup's use leaves out: times by kind, throttling, limits, devices, huge pages.

As `cgroup_usage` for both versions; what the host does not count is None.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from atoll.linux import cgroup_files as files
from atoll.linux.cgroup_usage import NS_PER_US, Places


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIO:
    """What went between the cgroup and one block device."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hugetlb:
    usage: int
    max_usage: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What a sample leaves out; None where the host does not count it."""

    user_ns: int | None = None
    system_ns: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None
    cache: int | None = None
    mapped: int | None = None
    kernel: int | None = None
    max_usage: int | None = None
    limit_hits: int | None = None
    soft_limit: int | None = None
    oom_kills: int | None = None
    own_faults: tuple[int, int] | None = None
    """Page faults and major ones of the cgroup without those below it, where that is told."""
    tasks: int | None = None
    max_tasks: int | None = None
    devices: dict[tuple[int, int], DeviceIO] = field(default_factory=dict[tuple[int, int], DeviceIO])
    hugetlb: dict[str, Hugetlb] = field(default_factory=dict[str, Hugetlb])


def read_details(where: Places) -> Details:
    """What `read` leaves out, as far as it is there."""
    return _v2_details(where) if where.is_v2 else _v1_details(where)


# version 1


def _v1_details(where: Places) -> Details:
    stat = files.flat(files.text(where.memory, "memory.stat"))
    throttled = files.flat(files.text(where.cpu, "cpu.stat"))
    own = (stat["pgfault"], stat["pgmajfault"]) if "pgfault" in stat and "pgmajfault" in stat else None
    return Details(
        user_ns=files.number(where.cpuacct, "cpuacct.usage_user"),
        system_ns=files.number(where.cpuacct, "cpuacct.usage_sys"),
        periods=throttled.get("nr_periods"),
        throttled_periods=throttled.get("nr_throttled"),
        throttled_ns=throttled.get("throttled_time"),
        cache=stat.get("total_cache"),
        mapped=stat.get("total_mapped_file"),
        kernel=files.number(where.memory, "memory.kmem.usage_in_bytes"),
        max_usage=files.number(where.memory, "memory.max_usage_in_bytes"),
        limit_hits=files.number(where.memory, "memory.failcnt"),
        soft_limit=files.limit(where.memory, "memory.soft_limit_in_bytes"),
        oom_kills=files.flat(files.text(where.memory, "memory.oom_control")).get("oom_kill"),
        own_faults=own,
        tasks=files.number(where.pids, "pids.current"),
        max_tasks=files.number(where.pids, "pids.max"),
        devices=_v1_devices(where.blkio),
        hugetlb=_hugetlb(where.hugetlb, ".usage_in_bytes", ".max_usage_in_bytes"),
    )


def _v1_devices(folder: str) -> dict[tuple[int, int], DeviceIO]:
    found: dict[tuple[int, int], dict[str, int]] = {}
    for name, fields in (
        ("blkio.throttle.io_service_bytes_recursive", {"Read": "read_bytes", "Write": "written_bytes"}),
        ("blkio.throttle.io_serviced_recursive", {"Read": "reads", "Write": "writes"}),
    ):
        for line in files.text(folder, name).splitlines():
            parts = line.split()
            if len(parts) == 3 and parts[1] in fields and (device := _device(parts[0])) is not None:
                found.setdefault(device, {})[fields[parts[1]]] = int(parts[2])
    return {device: DeviceIO(**values) for device, values in found.items()}


# version 2


def _v2_details(where: Places) -> Details:
    cpu = files.flat(files.text(where.unified, "cpu.stat"))
    stat = files.flat(files.text(where.unified, "memory.stat"))
    events = files.flat(files.text(where.unified, "memory.events"))

    def ns(key: str) -> int | None:
        return cpu[key] * NS_PER_US if key in cpu else None

    return Details(
        user_ns=ns("user_usec"),
        system_ns=ns("system_usec"),
        periods=cpu.get("nr_periods"),
        throttled_periods=cpu.get("nr_throttled"),
        throttled_ns=ns("throttled_usec"),
        cache=stat.get("file"),
        mapped=stat.get("file_mapped"),
        kernel=stat.get("kernel"),
        max_usage=files.number(where.unified, "memory.peak"),
        limit_hits=events.get("max"),
        soft_limit=files.limit(where.unified, "memory.high"),
        oom_kills=events.get("oom_kill"),
        tasks=files.number(where.unified, "pids.current"),
        max_tasks=files.number(where.unified, "pids.max"),
        devices=_v2_devices(files.text(where.unified, "io.stat")),
        hugetlb=_hugetlb(where.unified, ".current", ""),
    )


def _v2_devices(text: str) -> dict[tuple[int, int], DeviceIO]:
    names = {"rbytes": "read_bytes", "wbytes": "written_bytes", "rios": "reads", "wios": "writes"}
    found: dict[tuple[int, int], DeviceIO] = {}
    for line in text.splitlines():
        name, *words = line.split()
        device = _device(name)
        values = files.pairs(words)
        if device is not None:
            found[device] = DeviceIO(**{names[key]: int(value) for key, value in values.items() if key in names})
    return found


# both


def _hugetlb(folder: str, usage: str, most: str) -> dict[str, Hugetlb]:
    found: dict[str, Hugetlb] = {}
    for size in _page_sizes(folder, usage):
        used = files.number(folder, f"hugetlb.{size}{usage}")
        if used is not None:
            peak = files.number(folder, f"hugetlb.{size}{most}") if most else None
            found[size] = Hugetlb(usage=used, max_usage=peak)
    return found


def _page_sizes(folder: str, suffix: str) -> Iterator[str]:
    if not folder:
        return
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if name.startswith("hugetlb.") and name.endswith(suffix):
                size = name.removeprefix("hugetlb.").removesuffix(suffix)
                if size and "." not in size:
                    yield size


def _device(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(":")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
