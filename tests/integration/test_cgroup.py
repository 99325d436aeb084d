"""Cgroups on the real kernel, in whatever layout this host has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.api import containerd_cgroups_v1_pb2 as v1_pb2
from atoll.api import containerd_cgroups_v2_pb2 as v2_pb2
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup, Limits, expedite_attach
from atoll.linux.cgroup_layout import Hierarchies, Layout
from atoll.shim import cgroups, metrics
from tests.integration.conftest import Roots

MEMORY_HOG = "import mmap\nm = mmap.mmap(-1, 64 << 20)\nfor i in range(0, 64 << 20, 4096): m[i] = 1\n"


@pytest.fixture
def group(roots: Roots) -> Iterator[Cgroup]:
    hierarchies = cgroup_layout.detect()
    made = Cgroup(f"/{roots.prefix}/pod/one", hierarchies)
    made.create()
    yield made
    top = Cgroup(f"/{roots.prefix}", hierarchies)
    top.kill()
    top.delete()
    assert not top.exists()


def start(group: Cgroup, *argv: str) -> subprocess.Popen[bytes]:
    """A program that put itself into the cgroup before its exec, as a shim's child does."""
    files = [str(file) for file in group.joining_files()]
    script = 'for file in "$@"; do [ "$file" = -- ] && break; echo 0 > "$file"; shift; done; shift; echo; exec "$@"'
    child = subprocess.Popen(["sh", "-c", script, "sh", *files, "--", *argv], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"\n"
    child.stdout.close()
    return child


def test_create_and_delete_are_idempotent(group: Cgroup) -> None:
    group.create()
    assert all(folder.is_dir() for folder in group.folders)
    group.delete()
    group.delete()
    assert not group.exists()
    with pytest.raises(errors.NotFound):
        metrics.of_cgroup(group.folders, "the test's")


def test_process_that_joins_is_in_every_hierarchy_that_counts(group: Cgroup) -> None:
    with start(group, "sleep", "60") as child:
        told = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
        inside = [line for line in told if line.endswith(group.path)]
        outside = [line for line in told if not line.endswith(group.path)]
        assert len(inside) >= 1
        # In a hybrid layout the version 2 hierarchy is left alone; controllers that are not mounted cannot be joined.
        mounted = cgroup_layout.detect()
        assert not [line for line in outside if line.split(":")[1] in mounted.v1]
        assert group.processes() == (child.pid,)
        group.kill()
        assert child.wait() == -signal.SIGKILL


def test_living_process_can_be_added(group: Cgroup) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        group.add(child.pid)
        assert group.processes() == (child.pid,)
        child.kill()


def test_limits_show_in_the_figures(group: Cgroup) -> None:
    group.set_limits(
        Limits(
            cpu_shares=512,
            cpu_quota_us=20_000,
            cpu_period_us=100_000,
            memory_bytes=32 << 20,
            memory_and_swap_bytes=32 << 20,
            pids=17,
        )
    )
    group.set_limits(Limits(memory_bytes=48 << 20, memory_and_swap_bytes=64 << 20))
    assert usage_and_limit(group)[1] == 48 << 20
    assert figures(group).pids.limit == 17
    group.set_limits(Limits(memory_bytes=32 << 20, memory_and_swap_bytes=32 << 20))
    group.set_limits(Limits(memory_bytes=-1, memory_and_swap_bytes=-1) if not group.is_v2 else Limits(memory_bytes=-1))
    assert usage_and_limit(group)[1] >= 1 << 62


def test_frozen_processes_stand_still_until_thawed(group: Cgroup) -> None:
    with start(group, sys.executable, "-c", "while True: pass") as child:
        group.freeze()
        before = ticks(child.pid)
        time.sleep(0.1)
        after = ticks(child.pid)
        assert after - before < 2
        group.thaw()
        time.sleep(0.2)
        assert ticks(child.pid) > after
        child.kill()


def ticks(pid: int) -> int:
    """The processor time of a process, in clock ticks (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def figures(group: Cgroup) -> v1_pb2.Metrics | v2_pb2.Metrics:
    message = v2_pb2.Metrics() if group.is_v2 else v1_pb2.Metrics()
    found = metrics.of_cgroup(group.folders, "the test's")
    assert found.type_url == message.DESCRIPTOR.full_name
    message.ParseFromString(found.value)
    return message


def usage_and_limit(group: Cgroup) -> tuple[int, int]:
    """Of memory, in bytes."""
    memory = figures(group).memory
    if isinstance(memory, v1_pb2.MemoryStat):
        return memory.usage.usage, memory.usage.limit
    return memory.usage, memory.usage_limit


def test_kill_for_memory_is_counted(group: Cgroup) -> None:
    group.set_limits(Limits(memory_bytes=24 << 20, memory_and_swap_bytes=24 << 20))
    before = cgroups.oom_kills(group.folders)
    with start(group, sys.executable, "-c", MEMORY_HOG) as child:
        assert child.wait(20) == -signal.SIGKILL
    assert (before, cgroups.oom_kills(group.folders)) == (0, 1)


def test_metrics_are_of_what_runs_in_it(group: Cgroup) -> None:
    with start(group, sys.executable, "-c", "x = bytearray(8 << 20); import time; time.sleep(60)") as child:
        time.sleep(0.2)
        assert figures(group).pids.current == 1
        assert usage_and_limit(group)[0] >= 8 << 20
        child.kill()


def test_unified_hierarchy_freezes_and_kills_too(roots: Roots) -> None:
    host = cgroup_layout.detect()
    if host.unified is None:
        pytest.skip("needs cgroup v2: this host has version 1 alone")
    alone = Hierarchies(layout=Layout.V2, v1={}, unified=host.unified, unified_controllers=host.unified_controllers)
    group = Cgroup(f"/{roots.prefix}/pod", alone)
    group.create()
    try:
        with start(group, sys.executable, "-c", "while True: pass") as child:
            assert group.processes() == (child.pid,)
            group.freeze()
            before = ticks(child.pid)
            time.sleep(0.1)
            assert ticks(child.pid) - before < 2
            group.thaw()
            group.kill()
            assert child.wait() == -signal.SIGKILL
    finally:
        group.kill()
        Cgroup(f"/{roots.prefix}", alone).delete()
    assert not group.exists()


def test_expedited_attach_moves_nothing() -> None:
    before = Path("/proc/self/cgroup").read_text()
    expedite_attach(cgroup_layout.detect())
    assert Path("/proc/self/cgroup").read_text() == before


def test_layout_is_what_is_mounted() -> None:
    found = cgroup_layout.detect()
    kinds = {
        line.split()[2]
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.split()[2].startswith("cgroup")
    }
    expected = {frozenset(("cgroup",)): Layout.V1, frozenset(("cgroup2",)): Layout.V2}
    assert found.layout is expected.get(frozenset(kinds), Layout.HYBRID)
    assert {"memory", "cpu", "pids"} <= found.controllers
    assert os.access(found.mounts[0], os.W_OK)
