"""Pods and their cgroups, in whichever layout this kernel has: limits, figures, freezing, killing, and going away."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from atoll.api import containerd_task_v3_pb2 as task
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup, cpu_weight
from atoll.linux.cgroup_layout import Layout
from atoll.ttrpc.client import Client
from tests.guest.conftest import Host
from tests.integration.cri_client import eventually, refused
from tests.integration.test_pods import fetch, free_port

MIB = 1 << 20
SLEEP = "sleep 1000"
LAYOUT = cgroup_layout.detect().layout
needs_v2 = pytest.mark.skipif(LAYOUT is not Layout.V2, reason=f"needs cgroup v2: this host has {LAYOUT}")


@pytest.fixture
def pod(host: Host) -> Iterator[str]:
    """A pod without network; it goes with everything in it, and with its cgroup."""
    pod = host.cri.run_pod()
    group = pod_cgroup(host, pod)
    yield pod
    host.cri.remove_pod(pod)
    assert not group.exists()


def pod_cgroup(host: Host, pod: str) -> Cgroup:
    """The cgroup that the daemon made for a pod; a pause container's, which has the pod's name too, is below it."""
    container = host.cri.create(pod, host.cri.container_config("/bin/true"))
    host.cri.start(container)
    host.cri.wait(container)
    host.cri.remove(container)
    root = cgroup_layout.detect().mounts[0]
    found = min(
        (path for path in root.glob(f"{host.roots.prefix}/**/") if pod in path.name), key=lambda path: len(path.parts)
    )
    return Cgroup(f"/{found.relative_to(root)}", cgroup_layout.detect())


def container_cgroup(host: Host, container: str) -> Cgroup:
    """The cgroup of a running container, where the kernel says that its process is."""
    hierarchies = cgroup_layout.detect()
    (folder,) = (path for path in hierarchies.mounts[0].glob(f"{host.roots.prefix}/**/{container}/"))
    return Cgroup(f"/{folder.relative_to(hierarchies.mounts[0])}", hierarchies)


def setting(group: Cgroup, controller: str, name: str) -> str:
    folder = group.folder(controller)
    assert folder is not None, controller
    return (folder / name).read_text().strip()


def limited(host: Host, pod: str, script: str, **limits: object) -> str:
    config = host.cri.container_config("/bin/sh", "-c", script)
    config.linux.resources.CopyFrom(pb.LinuxContainerResources(**limits))  # pyright: ignore[reportArgumentType]
    container = host.cri.create(pod, config)
    host.cri.start(container)
    return container


def test_the_layout_is_the_one_asked_for() -> None:
    if "ATOLL_GUEST_CGROUPS" not in os.environ:
        pytest.skip("only a guest is asked for a layout")
    assert os.environ["ATOLL_GUEST_CGROUPS"] == LAYOUT


def test_doctor_finds_nothing_missing(host: Host) -> None:
    report = host.daemon.run("doctor")
    assert report.returncode == 0, report.stdout + report.stderr


def test_limits_are_set_and_can_be_changed(host: Host, pod: str) -> None:
    container = limited(
        host, pod, SLEEP, memory_limit_in_bytes=64 * MIB, cpu_shares=512, cpu_quota=50000, cpu_period=100000
    )
    group = container_cgroup(host, container)
    v2 = LAYOUT is Layout.V2

    def told() -> tuple[str, str, str]:
        if v2:
            memory, cpu = setting(group, "memory", "memory.max"), setting(group, "cpu", "cpu.max")
            return memory, cpu, setting(group, "cpu", "cpu.weight")
        memory = setting(group, "memory", "memory.limit_in_bytes")
        quota = f"{setting(group, 'cpu', 'cpu.cfs_quota_us')} {setting(group, 'cpu', 'cpu.cfs_period_us')}"
        return memory, quota, setting(group, "cpu", "cpu.shares")

    assert told() == (str(64 * MIB), "50000 100000", str(cpu_weight(512)) if v2 else "512")
    changed = pb.LinuxContainerResources(memory_limit_in_bytes=96 * MIB, cpu_shares=2048, cpu_quota=20000)
    request = pb.UpdateContainerResourcesRequest(container_id=container, linux=changed)
    host.cri.runtime.call("UpdateContainerResources", request, pb.UpdateContainerResourcesResponse)
    assert told() == (str(96 * MIB), "20000 100000", str(cpu_weight(2048)) if v2 else "2048")


def test_a_pods_own_limits_are_above_its_containers(host: Host) -> None:
    config = host.cri.pod_config()
    config.linux.resources.CopyFrom(pb.LinuxContainerResources(memory_limit_in_bytes=128 * MIB, cpu_shares=256))
    pod = host.cri.run_pod(config)
    group = pod_cgroup(host, pod)
    name = "memory.max" if LAYOUT is Layout.V2 else "memory.limit_in_bytes"
    assert setting(group, "memory", name) == str(128 * MIB)
    host.cri.script(pod, SLEEP)
    host.cri.remove_pod(pod)
    assert not group.exists()


@needs_v2
def test_unified_settings_reach_the_cgroup(host: Host, pod: str) -> None:
    container = limited(host, pod, SLEEP, unified={"pids.max": "40", "memory.high": str(32 * MIB)})
    group = container_cgroup(host, container)
    assert setting(group, "pids", "pids.max") == "40"
    assert setting(group, "memory", "memory.high") == str(32 * MIB)


def test_exec_runs_in_the_containers_cgroup(host: Host, pod: str) -> None:
    container = host.cri.script(pod, SLEEP)
    assert host.cri.sh(container, "echo out") == "out"
    group = container_cgroup(host, container)
    host.cri.sh(container, "sleep 900 >/dev/null 2>&1 &")
    assert len(group.processes()) == 2


def test_figures_grow_with_use(host: Host, pod: str) -> None:
    container = limited(
        host, pod, "dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null; " + SLEEP, memory_limit_in_bytes=64 * MIB
    )
    eventually(lambda: host.cri.stats(container).memory.usage_bytes.value >= 8 * MIB, "the memory is counted")
    before = host.cri.stats(container)
    host.cri.sh(container, "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done")
    after = host.cri.stats(container)
    assert after.cpu.usage_core_nano_seconds.value > before.cpu.usage_core_nano_seconds.value > 0
    assert 0 < after.memory.working_set_bytes.value <= after.memory.usage_bytes.value < 64 * MIB
    assert 0 < after.memory.available_bytes.value < 64 * MIB


def test_a_pod_is_counted_with_its_containers_in_every_layout(host: Host, pod: str) -> None:
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null; sleep 1000 & wait"
    container = limited(host, pod, script, memory_limit_in_bytes=64 * MIB, cpu_quota=50000, cpu_period=100000)
    request = pb.PodSandboxStatsRequest(pod_sandbox_id=pod)

    def counted() -> pb.LinuxPodSandboxStats:
        return host.cri.runtime.call("PodSandboxStats", request, pb.PodSandboxStatsResponse).stats.linux

    eventually(lambda: counted().memory.usage_bytes.value >= 8 * MIB, "the memory is counted")
    eventually(lambda: counted().process.process_count.value == 2, "the shell and its sleep run")
    found = counted()
    assert found.cpu.usage_core_nano_seconds.value >= found.containers[0].cpu.usage_core_nano_seconds.value > 0
    has_pressure = Path("/proc/pressure/cpu").exists() and LAYOUT is not Layout.V1
    for one in (found, found.containers[0]):
        assert (one.cpu.HasField("psi"), one.memory.HasField("psi"), one.io.HasField("psi")) == (has_pressure,) * 3
    metrics = host.cri.runtime.call(
        "ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest(), pb.ListPodSandboxMetricsResponse
    ).pod_metrics[0]
    assert [one.container_id for one in metrics.container_metrics] == [container]
    values = {one.name: one.value.value for one in metrics.container_metrics[0].metrics}
    assert values["container_spec_memory_limit_bytes"] == 64 * MIB
    assert values["container_memory_cache"] >= 8 * MIB
    assert values["container_memory_max_usage_bytes"] >= 8 * MIB
    assert (values["container_processes"], values["container_oom_events_total"]) == (2, 0)
    assert {"container_cpu_user_seconds_total", "container_cpu_cfs_periods_total", "container_threads_max"} <= {*values}


def test_what_runs_out_of_memory_says_so(host: Host, pod: str) -> None:
    container = limited(host, pod, "tail /dev/zero", memory_limit_in_bytes=16 * MIB)
    assert host.cri.wait(container).code == 137
    status = host.cri.status(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


async def test_pause_stops_and_resume_goes_on(host: Host, pod: str) -> None:
    container = host.cri.script(pod, "i=0; while true; do i=$((i+1)); echo $i > /tmp/i; done")
    told = json.loads(next(host.roots.state.glob(f"shims/*{pod}*/bootstrap.json")).read_text())
    client = await Client.connect(told["address"].removeprefix("unix://"))

    async def call(method: str, request: task.PauseRequest | task.ResumeRequest) -> None:
        await client.call("containerd.task.v3.Task", method, request, Empty, timeout=30)

    def counter() -> int:
        group = container_cgroup(host, container)
        figure = "cpu.stat" if LAYOUT is Layout.V2 else "cpuacct.usage"
        text = setting(group, "cpu" if LAYOUT is Layout.V2 else "cpuacct", figure)
        return int(text.split()[1] if LAYOUT is Layout.V2 else text)

    try:
        await call("Pause", task.PauseRequest(id=container))
        group = container_cgroup(host, container)
        if LAYOUT is Layout.V2:
            assert group.unified is not None
            assert (group.unified / "cgroup.freeze").read_text().strip() == "1"
        else:
            assert setting(group, "freezer", "freezer.state") == "FROZEN"
        paused = counter()
        time.sleep(0.1)
        assert counter() == paused
        await call("Resume", task.ResumeRequest(id=container))
        eventually(lambda: counter() > paused, "the container goes on")
    finally:
        await client.aclose()


def test_a_paused_container_can_be_removed_with_its_pod(host: Host) -> None:
    pod = host.cri.run_pod()
    group = pod_cgroup(host, pod)
    container = host.cri.script(pod, SLEEP)
    container_cgroup(host, container).freeze()
    host.cri.remove_pod(pod)
    assert not group.exists()


def test_a_pod_that_forks_all_the_time_is_ended_whole(host: Host) -> None:
    pod = host.cri.run_pod()
    group = pod_cgroup(host, pod)
    host.cri.script(pod, "trap '' TERM; while true; do (trap '' TERM; setsid sleep 5) & sleep 0.01; done")
    eventually(lambda: len(group.processes()) > 10, "the processes are there")
    started = time.monotonic()
    host.cri.stop_pod(pod)
    assert time.monotonic() - started < 20
    host.cri.remove_pod(pod)
    assert not group.exists()


def test_a_container_sees_its_own_cgroup_alone_and_cannot_change_it(host: Host, pod: str) -> None:
    container = host.cri.script(pod, SLEEP)
    table = [line.split() for line in host.cri.sh(container, "grep /sys/fs/cgroup /proc/self/mounts").splitlines()]
    mounts = {point: (kind, options.split(",")) for _, point, kind, options, *_ in table}
    kinds = {kind for kind, _ in mounts.values()} - {"tmpfs"}
    # On version 1 they are mounted on a small tmpfs of the container's own, which both runtimes leave writable.
    writable = [point for point, (kind, options) in mounts.items() if kind != "tmpfs" and "ro" not in options]
    assert writable == []
    if LAYOUT is Layout.V2:
        assert kinds == {"cgroup2"}
        assert host.cri.sh(container, "cat /proc/self/cgroup") == "0::/"
        assert host.cri.sh(container, "readlink /proc/self/ns/cgroup") != os.readlink("/proc/self/ns/cgroup")
        outside = "/sys/fs/cgroup/cgroup.procs"
    else:
        assert "cgroup" in kinds
        outside = "/sys/fs/cgroup/pids/tasks"
    assert host.cri.exec(container, "/bin/sh", "-c", f"echo 0 > {outside}").code != 0


def test_a_privileged_container_may_write_below_its_cgroup(host: Host) -> None:
    config = host.cri.pod_config()
    config.linux.security_context.privileged = True
    pod = host.cri.run_pod(config)
    asked = host.cri.container_config("/bin/sh", "-c", SLEEP)
    asked.linux.security_context.privileged = True
    container = host.cri.create(pod, asked)
    host.cri.start(container)
    options = host.cri.sh(container, "grep ' /sys/fs/cgroup' /proc/self/mounts | tail -1").split()[3].split(",")
    assert "rw" in options
    host.cri.remove_pod(pod)


@needs_v2
def test_a_privileged_container_leaves_the_hosts_mount_options_alone(host: Host) -> None:
    line = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if " cgroup2 " in line)
    test_a_privileged_container_may_write_below_its_cgroup(host)
    assert line in Path("/proc/self/mounts").read_text().splitlines()


def test_a_given_parent_holds_the_container_and_is_kept(host: Host) -> None:
    parent = Cgroup(f"/{host.roots.prefix}-given/burstable/pod1", cgroup_layout.detect())
    config = host.cri.pod_config()
    config.linux.cgroup_parent = parent.path
    try:
        pod = host.cri.run_pod(config)
        container = host.cri.script(pod, SLEEP)
        assert all((folder / container).is_dir() for folder in parent.folders[:1])
        assert parent.processes()
        host.cri.remove_pod(pod)
        assert not parent.processes()
        assert not any((folder / container).exists() for folder in parent.folders)
    finally:
        Cgroup(f"/{host.roots.prefix}-given", cgroup_layout.detect()).delete()


def test_a_bridge_pod_is_reached_at_its_address_and_published_port(host: Host) -> None:
    port = free_port()
    config = host.cri.pod_config(network=True)
    config.port_mappings.add(protocol=pb.TCP, container_port=8080, host_port=port)
    pod = host.cri.run_pod(config)
    host.cri.script(pod, "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp")
    assert b"hello" in fetch(host.cri.pod_status(pod).network.ip, 8080)
    assert b"hello" in fetch("127.0.0.1", port)
    host.cri.stop_pod(pod)
    host.cri.remove_pod(pod)


def test_a_restarted_daemon_finds_its_pods(host: Host, pod: str) -> None:
    container = limited(host, pod, SLEEP, memory_limit_in_bytes=64 * MIB)
    host.daemon.kill()
    host.daemon.start()
    eventually(lambda: host.cri.exec(container, "/bin/true").code == 0, "exec works again")
    assert host.cri.stats(container).memory.usage_bytes.value > 0


def test_a_limit_that_this_host_cannot_keep_is_refused(host: Host, pod: str) -> None:
    if LAYOUT is Layout.V2:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "resources.unified"):
            limited(host, pod, SLEEP, unified={"../up": "1"})
    else:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "resources.unified"):
            limited(host, pod, SLEEP, unified={"pids.max": "1"})
