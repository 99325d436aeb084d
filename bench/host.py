"""What /proc and /sys tell of this machine and of the processes of a run."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARKER = "ATOLL_BENCH"
"""Environment variable that a daemon and its shims inherit; its value names the run and the daemon."""


def read(path: str | Path) -> bytes:
    """A file of the kernel; empty where its subject has gone."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command(pid: int) -> str:
    return read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def parent(pid: int) -> int:
    tail = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(tail[1]) if len(tail) > 1 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes of one daemon: itself, those with its marker (shims, the zygote), and all others below these."""

    daemon: int
    marked: tuple[int, ...]
    below: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return (self.daemon, *self.marked, *self.below)


def processes_of(daemon: int, mark: str) -> Processes:
    wanted = f"{MARKER}={mark}\0".encode()
    parents = {pid: parent(pid) for pid in pids()}
    marked = {pid for pid in parents if pid != daemon and wanted in read(f"/proc/{pid}/environ")}
    below: set[int] = set()
    for pid in parents:
        above = parents.get(pid, 0)
        while above and above not in marked:
            above = parents.get(above, 0)
        if above and pid not in marked and pid != daemon:
            below.add(pid)
    return Processes(daemon=daemon, marked=tuple(sorted(marked)), below=tuple(sorted(below)))


def pss_kib(pid: int) -> int:
    """Proportional share of memory, its part of shared pages included; proc(5), smaps_rollup."""
    found = re.search(rb"^Pss:\s+(\d+)", read(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
    return int(found[1]) if found else 0


def private_kib(pid: int) -> int:
    """Memory of no other process: what comes back when this one ends."""
    text = read(f"/proc/{pid}/smaps_rollup")
    return sum(int(number) for number in re.findall(rb"^Private_(?:Clean|Dirty):\s+(\d+)", text, re.MULTILINE))


def rss_kib(pid: int) -> int:
    found = re.search(rb"^VmRSS:\s+(\d+)", read(f"/proc/{pid}/status"), re.MULTILINE)
    return int(found[1]) if found else 0


def threads(pid: int) -> int:
    found = re.search(rb"^Threads:\s+(\d+)", read(f"/proc/{pid}/status"), re.MULTILINE)
    return int(found[1]) if found else 0


def open_fds(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def available_kib() -> int:
    """MemAvailable of the whole machine."""
    found = re.search(rb"^MemAvailable:\s+(\d+)", read("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) if found else 0


def drop_caches() -> None:
    """Write back and let go of what the kernel keeps only because it may (proc(5), drop_caches)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def bridge_ports(bridge: str) -> int:
    """Links attached to a bridge of this network namespace."""
    try:
        return len(os.listdir(f"/sys/class/net/{bridge}/brif"))
    except OSError:
        return 0


def leases(folder: Path) -> int:
    """Addresses that host-local has given away, by the files of its data folder."""
    return sum(1 for path in folder.glob("*/*") if re.fullmatch(r"[0-9.]+", path.name))


def mounts_with(word: str) -> list[str]:
    """Mount points with `word` in their path, the latest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in reversed(lines) if word in (point := line.split()[4])]


def cgroups_with(word: str) -> list[Path]:
    """Cgroups with `word` in their path, the innermost first."""
    found: list[Path] = []
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found += [Path(folder, name) for name in names if word in f"{folder}/{name}"]
    return sorted(found, reverse=True)


def hierarchies() -> Iterator[Path]:
    """The root of every cgroup hierarchy with controllers, v1's or the one of v2."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        is_v1 = kind == "cgroup" and "name=" not in options
        if is_v1 or (kind == "cgroup2" and read(f"{point}/cgroup.controllers").strip()):
            yield Path(point)


def facts() -> dict[str, str]:
    """The machine and the versions of what is measured."""
    model = re.search(r"^model name\s*:\s*(.+)$", read("/proc/cpuinfo").decode(), re.MULTILINE)
    total = re.search(rb"^MemTotal:\s+(\d+)", read("/proc/meminfo"), re.MULTILINE)
    has_v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    hybrid = Path("/sys/fs/cgroup/unified").is_dir()
    return {
        "CPU": f"{os.cpu_count()} x {model[1].strip() if model else platform.machine()}",
        "memory": f"{int(total[1]) >> 20 if total else 0} GiB",
        "kernel": platform.release(),
        "cgroups": "v2" if has_v2 else "v1, hybrid" if hybrid else "v1",
        "Python": platform.python_version(),
        "containerd": version("containerd", "--version"),
        "runc": version("runc", "--version"),
        "crun": version("crun", "--version"),
    }


def version(*argv: str) -> str:
    """The first version number that a program tells; empty where it is not installed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout
        found = re.search(r"\d+\.\d+[\w.~+-]*", told)
        return found[0] if found else ""
    return ""
