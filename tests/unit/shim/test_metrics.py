"""Cgroup files become containerd's messages."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from atoll import errors
from atoll.api import containerd_cgroups_v1_pb2 as v1_pb2
from atoll.api import containerd_cgroups_v2_pb2 as v2_pb2
from atoll.linux import cgroup_layout
from atoll.linux.cgroup_layout import Hierarchies, Layout
from atoll.shim import metrics


def make(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_version_1_is_gathered_from_its_hierarchies(tmp_path: Path) -> None:
    folders = (
        make(
            tmp_path / "memory",
            memory__usage_in_bytes="100\n",
            memory__limit_in_bytes="9223372036854771712\n",
            memory__max_usage_in_bytes="200\n",
            memory__failcnt="1\n",
            memory__stat="cache 5\nswap 7\ntotal_rss 9\npgpgin 3\ntotal_pgmajfault 4\nhierarchical_memsw_limit 8\n",
            memory__oom_control="oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
        ),
        make(
            tmp_path / "cpu",
            cpuacct__usage="1000\n",
            cpuacct__stat="user 3\nsystem 2\n",
            cpuacct__usage_percpu="400 600\n",
            cpu__stat="nr_periods 5\nnr_throttled 2\nthrottled_time 77\n",
        ),
        make(tmp_path / "pids", pids__current="4\n", pids__max="max\n"),
        make(tmp_path / "blkio", blkio__throttle__io_service_bytes_recursive="8:0 Read 12\n8:0 Total 12\nTotal 12\n"),
    )
    packed = metrics.of_cgroup(folders, "x")
    assert packed.type_url == "io.containerd.cgroups.v1.Metrics"
    found = v1_pb2.Metrics.FromString(packed.value)
    memory = found.memory
    assert (memory.usage.usage, memory.usage.max, memory.usage.failcnt) == (100, 200, 1)
    assert (memory.cache, memory.total_rss, memory.pg_pg_in, memory.total_pg_maj_fault) == (5, 9, 3, 4)
    assert memory.hierarchical_swap_limit == 8
    assert (found.memory_oom_control.under_oom, found.memory_oom_control.oom_kill) == (1, 2)
    assert (found.cpu.usage.total, list(found.cpu.usage.per_cpu)) == (1000, [400, 600])
    assert found.cpu.usage.user == 3 * metrics.NS_PER_TICK
    assert (found.cpu.throttling.periods, found.cpu.throttling.throttled_time) == (5, 77)
    assert (found.pids.current, found.pids.limit) == (4, 0)
    assert [(entry.op, entry.major, entry.value) for entry in found.blkio.io_service_bytes_recursive] == [
        ("Read", 8, 12),
        ("Total", 8, 12),
    ]


def test_version_2(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "c",
        memory__current="100\n",
        memory__max="max\n",
        memory__peak="150\n",
        memory__stat="anon 5\nfile 6\nunknown_counter 7\n",
        memory__events="low 0\noom 1\noom_kill 2\n",
        memory__pressure="some avg10=1.50 avg60=0.00 avg300=0.00 total=99\nfull avg10=0.00 total=1\n",
        cpu__stat="usage_usec 11\nuser_usec 6\nnr_throttled 3\n",
        pids__current="2\n",
        pids__max="64\n",
        io__stat="8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5\n",
        hugetlb__2MB__current="1\n",
        hugetlb__2MB__max="max\n",
    )
    found = v2_pb2.Metrics.FromString(metrics.of_cgroup((folder,), "x").value)
    assert (found.memory.usage, found.memory.usage_limit, found.memory.max_usage) == (100, metrics.UNLIMITED, 150)
    assert (found.memory.anon, found.memory.file) == (5, 6)
    assert (found.memory.psi.some.avg10, found.memory.psi.some.total, found.memory.psi.full.total) == (1.5, 99, 1)
    assert (found.memory_events.oom, found.memory_events.oom_kill) == (1, 2)
    assert (found.cpu.usage_usec, found.cpu.user_usec, found.cpu.nr_throttled) == (11, 6, 3)
    assert (found.pids.current, found.pids.limit) == (2, 64)
    assert [(entry.major, entry.rbytes, entry.wios) for entry in found.io.usage] == [(8, 1, 4)]
    assert [(entry.pagesize, entry.current) for entry in found.hugetlb] == [("2MB", 1)]


def test_no_cgroup_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="container c"):
        metrics.of_cgroup((tmp_path / "gone",), "container c")
    with pytest.raises(errors.NotFound):
        metrics.of_cgroup((), "container c")


def test_the_cgroups_of_a_pod_without_its_own_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(
        tmp_path / "first",
        cpuacct__usage="10\n",
        cpuacct__usage_percpu="4 6\n",
        memory__usage_in_bytes="100\n",
        memory__max_usage_in_bytes="300\n",
        memory__limit_in_bytes="9223372036854771712\n",
        blkio__throttle__io_serviced_recursive="8:0 Read 1\n8:0 Write 2\nTotal 3\n",
        pids__current="2\n",
    )
    second = make(
        tmp_path / "second",
        cpuacct__usage="5\n",
        cpuacct__usage_percpu="5\n",
        memory__usage_in_bytes="50\n",
        memory__max_usage_in_bytes="200\n",
        memory__limit_in_bytes="9223372036854771712\n",
        blkio__throttle__io_serviced_recursive="8:0 Read 4\n8:16 Read 1\nTotal 5\n",
        pids__current="1\n",
    )
    hierarchies = Hierarchies(layout=Layout.V1, v1=MappingProxyType({}), unified=None, unified_controllers=frozenset())
    monkeypatch.setattr(cgroup_layout, "of_host", lambda: hierarchies)
    total = v1_pb2.Metrics()
    total.ParseFromString(metrics.of_cgroups([(first,), (second,), (tmp_path / "gone",)]).value)
    assert (total.cpu.usage.total, list(total.cpu.usage.per_cpu), total.pids.current) == (15, [9, 6], 3)
    usage = total.memory.usage
    assert (usage.usage, usage.max, usage.limit) == (150, 300, 9223372036854771712)
    counted = {(entry.major, entry.minor, entry.op): entry.value for entry in total.blkio.io_serviced_recursive}
    assert counted == {(8, 0, "Read"): 5, (8, 0, "Write"): 2, (8, 16, "Read"): 1}
