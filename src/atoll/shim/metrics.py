"""What a cgroup used, as the messages that containerd's clients read: version 1 or version 2.

Files that this kernel or these hierarchies lack leave their fields unset. Sources: cgroup-v2.rst and cgroup-v1 of
the kernel's admin guide.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.message import Message

from atoll import errors
from atoll.api import containerd_cgroups_v1_pb2 as v1_pb2
from atoll.api import containerd_cgroups_v2_pb2 as v2_pb2
from atoll.linux import cgroup_layout
from atoll.shim import wire

UNLIMITED = (1 << 64) - 1
NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_V1_MEMORY_NAMES = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out",
    "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_V2_MEMORY_NAMES = {
    "workingset_refault_file": "workingset_refault",
    "workingset_activate_file": "workingset_activate",
}
_V1_ENTRIES = {"usage": "memory", "swap": "memory.memsw", "kernel": "memory.kmem", "kernel_tcp": "memory.kmem.tcp"}


def of_cgroup(folders: tuple[Path, ...], what: str) -> AnyMessage:
    """The metrics of the cgroup with these folders; `NotFound` naming `what` where it is gone."""
    present = _Folders(tuple(folder for folder in folders if folder.is_dir()))
    if not present.folders:
        raise errors.NotFound(f"{what}: has no cgroup")
    if present.path("memory.usage_in_bytes") or present.path("cpuacct.usage"):
        return wire.pack(_v1(present))
    return wire.pack(_v2(present))


def of_cgroups(groups: Iterable[tuple[Path, ...]]) -> AnyMessage:
    """The metrics of several cgroups together: sums, but the largest of limits, peaks and shares of time."""
    present = [_Folders(folders) for group in groups if (folders := tuple(filter(Path.is_dir, group)))]
    is_v1 = cgroup_layout.of_host().layout is not cgroup_layout.Layout.V2
    total: Message = v1_pb2.Metrics() if is_v1 else v2_pb2.Metrics()
    for files in present:
        _add(total, _v1(files) if is_v1 else _v2(files))
    return wire.pack(total)


_LARGEST = frozenset(("limit", "max", "usage_limit", "max_usage", "swap_limit", "swap_max_usage"))
_KEYS = frozenset(("op", "device", "major", "minor", "pagesize"))


def _add(total: Message, more: Message) -> None:
    for field, value in more.ListFields():
        name = field.name
        if field.is_repeated and field.message_type is not None:
            _add_entries(getattr(total, name), value)
        elif field.is_repeated:
            both = itertools.zip_longest(getattr(total, name), value, fillvalue=0)
            getattr(total, name)[:] = [one + other for one, other in both]
        elif field.message_type is not None:
            _add(getattr(total, name), value)
        elif name in _KEYS:
            setattr(total, name, value)
        elif name in _LARGEST or name.startswith("hierarchical_") or isinstance(value, float):
            setattr(total, name, max(getattr(total, name), value))
        else:
            setattr(total, name, min(UNLIMITED, getattr(total, name) + value))


def _add_entries(total: RepeatedCompositeFieldContainer[Any], more: Iterable[Message]) -> None:
    known = {_key(entry): entry for entry in total}
    for entry in more:
        _add(known.get(_key(entry)) or total.add(), entry)


def _key(entry: Message) -> tuple[object, ...]:
    return tuple(getattr(entry, name, None) for name in sorted(_KEYS))


class _Folders:
    """Files of one cgroup, whichever hierarchy has them."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self.folders = folders

    def path(self, name: str) -> Path | None:
        return next((folder / name for folder in self.folders if (folder / name).exists()), None)

    def text(self, name: str) -> str:
        for folder in self.folders:
            with contextlib.suppress(OSError):
                return (folder / name).read_text(encoding="ascii", errors="replace")
        return ""

    def number(self, name: str) -> int | None:
        text = self.text(name).strip()
        if text == "max":
            return UNLIMITED
        return int(text) if text.lstrip("-").isdigit() else None

    def flat(self, name: str) -> Iterator[tuple[str, int]]:
        """The `key value` lines of a file."""
        for line in self.text(name).splitlines():
            key, _, value = line.partition(" ")
            if value.isdigit():
                yield key, int(value)


def _fill(message: Message, values: Iterator[tuple[str, int]], names: dict[str, str] | None = None) -> None:
    known = message.DESCRIPTOR.fields_by_name
    for key, value in values:
        name = (names or {}).get(key, key)
        field = known.get(name)
        if field is not None and field.message_type is None:
            setattr(message, name, value)


def _set(message: Message, field: str, value: int | None) -> None:
    if value is not None:
        setattr(message, field, value)


def _pids(message: v1_pb2.PidsStat | v2_pb2.PidsStat, files: _Folders) -> None:
    _set(message, "current", files.number("pids.current"))
    limit = files.number("pids.max")
    message.limit = 0 if limit is None or limit == UNLIMITED else limit


