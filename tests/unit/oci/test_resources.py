from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import msgspec
import pytest

from atoll import errors
from atoll.linux.cgroup import Limits
from atoll.linux.cgroup_layout import Layout
from atoll.linux.host import HostFacts, listed
from atoll.oci import resources, spec, sysctls
from atoll.oci.config import HugepageLimit, LinuxContainerResources, NamespaceMode, NamespaceOption


def test_pod_limits_are_the_containers_words(host: HostFacts) -> None:
    asked = LinuxContainerResources(cpu_shares=1, cpu_quota=5000, cpu_period=10_000, memory_limit_in_bytes=1 << 20)
    assert resources.limits(asked, host) == Limits(
        cpu_shares=2, cpu_quota_us=5000, cpu_period_us=10_000, memory_bytes=1 << 20, memory_and_swap_bytes=1 << 20
    )
    assert resources.limits(LinuxContainerResources(), host) == Limits()


@pytest.mark.parametrize("layout", [Layout.V1, Layout.HYBRID, Layout.V2])
def test_a_pids_limit_is_kept_on_every_version_of_cgroups(host: HostFacts, layout: Layout) -> None:
    there = replace(host, hierarchies=replace(host.hierarchies, layout=layout))
    for text, limit in (("7", 7), ("max", -1)):
        found = resources.resolve(LinuxContainerResources(unified={"pids.max": text}), there)
        assert (found.pids, found.unified) == (spec.Pids(limit=limit), {})
    for text in ("0", "-1", "x", "", "1.5", "99999999"):
        with pytest.raises(errors.InvalidArgument, match=r"pids\.max"):
            resources.resolve(LinuxContainerResources(unified={"pids.max": text}), there)
    assert resources.resolve(LinuxContainerResources(), there).pids is None


def test_hugepages_need_the_host(host: HostFacts) -> None:
    asked = LinuxContainerResources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=0),))
    assert len(resources.resolve(asked, host).hugepage_limits) == 1
    with pytest.raises(errors.InvalidArgument):
        resources.resolve(LinuxContainerResources(hugepage_limits=(HugepageLimit(page_size="3MB"),)), host)


@pytest.mark.parametrize(
    ("parent", "systemd", "expected"),
    [
        ("/pods/p1", False, "/pods/p1/c1"),
        ("", False, "/c1"),
        ("/kubepods.slice/kubepods-p1.slice", True, "kubepods-p1.slice:atoll:c1"),
    ],
)
def test_cgroup_path_has_the_drivers_form(parent: str, systemd: bool, expected: str) -> None:
    assert resources.cgroups_path(parent, "c1", systemd=systemd) == expected


@pytest.mark.parametrize(("parent", "systemd"), [("/a/../..", False), ("/pods", True)])
def test_wrong_parent_is_refused(parent: str, systemd: bool) -> None:
    with pytest.raises(errors.InvalidArgument):
        resources.cgroups_path(parent, "c1", systemd=systemd)


def test_limit_without_a_controller_is_an_error(host: HostFacts) -> None:
    none = replace(host, hierarchies=replace(host.hierarchies, v1={}))
    with pytest.raises(errors.FailedPrecondition, match="memory"):
        resources.resolve(LinuxContainerResources(memory_limit_in_bytes=1 << 20), none)


def test_sysctls_are_the_pods_own() -> None:
    pod = NamespaceOption()
    assert sysctls.resolve({"kernel.shm_rmid_forced": "1"}, pod) == {
        "kernel.shm_rmid_forced": "1",
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }
    assert (
        sysctls.resolve({"net.ipv4.ip_unprivileged_port_start": "9"}, pod)["net.ipv4.ip_unprivileged_port_start"] == "9"
    )
    assert "net.ipv4.conf.eth0/100.forwarding" in sysctls.resolve({"net/ipv4/conf/eth0.100/forwarding": "1"}, pod)
    assert sysctls.resolve({}, NamespaceOption(network=NamespaceMode.NODE)) == {}


@pytest.mark.parametrize(
    "name", ["vm.swappiness", "kernel.core_pattern", "net..x", "../../etc", "net", "kernel.sem/../x", ""]
)
def test_other_sysctls_are_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        sysctls.resolve({name: "1"}, NamespaceOption())


def test_sysctl_of_the_hosts_network_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="host"):
        sysctls.resolve({"net.core.somaxconn": "1"}, NamespaceOption(network=NamespaceMode.NODE))


def test_unified_keys_need_version_two(host: HostFacts) -> None:
    asked = LinuxContainerResources(unified={"memory.high": "1000", "io.weight": "default 50", "pids.max": "9"})
    with pytest.raises(errors.FailedPrecondition, match="unified"):
        resources.resolve(asked, host)
    unified = replace(
        host,
        hierarchies=replace(
            host.hierarchies, layout=Layout.V2, v1=MappingProxyType({}), unified_controllers=frozenset({"pids", "io"})
        ),
    )
    found = resources.resolve(asked, unified)
    assert found.unified == {"memory.high": "1000", "io.weight": "default 50"}
    assert found.pids == spec.Pids(limit=9)
    for name in ("../x", "cgroup.procs/..", "Memory.high", "memory"):
        with pytest.raises(errors.InvalidArgument, match="unified"):
            resources.resolve(LinuxContainerResources(unified={name: "1"}), unified)


@pytest.mark.parametrize(
    ("field", "value", "is_there"),
    [
        *(("cpuset_cpus", value, True) for value in ("0", "0-2", "1,2", "3")),
        *(("cpuset_cpus", value, False) for value in ("4", "0-4", "0-99999999", "2-1", "0,17")),
        ("cpuset_mems", "0", True),
        ("cpuset_mems", "1", False),
    ],
)
def test_processors_and_memory_nodes_are_the_hosts(host: HostFacts, field: str, value: str, is_there: bool) -> None:
    there = replace(host, cpus=listed("0-2,3"), memory_nodes=listed("0"))
    asked = msgspec.structs.replace(LinuxContainerResources(), **{field: value})
    if is_there:
        assert resources.resolve(asked, there).cpu is not None
    else:
        with pytest.raises(errors.InvalidArgument, match=field):
            resources.resolve(asked, there)
