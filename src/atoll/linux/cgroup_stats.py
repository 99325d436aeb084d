"""What a cgroup has used: processor, memory, processes, I/O, pressure, kills for memory; one shape for v1 and v2.

Reads the kernel's files directly, five to fifteen small reads. What this host does not account is None, never zero.
Source: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst, Documentation/accounting/psi.rst of the kernel.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atoll.linux.cgroup import V1_UNLIMITED, Cgroup

FILE_LIMIT_BYTES = 64 << 10
USER_HZ = os.sysconf("SC_CLK_TCK")
# A version 1 limit above this is none; the exact number depends on the page size.
UNLIMITED_FROM = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class CPUStats:
    """Times in ns; throttling counts are zero without a quota."""

    usage_ns: int
    user_ns: int
    system_ns: int
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStats:
    """Bytes; `limit_bytes` and `swap_limit_bytes` None where there is none. `working_set_bytes` is what cannot be
    dropped at once: usage without inactive file pages. `swap_*` of version 1 are swap alone, like version 2's.
    `detail` is the kernel's memory.stat."""

    usage_bytes: int
    working_set_bytes: int
    rss_bytes: int
    page_faults: int
    major_page_faults: int
    limit_bytes: int | None = None
    peak_bytes: int | None = None
    swap_usage_bytes: int | None = None
    swap_limit_bytes: int | None = None
    failures: int = 0
    detail: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def available_bytes(self) -> int | None:
        """What may still be used; None without a limit."""
        return None if self.limit_bytes is None else max(0, self.limit_bytes - self.working_set_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PidsStats:
    current: int
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IOStats:
    """One block device's traffic since the cgroup was made."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PressureLine:
    """Shares of time in percent over 10, 60 and 300 s; total in µs."""

    avg10: float
    avg60: float
    avg300: float
    total_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """How long some, and all, processes waited for a resource."""

    some: PressureLine
    full: PressureLine | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupStats:
    """Everything at one moment; a part is None where its controller is not on this host."""

    cpu: CPUStats | None = None
    memory: MemoryStats | None = None
    pids: PidsStats | None = None
    io: tuple[IOStats, ...] = ()
    oom_kills: int | None = None
    memory_events: Mapping[str, int] = field(default_factory=dict[str, int])
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


def read_stats(group: Cgroup) -> CgroupStats:
    """The figures of `group` now. Raises `FileNotFoundError` where it is gone."""
    if not group.exists():
        raise FileNotFoundError(errno.ENOENT, "no such cgroup", group.path)
    return _read_v2(group) if group.is_v2 else _read_v1(group)


def oom_kills(group: Cgroup) -> int | None:
    """How often the kernel killed for memory in `group`; None where it is gone or not accounted."""
    folder = group.folder("memory")
    if folder is None:
        return None
    name = "memory.events" if group.is_v2 else "memory.oom_control"
    return parse_flat(_text(folder / name)).get("oom_kill")


def parse_flat(text: str) -> dict[str, int]:
    """`key value` lines; lines of another form are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdecimal():
            found[key] = int(value)
    return found


def parse_pressure(text: str) -> Pressure | None:
    """A PSI file; None for anything else."""
    lines: dict[str, PressureLine] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        fields = rest.split()
        values = dict(entry.split("=", 1) for entry in fields if "=" in entry)
        if {"avg10", "avg60", "avg300", "total"} <= values.keys():
            lines[kind] = PressureLine(
                avg10=float(values["avg10"]),
                avg60=float(values["avg60"]),
                avg300=float(values["avg300"]),
                total_us=int(values["total"]),
            )
    return Pressure(some=lines["some"], full=lines.get("full")) if "some" in lines else None


def parse_io(text: str) -> tuple[IOStats, ...]:
    """Version 2's io.stat: a line a device, `major:minor key=value ...`."""
    found: list[IOStats] = []
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        fields = rest.split()
        major, _, minor = device.partition(":")
        values = {key: int(value) for key, _, value in (entry.partition("=") for entry in fields) if value.isdecimal()}
        if major.isdecimal() and minor.isdecimal() and values:
            found.append(
                IOStats(
                    major=int(major),
                    minor=int(minor),
                    read_bytes=values.get("rbytes", 0),
                    write_bytes=values.get("wbytes", 0),
                    reads=values.get("rios", 0),
                    writes=values.get("wios", 0),
                )
            )
    return tuple(found)


def parse_blkio(service_bytes: str, serviced: str) -> tuple[IOStats, ...]:
    """Version 1's blkio files: `major:minor Operation value` lines, bytes and operations apart."""
    counts: dict[tuple[int, int], dict[str, int]] = {}
    for prefix, text in (("bytes", service_bytes), ("count", serviced)):
        for line in text.splitlines():
            fields = line.split()
            if len(fields) == 3 and fields[1] in ("Read", "Write"):
                major, _, minor = fields[0].partition(":")
                counts.setdefault((int(major), int(minor)), {})[f"{prefix}-{fields[1]}"] = int(fields[2])
    return tuple(
        IOStats(
            major=major,
            minor=minor,
            read_bytes=count.get("bytes-Read", 0),
            write_bytes=count.get("bytes-Write", 0),
            reads=count.get("count-Read", 0),
            writes=count.get("count-Write", 0),
        )
        for (major, minor), count in sorted(counts.items())
    )


def _read_v2(group: Cgroup) -> CgroupStats:
    folder = group.unified
    assert folder is not None
    cpu = parse_flat(_text(folder / "cpu.stat"))
    events = parse_flat(_text(folder / "memory.events"))
    return CgroupStats(
        cpu=CPUStats(
            usage_ns=cpu.get("usage_usec", 0) * 1000,
            user_ns=cpu.get("user_usec", 0) * 1000,
            system_ns=cpu.get("system_usec", 0) * 1000,
            periods=cpu.get("nr_periods", 0),
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        ),
        memory=_memory_v2(folder, events),
        pids=_pids(folder),
        io=parse_io(_text(folder / "io.stat")),
        oom_kills=events.get("oom_kill"),
        memory_events=events,
        cpu_pressure=parse_pressure(_text(folder / "cpu.pressure")),
        memory_pressure=parse_pressure(_text(folder / "memory.pressure")),
        io_pressure=parse_pressure(_text(folder / "io.pressure")),
    )


def _memory_v2(folder: Path, events: Mapping[str, int]) -> MemoryStats | None:
    usage = _value(folder / "memory.current")
    if usage is None:
        return None
    detail = parse_flat(_text(folder / "memory.stat"))
    return MemoryStats(
        usage_bytes=usage,
        working_set_bytes=max(0, usage - detail.get("inactive_file", 0)),
        rss_bytes=detail.get("anon", 0),
        page_faults=detail.get("pgfault", 0),
        major_page_faults=detail.get("pgmajfault", 0),
        limit_bytes=_limit(folder / "memory.max"),
        peak_bytes=_value(folder / "memory.peak"),
        swap_usage_bytes=_value(folder / "memory.swap.current"),
        swap_limit_bytes=_limit(folder / "memory.swap.max"),
        failures=events.get("max", 0),
        detail=detail,
    )


def _read_v1(group: Cgroup) -> CgroupStats:
    folder = group.folder("memory")
    control = parse_flat(_text(folder / "memory.oom_control")) if folder is not None else {}
    pids = group.folder("pids")
    return CgroupStats(
        cpu=_cpu_v1(group),
        memory=_memory_v1(folder) if folder is not None else None,
        pids=_pids(pids) if pids is not None else None,
        io=_io_v1(group),
        oom_kills=control.get("oom_kill"),
        memory_events=control,
    )


def _cpu_v1(group: Cgroup) -> CPUStats | None:
    account = group.folder("cpuacct")
    usage = _value(account / "cpuacct.usage") if account is not None else None
    if account is None or usage is None:
        return None
    split = parse_flat(_text(account / "cpuacct.stat"))
    scheduler = group.folder("cpu")
    throttling = parse_flat(_text(scheduler / "cpu.stat")) if scheduler is not None else {}
    return CPUStats(
        usage_ns=usage,
        user_ns=split.get("user", 0) * 1_000_000_000 // USER_HZ,
        system_ns=split.get("system", 0) * 1_000_000_000 // USER_HZ,
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_ns=throttling.get("throttled_time", 0),
    )


def _memory_v1(folder: Path) -> MemoryStats | None:
    usage = _value(folder / "memory.usage_in_bytes")
    if usage is None:
        return None
    detail = parse_flat(_text(folder / "memory.stat"))
    both, limit = _value(folder / "memory.memsw.usage_in_bytes"), _limit(folder / "memory.limit_in_bytes")
    both_limit = _limit(folder / "memory.memsw.limit_in_bytes")
    return MemoryStats(
        usage_bytes=usage,
        working_set_bytes=max(0, usage - detail.get("total_inactive_file", 0)),
        rss_bytes=detail.get("total_rss", 0),
        page_faults=detail.get("total_pgfault", 0),
        major_page_faults=detail.get("total_pgmajfault", 0),
        limit_bytes=limit,
        peak_bytes=_value(folder / "memory.max_usage_in_bytes"),
        swap_usage_bytes=None if both is None else max(0, both - usage),
        swap_limit_bytes=None if both_limit is None or limit is None else max(0, both_limit - limit),
        failures=_value(folder / "memory.failcnt") or 0,
        detail=detail,
    )


def _io_v1(group: Cgroup) -> tuple[IOStats, ...]:
    folder = group.folder("blkio")
    if folder is None:
        return ()
    prefix = folder / "blkio.throttle."
    return parse_blkio(
        _text(Path(f"{prefix}io_service_bytes_recursive")), _text(Path(f"{prefix}io_serviced_recursive"))
    )


def _pids(folder: Path) -> PidsStats | None:
    current = _value(folder / "pids.current")
    return None if current is None else PidsStats(current=current, limit=_limit(folder / "pids.max"))


def _text(file: Path) -> str:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        return os.read(fd, FILE_LIMIT_BYTES).decode("ascii", "replace")
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):  # removed meanwhile; pressure accounting turned off
            return ""
        raise
    finally:
        os.close(fd)


def _value(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _limit(file: Path) -> int | None:
    value = _value(file)
    return None if value is None or value >= min(UNLIMITED_FROM, V1_UNLIMITED) else value
