"""A daemon that dies, is stopped, or finds the machine changed: nothing is lost, nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import grpc
import pytest

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, content, eventually, in_parallel, refused
from tests.integration.leaks import pids, read, wait_until
from tests.integration.test_pods import Plugin

CLEAN_WITHIN_S = 20.0


def is_clean(cri: CRI) -> None:
    """After a restart the books agree with the machine within a bound, with nobody's help."""
    wait_until(lambda: cri.fsck() == [], within=CLEAN_WITHIN_S)
    assert cri.fsck() == []


def numbered(count: int, pause: str = "0.002") -> str:
    return f"i=0; while [ $i -lt {count} ]; do echo line $i; i=$((i+1)); sleep {pause}; done"


@pytest.mark.slow
def test_ten_pods_survive_a_killed_daemon_with_every_line_and_exit_code(cri: CRI, daemon: Daemon) -> None:
    pods = [cri.run_pod(cri.pod_config(network=at < 2)) for at in range(10)]
    ips = {pod: cri.pod_status(pod).network.ip for pod in pods}
    for_ever = [cri.script(pod, "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done") for pod in pods]
    ending = [
        cri.script(pod, f"i=0; while [ ! -e /tmp/go ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit {code}")
        for code, pod in enumerate(pods)
    ]
    roots_of = {one: cri.status(one) for one in ending}
    assert all(status.state == pb.CONTAINER_RUNNING for status in roots_of.values())
    inits = {one: init_of(one) for one in ending}
    eventually(lambda: len(cri.output(ending[-1]).splitlines()) > 5, "the last one has begun to write")

    daemon.kill()
    for pid in inits.values():
        Path(f"/proc/{pid}/root/tmp/go").touch()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inits.values()), "they have ended")
    gap_ended = time.time_ns()
    time.sleep(0.5)
    daemon.start()

    assert {pod.id for pod in cri.list_pods()} == set(pods)
    for code, (pod, container) in enumerate(zip(pods, ending, strict=True)):
        assert cri.pod_status(pod).state == pb.SANDBOX_READY
        assert cri.pod_status(pod).network.ip == ips[pod]
        status = cri.status(container)
        assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, code)
        assert status.finished_at <= gap_ended
        assert cri.wait(container).code == code
    for pod, container in zip(pods, for_ever, strict=True):
        assert cri.status(container).state == pb.CONTAINER_RUNNING
        assert cri.sh(container, "echo $((6*7))") == "42"
        assert cri.stats(container).memory.usage_bytes.value > 0
        assert cri.wait(cri.script(pod, "exit 3")).code == 3, "new containers start in an old pod"
        cri.stop(container)
        assert cri.status(container).exit_code == 137
    for container in (*ending, *for_ever):
        lines = cri.output(container).splitlines()
        assert lines == [b"line %d" % n for n in range(len(lines))]
        assert len(lines) > 5
    is_clean(cri)
    assert in_parallel([lambda pod=pod: cri.remove_pod(pod) for pod in pods]) == [None] * 10
    is_clean(cri)


def init_of(container: str) -> int:
    """The process of a container as the host sees it."""
    for pid in pids():
        if container.encode() in read(pid, "cgroup") and read(pid, "cmdline"):
            return pid
    raise AssertionError(f"no process of {container[:13]}")


def test_a_log_that_is_rotated_after_a_restart_goes_on_in_the_new_file(cri: CRI, daemon: Daemon) -> None:
    container = cri.script(cri.run_pod(), numbered(600))
    path = Path(cri.status(container).log_path)
    daemon.kill()
    daemon.start()
    rotated = path.with_name("rotated")
    path.rename(rotated)
    request = pb.ReopenContainerLogRequest(container_id=container)
    cri.runtime.call("ReopenContainerLog", request, pb.ReopenContainerLogResponse)
    cri.wait(container)
    log = content(rotated.read_bytes() + path.read_bytes())
    assert log == b"".join(b"line %d\n" % n for n in range(600))


def test_a_stop_by_sigterm_ends_no_container(cri: CRI, daemon: Daemon) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    container = cri.script(pod, numbered(400, "0.01"))
    pid = init_of(container)
    assert daemon.stop() == 0
    assert Path(f"/proc/{pid}").exists()
    daemon.start()
    assert cri.status(container).state == pb.CONTAINER_RUNNING
    assert cri.wait(container).code == 0
    assert cri.output(container) == b"".join(b"line %d\n" % n for n in range(400))