def _v1(files: _Folders) -> v1_pb2.Metrics:
    metrics = v1_pb2.Metrics()
    if files.path("pids.current"):
        _pids(metrics.pids, files)
    usage = metrics.cpu.usage
    _set(usage, "total", files.number("cpuacct.usage"))
    ticks = dict(files.flat("cpuacct.stat"))
    usage.kernel, usage.user = ticks.get("system", 0) * NS_PER_TICK, ticks.get("user", 0) * NS_PER_TICK
    usage.per_cpu.extend(int(value) for value in files.text("cpuacct.usage_percpu").split())
    throttled = dict(files.flat("cpu.stat"))
    metrics.cpu.throttling.periods = throttled.get("nr_periods", 0)
    metrics.cpu.throttling.throttled_periods = throttled.get("nr_throttled", 0)
    metrics.cpu.throttling.throttled_time = throttled.get("throttled_time", 0)
    if files.path("memory.usage_in_bytes"):
        _fill(metrics.memory, files.flat("memory.stat"), _V1_MEMORY_NAMES)
        for field, prefix in _V1_ENTRIES.items():
            if files.path(f"{prefix}.usage_in_bytes"):
                _v1_entry(getattr(metrics.memory, field), prefix, files)
        _fill(metrics.memory_oom_control, files.flat("memory.oom_control"))
    _v1_block(metrics.blkio, files)
    for size, prefix in _hugetlb(files, ".usage_in_bytes"):
        entry = metrics.hugetlb.add(pagesize=size)
        _v1_entry(entry, prefix, files)
    return metrics


def _v1_entry(entry: v1_pb2.MemoryEntry | v1_pb2.HugetlbStat, prefix: str, files: _Folders) -> None:
    _set(entry, "usage", files.number(f"{prefix}.usage_in_bytes"))
    _set(entry, "max", files.number(f"{prefix}.max_usage_in_bytes"))
    _set(entry, "failcnt", files.number(f"{prefix}.failcnt"))
    if isinstance(entry, v1_pb2.MemoryEntry):
        _set(entry, "limit", files.number(f"{prefix}.limit_in_bytes"))


def _v1_block(block: v1_pb2.BlkIOStat, files: _Folders) -> None:
    for field, name in (
        ("io_service_bytes_recursive", "blkio.throttle.io_service_bytes_recursive"),
        ("io_serviced_recursive", "blkio.throttle.io_serviced_recursive"),
    ):
        for line in files.text(name).splitlines():
            parts = line.split()
            if len(parts) == 3 and ":" in parts[0]:
                major, _, minor = parts[0].partition(":")
                getattr(block, field).add(op=parts[1], major=int(major), minor=int(minor), value=int(parts[2]))


def _v2(files: _Folders) -> v2_pb2.Metrics:
    metrics = v2_pb2.Metrics()
    if files.path("pids.current"):
        _pids(metrics.pids, files)
    _fill(metrics.cpu, files.flat("cpu.stat"))
    _pressure(metrics.cpu.psi, files.text("cpu.pressure"))
    if files.path("memory.current"):
        memory = metrics.memory
        _fill(memory, files.flat("memory.stat"), _V2_MEMORY_NAMES)
        for field, name in (
            ("usage", "memory.current"),
            ("usage_limit", "memory.max"),
            ("max_usage", "memory.peak"),
            ("swap_usage", "memory.swap.current"),
            ("swap_limit", "memory.swap.max"),
            ("swap_max_usage", "memory.swap.peak"),
        ):
            _set(memory, field, files.number(name))
        _pressure(memory.psi, files.text("memory.pressure"))
        _fill(metrics.memory_events, files.flat("memory.events"))
    for line in files.text("io.stat").splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        if minor.isdigit():
            values = (pair.partition("=") for pair in pairs)
            numbers = ((key, int(value)) for key, _, value in values if value.isdigit())
            _fill(metrics.io.usage.add(major=int(major), minor=int(minor)), numbers)
    _pressure(metrics.io.psi, files.text("io.pressure"))
    for size, prefix in _hugetlb(files, ".current"):
        entry = metrics.hugetlb.add(pagesize=size)
        _set(entry, "current", files.number(f"{prefix}.current"))
        _set(entry, "max", files.number(f"{prefix}.max"))
    return metrics


def _pressure(stats: v2_pb2.PSIStats, text: str) -> None:
    for line in text.splitlines():
        kind, *pairs = line.split()
        if kind not in ("some", "full"):
            continue
        data = stats.some if kind == "some" else stats.full
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key == "total":
                data.total = int(value)
            else:
                setattr(data, key, float(value))


def _hugetlb(files: _Folders, suffix: str) -> Iterator[tuple[str, str]]:
    """Page size and file prefix of each hugetlb limit."""
    for folder in files.folders:
        for path in sorted(folder.glob(f"hugetlb.*{suffix}")):
            size = path.name.removeprefix("hugetlb.").removesuffix(suffix)
            if "." not in size:
                yield size, f"hugetlb.{size}"
