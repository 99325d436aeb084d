"""The files of a cgroup as kernels of both versions lay them out, and what is read from them."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.linux import cgroup_details, cgroup_files, cgroup_usage
from atoll.linux.cgroup_details import DeviceIO, Hugetlb
from atoll.linux.cgroup_files import Pressure, PressureLine
from atoll.linux.cgroup_layout import Hierarchies, Layout
from atoll.linux.cgroup_usage import Memory, Places

PRESSURE = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=5\n"
V1 = {
    "cpu": {
        "cpu.stat": "nr_periods 4\nnr_throttled 2\nthrottled_time 9000\n",
    },
    "cpuacct": {
        "cpuacct.usage": "1500000\n",
        "cpuacct.usage_user": "1000000\n",
        "cpuacct.usage_sys": "500000\n",
        "cgroup.procs": "1\n2\n3\n",
    },
    "memory": {
        "memory.usage_in_bytes": "1000\n",
        "memory.max_usage_in_bytes": "2000\n",
        "memory.failcnt": "7\n",
        "memory.kmem.usage_in_bytes": "30\n",
        "memory.soft_limit_in_bytes": "9223372036854771712\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "memory.stat": (
            "cache 1\npgfault 5\npgmajfault 1\nhierarchical_memory_limit 4000\nhierarchical_memsw_limit 6000\n"
            "total_cache 300\ntotal_rss 400\ntotal_mapped_file 20\ntotal_swap 50\ntotal_pgfault 8\n"
            "total_pgmajfault 2\ntotal_inactive_file 250\n"
        ),
    },
    "pids": {"pids.current": "3\n", "pids.max": "max\n", "cgroup.procs": "1\n2\n3\n"},
    "blkio": {
        "blkio.throttle.io_service_bytes_recursive": "254:0 Read 10\n254:0 Write 20\n254:0 Total 30\nTotal 30\n",
        "blkio.throttle.io_serviced_recursive": "254:0 Read 1\n254:0 Write 2\n254:0 Total 3\nTotal 3\n",
    },
    "hugetlb": {"hugetlb.2MB.usage_in_bytes": "4096\n", "hugetlb.2MB.max_usage_in_bytes": "8192\n"},
    "unified": {"cpu.pressure": PRESSURE, "memory.pressure": PRESSURE, "io.pressure": PRESSURE},
}
V2 = {
    "cgroup.procs": "1\n2\n",
    "cpu.pressure": PRESSURE,
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 2\nthrottled_usec 9\n",
    "hugetlb.2MB.current": "4096\n",
    "hugetlb.2MB.rsvd.current": "1\n",
    "io.stat": "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n",
    "memory.current": "1000\n",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 0\n",
    "memory.high": "max\n",
    "memory.max": "4000\n",
    "memory.peak": "2000\n",
    "memory.stat": "anon 400\nfile 300\nkernel 30\nfile_mapped 20\ninactive_file 250\npgfault 8\npgmajfault 2\n",
    "memory.swap.current": "50\n",
    "memory.swap.max": "2000\n",
    "pids.current": "3\n",
    "pids.max": "64\n",
}
MEMORY = Memory(
    usage=1000, working_set=750, rss=400, limit=4000, page_faults=8, major_page_faults=2, swap=50, swap_limit=2000
)


@pytest.fixture
def v1(tmp_path: Path) -> Places:
    for name, files in V1.items():
        write(tmp_path / name / "pod/c1", files)
    controllers = {name: tmp_path / name for name in V1 if name != "unified"}
    hierarchies = Hierarchies(
        layout=Layout.HYBRID,
        v1=MappingProxyType(controllers),
        unified=tmp_path / "unified",
        unified_controllers=frozenset(),
    )
    return cgroup_usage.places([str(tmp_path / name / "pod/c1") for name in V1], hierarchies)


@pytest.fixture
def v2(tmp_path: Path) -> Places:
    write(tmp_path / "pod/c1", V2)
    hierarchies = Hierarchies(
        layout=Layout.V2, v1=MappingProxyType({}), unified=tmp_path, unified_controllers=frozenset()
    )
    return cgroup_usage.places([str(tmp_path / "pod/c1")], hierarchies)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_versions_tell_the_same(version: str, request: pytest.FixtureRequest) -> None:
    usage = cgroup_usage.read(request.getfixturevalue(version))
    assert usage is not None
    assert (usage.cpu_ns, usage.memory) == (1_500_000, MEMORY)
    assert usage.memory is not None
    assert (usage.memory.available, usage.memory.swap_available) == (3250, 1950)
    some = PressureLine(avg10=1.5, avg60=0.25, avg300=0.0, total_us=77)
    full = PressureLine(avg10=0.5, avg60=0.0, avg300=0.0, total_us=5)
    assert usage.cpu_pressure == usage.memory_pressure or usage.memory_pressure is None
    assert usage.cpu_pressure == Pressure(some=some, full=full)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_details_of_both_versions(version: str, request: pytest.FixtureRequest) -> None:
    details = cgroup_details.read_details(request.getfixturevalue(version))
    assert (details.user_ns, details.system_ns) == (1_000_000, 500_000)
    assert (details.periods, details.throttled_periods, details.throttled_ns) == (4, 2, 9000)
    assert (details.cache, details.mapped, details.kernel, details.max_usage) == (300, 20, 30, 2000)
    assert (details.limit_hits, details.soft_limit, details.oom_kills) == (7, None, 3)
    assert (details.tasks, details.max_tasks) == (3, None if version == "v1" else 64)
    assert details.own_faults == ((5, 1) if version == "v1" else None)
    assert details.devices[254, 0] == DeviceIO(read_bytes=10, written_bytes=20, reads=1, writes=2)
    assert details.hugetlb == {"2MB": Hugetlb(usage=4096, max_usage=8192 if version == "v1" else None)}


def test_a_limit_that_limits_nothing_is_none(v1: Places) -> None:
    Path(v1.memory, "memory.stat").write_text(
        "hierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 9223372036854771712\n"
    )
    usage = cgroup_usage.read(v1)
    assert usage is not None
    assert usage.memory is not None
    assert (usage.memory.limit, usage.memory.available, usage.memory.swap_limit) == (None, None, None)


def test_more_reclaimable_than_used_is_a_working_set_of_nothing(v2: Places) -> None:
    Path(v2.unified, "memory.stat").write_text("inactive_file 5000\n")
    usage = cgroup_usage.read(v2)
    assert usage is not None
    assert usage.memory is not None
    assert usage.memory.working_set == 0


def test_processes_below_count_too(v1: Places, v2: Places) -> None:
    assert sorted(cgroup_usage.processes(v1)) == [1, 2, 3]
    write(Path(v2.unified, "inner"), {"cgroup.procs": "9\n"})
    assert sorted(cgroup_usage.processes(v2)) == [1, 2, 9]


def test_a_cgroup_that_has_gone_has_no_sample(tmp_path: Path) -> None:
    gone = Places(is_v2=True, unified=str(tmp_path / "gone"))
    assert cgroup_usage.read(gone) is None
    assert cgroup_usage.processes(gone) == []
    assert cgroup_details.read_details(gone) == cgroup_details.Details()


def test_folders_of_no_hierarchy_are_no_places(tmp_path: Path) -> None:
    hierarchies = Hierarchies(
        layout=Layout.V2, v1=MappingProxyType({}), unified=tmp_path / "a", unified_controllers=frozenset()
    )
    assert not cgroup_usage.places([str(tmp_path / "ab/c"), str(tmp_path)], hierarchies)


@pytest.mark.parametrize(
    "text", ["", "some\n", "some avg10=x avg60=0 avg300=0 total=1\n", "none avg10=0 avg60=0 avg300=0 total=1\n", "\n\n"]
)
def test_pressure_of_another_form_is_none(text: str) -> None:
    assert cgroup_files.parse_pressure(text) == Pressure()


@given(st.text(max_size=80))
def test_no_text_breaks_the_readers(text: str) -> None:
    cgroup_files.flat(text)
    cgroup_files.parse_pressure(text)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "memory.current")
    with pytest.raises(IsADirectoryError):
        cgroup_files.text(str(tmp_path), "memory.current")
