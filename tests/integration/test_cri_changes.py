"""What changes while a pod or a container is there: limits, the node's pod ranges, checkpoints, repeated ends."""

from __future__ import annotations

import json
import time
from ipaddress import ip_address, ip_network
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import CRI, connected, in_parallel, refused
from tests.integration.daemons import Daemon, Roots
from tests.integration.leaks import CGROUPS

pytestmark = pytest.mark.shared_daemon(
    config='[runtimes.atoll]\n[runtimes.runc]\noci_runtime = "runc"\n[runtimes.crun]\noci_runtime = "crun"\n'
)
MIB = 1 << 20


def update_pod(cri: CRI, pod: str, *, overhead: pb.LinuxContainerResources | None = None, **limits: object) -> None:
    request = pb.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod,
        overhead=overhead,
        resources=pb.LinuxContainerResources(**limits),  # pyright: ignore[reportArgumentType]
    )
    cri.runtime.call("UpdatePodSandboxResources", request, pb.UpdatePodSandboxResourcesResponse)


def pod_limit(pod: str) -> int:
    for pattern in (f"memory/**/{pod}/memory.limit_in_bytes", f"**/{pod}/memory.max"):
        for file in CGROUPS.glob(pattern):
            return int(file.read_text())
    raise AssertionError("the pod has no memory cgroup")


def test_the_limits_of_a_pod_change_in_its_cgroup_and_in_what_is_told(cri: CRI) -> None:
    pod = cri.run_pod()
    overhead = pb.LinuxContainerResources(memory_limit_in_bytes=10 * MIB)
    update_pod(cri, pod, overhead=overhead, memory_limit_in_bytes=100 * MIB, cpu_quota=50_000, cpu_period=100_000)
    assert pod_limit(pod) == 110 * MIB
    update_pod(cri, pod, memory_limit_in_bytes=200 * MIB)
    assert pod_limit(pod) == 210 * MIB
    info = cri.pod_info(pod)
    assert info["resources"] == {"memory_limit_in_bytes": 200 * MIB, "cpu_quota": 50_000, "cpu_period": 100_000}
    assert info["overhead"] == {"memory_limit_in_bytes": 10 * MIB}


def test_the_limits_of_a_pod_are_all_right_or_none_changes(cri: CRI) -> None:
    pod = cri.run_pod()
    update_pod(cri, pod, memory_limit_in_bytes=100 * MIB)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "cpuset_cpus"):
        update_pod(cri, pod, memory_limit_in_bytes=200 * MIB, cpuset_cpus="many")
    assert pod_limit(pod) == 100 * MIB
    with refused(grpc.StatusCode.NOT_FOUND, "nosuchpod"):
        update_pod(cri, "nosuchpod")
    cri.stop_pod(pod)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, pod[:13]):
        update_pod(cri, pod, memory_limit_in_bytes=200 * MIB)


def tell_ranges(cri: CRI, ranges: str) -> None:
    config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr=ranges))
    request = pb.UpdateRuntimeConfigRequest(runtime_config=config)
    cri.runtime.call("UpdateRuntimeConfig", request, pb.UpdateRuntimeConfigResponse)


def test_the_nodes_ranges_are_taken_and_bad_ones_refused(cri: CRI) -> None:
    before = sorted(cri.roots.conf_dir.iterdir())
    for fine in ("", "10.1.0.0/24", "10.1.0.0/24, fd00::/64"):
        tell_ranges(cri, fine)
    for bad in ("10.1.0.0/33", "10.1.0.1/24", "x", ",", ",".join(["10.1.0.0/24"] * 17)):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "pod_cidr"):
            tell_ranges(cri, bad)
    assert sorted(cri.roots.conf_dir.iterdir()) == before


def test_a_template_is_completed_with_the_nodes_ranges(roots: Roots) -> None:
    given = roots.conf_dir / "10-test.conflist"
    network = json.loads(given.read_text())
    network["plugins"][0]["ipam"] |= {"ranges": "{{pod_ranges}}", "routes": "{{pod_routes}}"}
    given.unlink()
    template = roots.base / "template.conflist"
    template.write_text(json.dumps(network))
    with roots.config.open("a") as file:  # its last table is [network]
        file.write(f'conf_template = "{template}"\n')
    daemon = Daemon(roots)
    daemon.start()
    try:
        with connected(roots) as cri:
            assert not network_is_ready(cri)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, str(roots.conf_dir)):
                cri.run_pod(cri.pod_config(network=True))
            tell_ranges(cri, roots.subnet)
            assert network_is_ready(cri)
            pod = cri.run_pod(cri.pod_config(network=True))
            assert ip_address(cri.pod_status(pod).network.ip) in ip_network(roots.subnet)
            written = (roots.conf_dir / "10-atoll.conflist").read_bytes()
            tell_ranges(cri, "10.99.0.0/24")
            assert (roots.conf_dir / "10-atoll.conflist").read_bytes() == written, "a network that is used stays"
            cri.remove_pod(pod)
            cri.require_clean_books()
        assert daemon.stop() == 0, daemon.log_tail()
    finally:
        daemon.kill()


