"""What pods and containers use, as CRI tells it: on real cgroups, interfaces and writable layers."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import CRI, eventually, refused

pytestmark = pytest.mark.shared_daemon

MIB = 1 << 20
HAS_PRESSURE = Path("/proc/pressure/cpu").exists()


@pytest.fixture
def pod(cri: CRI) -> str:
    return cri.run_pod(cri.pod_config(labels={"app": "web"}, annotations={"note": "x"}))


def pod_stats(cri: CRI, pod: str) -> pb.PodSandboxStats:
    request = pb.PodSandboxStatsRequest(pod_sandbox_id=pod)
    return cri.runtime.call("PodSandboxStats", request, pb.PodSandboxStatsResponse).stats


def list_pod_stats(cri: CRI, **wanted: object) -> list[pb.PodSandboxStats]:
    request = pb.ListPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(**wanted))  # pyright: ignore[reportArgumentType]
    return [*cri.runtime.call("ListPodSandboxStats", request, pb.ListPodSandboxStatsResponse).stats]


def list_stats(cri: CRI, **wanted: object) -> list[pb.ContainerStats]:
    request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(**wanted))  # pyright: ignore[reportArgumentType]
    return [*cri.runtime.call("ListContainerStats", request, pb.ListContainerStatsResponse).stats]


def limited(**limits: int) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**limits))  # pyright: ignore[reportArgumentType]


def test_a_container_that_works_is_told_so(cri: CRI, pod: str) -> None:
    limits = limited(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=64 * MIB)
    container = cri.script(pod, "while :; do :; done", linux=limits)

    def rate() -> int:
        return cri.stats(container).cpu.usage_nano_cores.value

    eventually(lambda: rate() > 50_000_000, "it uses a part of a core")
    stats = cri.stats(container)
    assert stats.cpu.usage_core_nano_seconds.value > 100_000_000
    assert 0 < stats.memory.working_set_bytes.value <= stats.memory.usage_bytes.value
    assert stats.memory.rss_bytes.value > 0
    assert stats.memory.page_faults.value > 0
    assert stats.memory.HasField("major_page_faults")
    assert stats.memory.available_bytes.value == 64 * MIB - stats.memory.working_set_bytes.value
    assert abs(time.time_ns() - stats.cpu.timestamp) < 10_000_000_000
    if stats.HasField("swap"):
        assert stats.swap.swap_usage_bytes.value == 0


@pytest.mark.skipif(not HAS_PRESSURE, reason="this kernel counts no pressure")
def test_pressure_is_told_where_the_kernel_counts_it(cri: CRI, pod: str) -> None:
    worker = cri.script(pod, "while :; do :; done & while :; do :; done & while :; do :; done & wait")
    eventually(lambda: cri.stats(worker).cpu.psi.Some.Total > 1_000_000, "processes wait for a processor")
    stats = cri.stats(worker)
    assert stats.memory.HasField("psi")
    assert stats.io.HasField("psi")
    found = pod_stats(cri, pod).linux
    assert found.cpu.psi.Some.Total > 1_000_000
    assert found.io.timestamp > 0


def test_a_writable_layer_that_grows_and_shrinks(cri: CRI, pod: str) -> None:
    container = cri.run(pod, "/bin/sleep", "600")
    before = cri.stats(container).writable_layer
    assert before.fs_id.mountpoint
    cri.sh(container, "dd if=/dev/zero of=/grown bs=1M count=3 2>/dev/null; mkdir /d; for i in 1 2 3; do :>/d/$i; done")
    after = cri.stats(container).writable_layer
    assert after.used_bytes.value - before.used_bytes.value >= 3 * MIB
    assert after.inodes_used.value - before.inodes_used.value == 5
    assert after.timestamp > before.timestamp
    cri.sh(container, "rm -r /grown /d")
    eventually(lambda: cri.stats(container).writable_layer.used_bytes.value < MIB, "the layer is small again")
    cri.stop(container)
    ended = cri.stats(container)
    assert ended.writable_layer.used_bytes.value < MIB
    assert not ended.HasField("cpu")
    assert cri.stats(container).writable_layer == ended.writable_layer  # it cannot change, so it is not counted again


def test_what_goes_through_the_network_is_counted_by_interface(cri: CRI) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    container = cri.script(pod, "nc -l -p 80 > /got; sleep 600")
    before = pod_stats(cri, pod).linux.network
    assert before.default_interface.name == "eth0"
    assert [one.name for one in before.interfaces] == ["lo"]
    address = cri.pod_status(pod).network.ip
    with connected_soon(address, 80) as connection:
        connection.sendall(bytes(2 * MIB))
    eventually(lambda: cri.sh(container, "wc -c < /got").strip() == str(2 * MIB), "all has arrived")
    after = pod_stats(cri, pod).linux.network
    assert after.default_interface.rx_bytes.value - before.default_interface.rx_bytes.value >= 2 * MIB
    assert after.default_interface.tx_bytes.value > before.default_interface.tx_bytes.value
    assert after.default_interface.rx_errors.value == after.default_interface.tx_errors.value == 0
    cri.sh(container, "ping -c 2 -i 0.1 127.0.0.1")
    assert pod_stats(cri, pod).linux.network.interfaces[0].rx_bytes.value > 0


def connected_soon(address: str, port: int) -> socket.socket:
    for _ in range(100):
        try:
            return socket.create_connection((address, port), timeout=5)
        except ConnectionRefusedError:
            time.sleep(0.02)
    return socket.create_connection((address, port), timeout=5)


def test_a_pod_tells_of_itself_and_of_its_running_containers(cri: CRI, pod: str) -> None:
    first = cri.script(pod, "sleep 600 & sleep 600 & wait", labels={"a": "1"})
    second = cri.run(pod, "/bin/sleep", "600")
    ended = cri.run(pod, "/bin/true")
    cri.wait(ended)
    eventually(lambda: pod_stats(cri, pod).linux.process.process_count.value == 4, "four processes")
    stats = pod_stats(cri, pod)
    assert (stats.attributes.id, stats.attributes.metadata.name) == (pod, cri.pod_status(pod).metadata.name)
    assert (dict(stats.attributes.labels), stats.attributes.annotations["note"]) == ({"app": "web"}, "x")
    assert sorted(one.attributes.id for one in stats.linux.containers) == sorted([first, second])
    assert {one.attributes.id: dict(one.attributes.labels) for one in stats.linux.containers}[first] == {"a": "1"}
    parts = sum(one.memory.usage_bytes.value for one in stats.linux.containers)
    assert stats.linux.memory.usage_bytes.value >= parts * 0.9
    assert stats.linux.cpu.usage_core_nano_seconds.value > 0


def test_a_container_whose_cgroup_is_not_known_is_asked_through_its_shim(cri: CRI, pod: str) -> None:
    lost, kept = cri.run(pod, "/bin/sleep", "600"), cri.run(pod, "/bin/sleep", "600")
    record = cri.roots.state / "bundles" / lost / "task.json"
    content = record.read_bytes()
    record.write_bytes(content[:20])
    try:
        assert cri.stats(lost).memory.usage_bytes.value > 0
        found = {one.attributes.id: one for one in list_stats(cri)}
        assert found[lost].cpu.usage_core_nano_seconds.value > 0
        assert found[kept].memory.usage_bytes.value > 0
    finally:
        record.write_bytes(content)


def test_pods_in_one_cgroup_are_not_taken_for_one(cri: CRI) -> None:
    parent = f"/{cri.roots.prefix}"
    configs = [cri.pod_config() for _ in range(2)]
    for config in configs:
        config.linux.cgroup_parent = parent
    idle, busy = (cri.run_pod(config) for config in configs)
    cri.run(idle, "/bin/sleep", "600")
    cri.script(busy, "while :; do :; done")

    def used(pod: str) -> int:
        return pod_stats(cri, pod).linux.cpu.usage_core_nano_seconds.value

    eventually(lambda: used(busy) > 150_000_000, "one works")
    assert used(idle) < 100_000_000


def test_lists_are_filtered_and_streams_tell_the_same(cri: CRI, pod: str) -> None:
    other = cri.run_pod(cri.pod_config(labels={"app": "db"}))
    mine = cri.run(pod, "/bin/sleep", "600", labels={"a": "1"})
    theirs = cri.run(other, "/bin/sleep", "600", labels={"a": "2"})

    def ids(found: list[pb.ContainerStats]) -> set[str]:
        return {one.attributes.id for one in found}

    assert ids(list_stats(cri)) == {mine, theirs}
    assert ids(list_stats(cri, pod_sandbox_id=pod)) == ids(list_stats(cri, label_selector={"a": "1"})) == {mine}
    assert ids(list_stats(cri, id=theirs[:20])) == {theirs}
    assert list_stats(cri, id="nothing") == []
    assert {one.attributes.id for one in list_pod_stats(cri)} == {pod, other}
    assert [one.attributes.id for one in list_pod_stats(cri, label_selector={"app": "db"})] == [other]
    assert [one.attributes.id for one in list_pod_stats(cri, id=pod)] == [pod]
    streamed = [*cri.runtime.stream("StreamContainerStats", pb.StreamContainerStatsRequest())]
    assert ids([one for answer in streamed for one in answer.container_stats]) == {mine, theirs}
    streamed = [*cri.runtime.stream("StreamPodSandboxStats", pb.StreamPodSandboxStatsRequest())]
    assert {one.attributes.id for answer in streamed for one in answer.pod_sandbox_stats} == {pod, other}
    wanted = pb.StreamContainerStatsRequest(filter=pb.ContainerStatsFilter(id="nothing"))
    assert [*cri.runtime.stream("StreamContainerStats", wanted)] == []


def test_who_is_not_there_or_does_not_run_has_no_stats(cri: CRI, pod: str) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "nothing"):
        pod_stats(cri, "nothing")
    with refused(grpc.StatusCode.NOT_FOUND, "nothing"):
        cri.stats("nothing")
    cri.stop_pod(pod)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not ready"):
        pod_stats(cri, pod)
    assert list_pod_stats(cri) == []


def test_lists_of_pods_containers_and_images_are_streamed_too(cri: CRI, pod: str) -> None:
    container = cri.run(pod, "/bin/sleep", "600")
    pods = [*cri.runtime.stream("StreamPodSandboxes", pb.StreamPodSandboxesRequest())]
    assert [one for answer in pods for one in answer.pod_sandboxes] == cri.list_pods()
    found = [*cri.runtime.stream("StreamContainers", pb.StreamContainersRequest())]
    assert [one for answer in found for one in answer.containers] == cri.list()
    assert cri.list()[0].state == pb.CONTAINER_RUNNING
    cri.stop(container)
    assert cri.list()[0].state == pb.CONTAINER_EXITED
    assert cri.list(state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)) == []
    cri.stop_pod(pod)
    assert cri.list_pods()[0].state == pb.SANDBOX_NOTREADY
    images = [*cri.images.stream("StreamImages", pb.StreamImagesRequest())]
    assert [one for answer in images for one in answer.images] == cri.list_images()
    nothing = pb.StreamPodSandboxesRequest(filter=pb.PodSandboxFilter(id="nothing"))
    assert [*cri.runtime.stream("StreamPodSandboxes", nothing)] == []


@pytest.fixture
def measured(cri: CRI) -> tuple[str, str]:
    """A pod on a network, and its container with limits of all kinds."""
    pod = cri.run_pod(cri.pod_config(network=True))
    limits = limited(
        cpu_period=100_000,
        cpu_quota=50_000,
        cpu_shares=512,
        memory_limit_in_bytes=64 * MIB,
        memory_swap_limit_in_bytes=64 * MIB,
    )
    script = "dd if=/dev/zero of=/f bs=1M count=1 conv=fsync 2>/dev/null; sleep 600 & nc -l -p 80 & wait"
    container = cri.script(pod, script, linux=limits)
    eventually(lambda: cri.exec(container, "pidof", "nc").code == 0, "it listens")
    return pod, container


def test_metrics_are_those_that_were_described(cri: CRI, measured: tuple[str, str]) -> None:
    pod, container = measured
    described = cri.runtime.call(
        "ListMetricDescriptors", pb.ListMetricDescriptorsRequest(), pb.ListMetricDescriptorsResponse
    ).descriptors
    keys = {one.name: list(one.label_keys) for one in described}
    found = cri.runtime.call(
        "ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest(), pb.ListPodSandboxMetricsResponse
    ).pod_metrics
    assert [one.pod_sandbox_id for one in found] == [pod]
    assert [one.container_id for one in found[0].container_metrics] == [container]
    every = [*found[0].metrics, *found[0].container_metrics[0].metrics]
    for one in every:
        assert len(one.label_values) == len(keys[one.name]), one
        assert one.timestamp == 0, one
    values: dict[str, dict[tuple[str, ...], int]] = {}
    for one in every:
        values.setdefault(one.name, {})[tuple(one.label_values[3:])] = one.value.value
    may_lack = ("container_fs_", "container_blkio_", "container_pressure_", "container_hugetlb_")
    assert [name for name in keys if name not in values and not name.startswith(may_lack)] == []
    assert values["container_spec_memory_limit_bytes"] == {(): 64 * MIB}
    assert values["container_spec_cpu_quota"] == {(): 50_000}
    assert values["container_spec_cpu_shares"] == {(): 512}
    assert values["container_processes"][()] == 3
    assert values["container_threads"][()] == 3
    assert values["container_sockets"][()] >= 1
    assert values["container_file_descriptors"][()] >= 3
    assert values["container_network_receive_bytes_total"].keys() == {("eth0",)}
    assert values["container_oom_events_total"] == {(): 0}
    assert max(values["container_fs_usage_bytes"].values()) >= MIB
    assert abs(values["container_last_seen"][()] - time.time()) < 10
    streamed = [*cri.runtime.stream("StreamPodSandboxMetrics", pb.StreamPodSandboxMetricsRequest())]
    assert [one.pod_sandbox_id for answer in streamed for one in answer.pod_sandbox_metrics] == [pod]