def test_a_run_with_rm_that_ends_while_the_daemon_is_down_is_removed_by_the_next(cri: CRI, daemon: Daemon) -> None:
    run = ("run", "-d", "--rm", "--network", "none")
    assert daemon.run(*run, "--name", "x", "atoll/busybox", "sleep", "1000").returncode == 0
    assert daemon.run(*run, "--name", "stays", "atoll/busybox", "sleep", "1000").returncode == 0
    pid = json.loads(daemon.run("top", "--json", "x").stdout)[0]["pid"]
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    daemon.start()
    assert wait_until(lambda: [one["name"] for one in json.loads(daemon.run("ps", "-a", "--json").stdout)] == ["stays"])
    daemon.run("rm", "-f", "stays")
    is_clean(cri)


def test_a_created_container_can_be_started_after_a_restart(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pod = cri.run_pod()
    whole, torn = (cri.create(pod, cri.container_config("/bin/sh", "-c", "exit 4")) for _ in range(2))
    daemon.kill()
    (roots.state / "bundles" / torn / "config.json").write_bytes(b"")
    daemon.start()
    for container in (whole, torn):
        assert cri.status(container).state == pb.CONTAINER_CREATED
        cri.start(container)
        assert cri.wait(container).code == 4
    is_clean(cri)


def test_equal_requests_join_across_a_restart(cri: CRI, daemon: Daemon) -> None:
    config = cri.pod_config(network=True, labels={"a": "b"}, hostname="me")
    config.linux.sysctls["net.ipv4.ip_forward"] = "1"
    pod = cri.run_pod(config)
    made = cri.container_config("sleep", "100", env={"A": "b"})
    container = cri.create(pod, made)
    daemon.kill()
    daemon.start()
    assert cri.run_pod(config) == pod
    assert cri.create(pod, made) == container


def test_a_shim_killed_while_the_daemon_is_down_ends_the_pods_of_its_process(cri: CRI, daemon: Daemon) -> None:
    pod, other = cri.run_pod(), cri.run_pod()
    container = cri.script(pod, "sleep 1000")
    shim = shim_of(cri, pod)
    daemon.kill()
    os.kill(shim, 9)
    daemon.start()
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert cri.pod_status(other).state == pb.SANDBOX_NOTREADY
    assert cri.wait(container, timeout=10).code in (137, 255)
    assert cri.status(container).state == pb.CONTAINER_EXITED
    cri.remove_pod(pod)
    cri.remove_pod(other)
    is_clean(cri)


def shim_of(cri: CRI, pod: str) -> int:
    text = (cri.roots.state / "shims" / pod / "shim.json").read_text()
    return int(text.partition('"pid":')[2].partition(",")[0])


def test_everything_ended_and_stopped_is_told_the_same_after_a_restart(cri: CRI, daemon: Daemon) -> None:
    pod = cri.run_pod(cri.pod_config(network=True))
    container = cri.script(pod, "exit 9")
    cri.wait(container)
    failed = cri.create(pod, cri.container_config("/no/such/program"))
    with pytest.raises(grpc.RpcError):
        cri.start(failed)
    before = [cri.status(container), cri.status(failed)]
    cri.stop_pod(pod)
    stopped = cri.pod_status(pod)
    daemon.kill()
    daemon.start()
    assert [cri.status(container), cri.status(failed)] == before
    assert cri.pod_status(pod) == stopped
    is_clean(cri)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_daemon_that_ends_in_a_run_leaves_nothing_of_it(cri: CRI, daemon: Daemon, roots: Roots, how: str) -> None:
    plugin = Plugin(roots)
    plugin.slow(4.0)  # longer than the grace that a SIGTERM gives
    config = cri.pod_config(network=True)
    call = cri.runtime.future("RunPodSandbox", pb.RunPodSandboxRequest(config=config), pb.RunPodSandboxResponse)
    plugin.wait_for("ADD")
    time.sleep(0.1)  # the shim is being started beside
    if how == "SIGKILL":
        daemon.kill()
    else:
        assert daemon.stop() == 0
    with refused(grpc.StatusCode.UNAVAILABLE):
        call.result()
    plugin.work()
    daemon.start()
    assert cri.list_pods() == []
    is_clean(cri)
    for name in ("shims", "pods", "netns", "s"):
        assert not list((roots.state / name).glob("*")), name
    leases = [path.name for path in (roots.base / "ipam").glob("*/*") if path.name[0].isdigit()]
    assert leases == []
    assert cri.pod_status(cri.run_pod(config)).state == pb.SANDBOX_READY


@pytest.mark.slow
def test_kills_at_any_moment_leave_nothing_half_made(cri: CRI, daemon: Daemon) -> None:
    """Eight moments over the time that a pod with a container takes."""
    for at in range(8):
        config = cri.pod_config(network=at % 2 == 0)

        def work(config: pb.PodSandboxConfig = config) -> None:
            pod = cri.run_pod(config)
            cri.script(pod, "sleep 1000")
            cri.remove_pod(pod)

        thread = threading.Thread(target=in_parallel, args=([work],))
        thread.start()
        time.sleep(0.02 + 0.03 * at)
        daemon.kill()
        thread.join(30)
        daemon.start()
        is_clean(cri)
        for pod in cri.list_pods():
            assert pod.state == pb.SANDBOX_READY or cri.list(pod_sandbox_id=pod.id) is not None
            cri.remove_pod(pod.id)
        is_clean(cri)


def test_the_zygote_may_die(cri: CRI, daemon: Daemon) -> None:
    pod = cri.run_pod()
    children = subprocess.run(["pgrep", "-P", str(daemon.pid)], capture_output=True, text=True, check=True)
    zygotes = [int(pid) for pid in children.stdout.split() if b"atoll.shim.zygote" in read(int(pid), "cmdline")]
    assert len(zygotes) == 1
    os.kill(zygotes[0], 9)
    other = cri.run_pod()
    assert cri.pod_status(other).state == pb.SANDBOX_READY
    assert cri.wait(cri.script(pod, "exit 2")).code == 2


def test_a_reboot_leaves_pods_that_are_not_ready_and_gives_their_addresses_back(
    cri: CRI, daemon: Daemon, roots: Roots
) -> None:
    pods = [cri.run_pod(cri.pod_config(network=True)) for _ in range(2)]
    containers = [cri.script(pod, "sleep 1000") for pod in pods]
    created = cri.create(pods[0], cri.container_config("true"))
    shims = [shim_of(cri, pod) for pod in pods]
    inits = [init_of(container) for container in containers]
    holders = [int(str(cri.pod_info(pod)["pid"])) for pod in pods]
    daemon.kill()
    reboot(roots, [*set(shims), *inits, *holders])
    daemon.start()
    assert {pod.id: pod.state for pod in cri.list_pods()} == dict.fromkeys(pods, pb.SANDBOX_NOTREADY)
    for container in containers:
        assert cri.wait(container, timeout=10).code == 255
        assert cri.status(container).state == pb.CONTAINER_EXITED
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not ready"):
        cri.start(created)
    for pod in pods:
        cri.stop_pod(pod)
        cri.remove_pod(pod)
    is_clean(cri)
    assert [path.name for path in (roots.base / "ipam").glob("*/*") if path.name[0].isdigit()] == []
    assert cri.pod_status(cri.run_pod(cri.pod_config(network=True))).state == pb.SANDBOX_READY


def reboot(roots: Roots, processes: list[int]) -> None:
    """What a reboot does to a machine, as far as this test owns it: processes, mounts and volatile files go."""
    for pid in processes:
        os.kill(pid, 9)
    eventually(lambda: not any(read(pid, "cmdline") for pid in processes), "the processes are gone")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((point for point in mounts if point.startswith(f"{roots.state}/")), reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    for path in roots.state.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def test_an_exec_and_a_wait_end_when_the_daemon_goes(cri: CRI, daemon: Daemon) -> None:
    container = cri.script(cri.run_pod(), "sleep 1000")
    waiting = cri.own.future("Wait", own.WaitRequest(container_id=container), own.WaitResponse, timeout=30)
    time.sleep(0.3)
    begun = time.monotonic()
    assert daemon.stop() == 0
    with refused((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)):
        waiting.result()
    assert time.monotonic() - begun < 10
    daemon.start()
    assert cri.status(container).state == pb.CONTAINER_RUNNING


def test_a_second_daemon_on_the_same_state_is_refused(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    cri.run_pod()
    second = daemon.run(
        "serve", "--root", str(roots.root), "--state", str(roots.state), "--socket", str(roots.base / "x.sock")
    )
    assert second.returncode != 0
    assert "another atoll daemon" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert wait_until(lambda: len(cri.list_pods()) == 1)
