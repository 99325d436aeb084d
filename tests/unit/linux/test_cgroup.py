"""Cgroup files of both versions as a kernel lays them out, in a folder of the test."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup, Limits, cpu_weight
from atoll.linux.cgroup_layout import Hierarchies, Layout, validated
from atoll.linux.mounts import parse_mountinfo

V2_FILES = {
    "cpu.max": "max 100000\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 2\nthrottled_usec 9\n",
    "cpu.weight": "100\n",
    "cpuset.cpus": "\n",
    "io.stat": "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n",
    "memory.current": "1000\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n",
    "memory.max": "max\n",
    "memory.peak": "2000\n",
    "memory.stat": "anon 400\nfile 300\ninactive_file 250\npgfault 8\npgmajfault 1\nslab 5\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "max\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
}


@pytest.fixture
def unified(tmp_path: Path) -> Cgroup:
    for folder in (tmp_path, tmp_path / "pod", tmp_path / "pod/c1"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        (folder / "cgroup.subtree_control").write_text("cpu memory\n")
    for name, content in V2_FILES.items():
        (tmp_path / "pod/c1" / name).write_text(content)
    hierarchies = Hierarchies(
        layout=Layout.V2,
        v1=MappingProxyType({}),
        unified=tmp_path,
        unified_controllers=frozenset(("cpuset", "cpu", "io", "memory", "pids")),
    )
    return Cgroup("/pod/c1", hierarchies)


def content(group: Cgroup, name: str) -> str:
    assert group.unified is not None
    return (group.unified / name).read_text().split("\n")[0]


def test_limits_are_written_as_version_2_counts(unified: Cgroup) -> None:
    unified.set_limits(
        Limits(
            cpu_shares=1024,
            cpu_quota_us=50_000,
            cpu_period_us=200_000,
            memory_bytes=1 << 20,
            memory_and_swap_bytes=3 << 20,
            pids=-1,
        )
    )
    assert content(unified, "cpu.weight").startswith("39")
    assert content(unified, "cpu.max").startswith("50000 200000")
    assert content(unified, "memory.max").startswith(str(1 << 20))
    assert content(unified, "memory.swap.max").startswith(str(2 << 20))
    assert content(unified, "pids.max").startswith("max")


def test_a_period_alone_keeps_the_quota(unified: Cgroup) -> None:
    unified.set_limits(Limits(cpu_quota_us=20_000, cpu_period_us=100_000))
    unified.set_limits(Limits(cpu_period_us=200_000))
    assert content(unified, "cpu.max") == "20000 200000"


def test_a_limit_that_is_refused_takes_back_those_before_it(unified: Cgroup) -> None:
    assert unified.unified is not None
    (unified.unified / "pids.max").unlink()
    (unified.unified / "pids.max").mkdir()
    before = content(unified, "cpu.weight"), content(unified, "memory.max")
    with pytest.raises(OSError, match=r"pids\.max"):
        unified.set_limits(Limits(cpu_shares=5000, memory_bytes=123, pids=3))
    assert (content(unified, "cpu.weight"), content(unified, "memory.max")) == before


def test_sum_with_swap_needs_memory_beside_it(unified: Cgroup) -> None:
    with pytest.raises(errors.InvalidArgument):
        unified.set_limits(Limits(memory_and_swap_bytes=3 << 20))


def test_limit_without_its_controller_is_an_error(tmp_path: Path) -> None:
    none = Hierarchies(
        layout=Layout.V2, v1=MappingProxyType({}), unified=tmp_path, unified_controllers=frozenset[str]()
    )
    with pytest.raises(errors.FailedPrecondition, match="pids"):
        Cgroup("/x", none).set_limits(Limits(pids=5))


def test_controllers_are_enabled_down_to_the_parent(unified: Cgroup, tmp_path: Path) -> None:
    unified.create()
    assert (tmp_path / "cgroup.subtree_control").read_text().startswith("+pids")
    assert (tmp_path / "pod/cgroup.subtree_control").read_text().startswith("+pids")
    assert (tmp_path / "pod/c1/cgroup.subtree_control").read_text() == "cpu memory\n"


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (0, 1), (1 << 30, 10000)])
def test_shares_become_weights(shares: int, weight: int) -> None:
    assert cpu_weight(shares) == weight


@pytest.mark.parametrize("path", ["", "/", "//", "/a/../b", "..", "/a/./b", "/a\n", "/" + "a" * 300, "/a" * 600])
def test_path_that_could_leave_is_refused(path: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        validated(path)


@given(st.text())
def test_valid_path_stays_below_the_hierarchy(path: str) -> None:
    try:
        clean = validated(path)
    except errors.InvalidArgument:
        return
    assert Path("/cg", clean[1:]).resolve().is_relative_to("/cg")
    assert clean != "/"
    assert validated(clean) == clean


@pytest.mark.parametrize(
    ("mounts", "layout"),
    [
        ("cgroup2 cgroup2 rw", Layout.V2),
        ("cgroup cgroup rw,memory|cgroup cgroup rw,cpu,cpuacct", Layout.V1),
        ("cgroup cgroup rw,memory|cgroup2 cgroup2 rw", Layout.HYBRID),
    ],
)
def test_layout_is_read_from_the_mounts(mounts: str, layout: Layout) -> None:
    table = "".join(f"{i} 1 0:{i} / /none/{i} rw - {entry}\n" for i, entry in enumerate(mounts.split("|")))
    found = cgroup_layout.detect(parse_mountinfo(table))
    assert found.layout is layout
    if layout is Layout.V1:
        assert found.v1["cpu"] == found.v1["cpuacct"] == Path("/none/1")
        assert len(found.mounts) == 2


def test_host_without_cgroups_is_told_so() -> None:
    with pytest.raises(errors.FailedPrecondition, match="mount cgroup2"):
        cgroup_layout.detect([])