def network_is_ready(cri: CRI) -> bool:
    status = cri.runtime.call("Status", pb.StatusRequest(), pb.StatusResponse).status
    return next(one.status for one in status.conditions if one.type == "NetworkReady")


def checkpoint(cri: CRI, container: str, location: str | Path, timeout: int = 0) -> None:
    request = pb.CheckpointContainerRequest(container_id=container, location=str(location), timeout=timeout)
    cri.runtime.call("CheckpointContainer", request, pb.CheckpointContainerResponse)


def test_a_checkpoint_is_whole_or_refused_and_the_container_goes_on(cri: CRI) -> None:
    """CRIU of Debian 12 does not know every kernel: then the refusal says what it found, and nothing is left."""
    target = cri.roots.base / "checkpoint.tar"
    container = cri.script(
        cri.run_pod(handler="runc"), "while :; do cat /proc/uptime > /next; mv /next /now; sleep 0.05; done"
    )
    folder = cri.roots.root / "containers" / container
    before = sorted(folder.iterdir())
    request = pb.CheckpointContainerRequest(container_id=container, location=str(target))
    call = cri.runtime.future("CheckpointContainer", request, pb.CheckpointContainerResponse)
    if call.code() is grpc.StatusCode.OK:
        assert target.stat().st_mode & 0o777 == 0o600
    else:
        assert call.code() is grpc.StatusCode.FAILED_PRECONDITION, call.details()
        assert container[:13] in str(call.details())
        assert not target.exists()
    assert sorted(folder.iterdir()) == before
    assert not list(cri.roots.base.glob(".atoll-*"))
    first = cri.sh(container, "cat /now")
    time.sleep(0.2)
    assert cri.sh(container, "cat /now") != first, "it stands still"


def test_what_cannot_be_checkpointed_is_told(cri: CRI) -> None:
    pod = cri.run_pod(handler="runc")
    container = cri.run(pod, "sleep", "1000")
    for location in ("relative.tar", "", "/nowhere/at/all.tar", str(cri.roots.base), "/a\0b"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "location"):
            checkpoint(cri, container, location)
    cri.stop(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not running"):
        checkpoint(cri, container, cri.roots.base / "never.tar")
    other = cri.run(cri.run_pod(handler="crun"), "sleep", "1000")
    with refused(grpc.StatusCode.UNIMPLEMENTED, "crun", "runc"):
        checkpoint(cri, other, cri.roots.base / "never.tar")


def update(cri: CRI, container: str, **limits: object) -> None:
    request = pb.UpdateContainerResourcesRequest(
        container_id=container,
        linux=pb.LinuxContainerResources(**limits),  # pyright: ignore[reportArgumentType]
    )
    cri.runtime.call("UpdateContainerResources", request, pb.UpdateContainerResourcesResponse)


def test_the_oom_score_of_every_process_changes_and_of_those_to_come(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(namespaces=pb.NamespaceOption(pid=pb.CONTAINER)))
    container = cri.script(pod, "sleep 1000 & while :; do sleep 0.1; done")
    update(cri, container, oom_score_adj=700)
    own = "cat /proc/1/oom_score_adj; for one in $(pidof sleep); do cat /proc/$one/oom_score_adj; done"
    assert set(cri.sh(container, own).split()) == {"700"}
    assert cri.status(container).resources.linux.oom_score_adj == 700
    for bad in (1001, -1001):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "oom_score_adj"):
            update(cri, container, oom_score_adj=bad)
    created = cri.create(pod, cri.container_config("sleep", "1000"))
    update(cri, created, oom_score_adj=300)
    cri.start(created)
    assert cri.sh(created, "cat /proc/1/oom_score_adj") == "300"


def test_every_end_may_be_asked_for_twice_and_at_the_same_time(cri: CRI) -> None:
    pod = cri.run_pod()
    container, other = (cri.script(pod, "trap '' TERM; while :; do sleep 0.1; done") for _ in range(2))
    assert (
        in_parallel([lambda: cri.stop(container, 1), lambda: cri.stop(container), lambda: cri.stop(container, 60)])
        == [None] * 3
    )
    stops = [lambda: cri.stop(container, 1), lambda: cri.stop(container), lambda: cri.stop(container, 60)]
    assert in_parallel(stops) == [None] * 3
    assert in_parallel([lambda: cri.remove(container)] * 3) == [None] * 3
    ends = [lambda: cri.stop_pod(pod), lambda: cri.remove(other), lambda: cri.stop(other), lambda: cri.stop_pod(pod)]
    assert in_parallel(ends) == [None] * 4
    removals = [lambda: cri.remove_pod(pod), lambda: cri.stop_pod(pod), lambda: cri.remove_pod(pod)]
    assert in_parallel(removals) == [None] * 3
    for again in (cri.remove_pod, cri.stop_pod, cri.remove, cri.stop):
        again(pod)


def test_a_running_pod_is_removed_with_its_containers(cri: CRI) -> None:
    pod = cri.run_pod()
    containers = [cri.run(pod, "sleep", "1000"), cri.create(pod, cri.container_config("sleep", "1000"))]
    cri.remove_pod(pod)
    assert cri.list_pods() == []
    for container in containers:
        with refused(grpc.StatusCode.NOT_FOUND, container[:13]):
            cri.status(container)
