"""Faults under a containerd whose sandboxer is Atoll: daemons killed at any time, pods that nobody shuts down."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from bench import host
from bench.containerd_direct import Controller
from bench.containerd_pair import Leftovers, Pair, is_alive
from bench.cri import PodRequest
from bench.cri_subject import Outcome, eventually
from bench.daemons import PAUSE_IMAGE

ATOLL, CONTAINERD = "atoll", "containerd"
DEADLINES_MS = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 8, 9, 10, 12, 15, 20)
RECLAIMED_WITHIN_S = 90.0


def restarts(pair: Pair, outcome: Outcome) -> None:
    """A pod and its containers go on whichever daemon dies, and what happened meanwhile is known."""
    for which in ((ATOLL,), (CONTAINERD,), (ATOLL, CONTAINERD)):
        names = " and ".join(which)
        outcome.check(f"SIGKILL to {names}: pods go on", lambda which=which: _pods_go_on(pair, which))
        outcome.check(f"{names} dead when a container ends", lambda which=which: _container_ends(pair, which))
        outcome.check(f"{names} dead when the sandbox ends", lambda which=which: _sandbox_ends(pair, which))
    outcome.check("SIGKILL to containerd while pods start", lambda: _killed_while_starting(pair, CONTAINERD))
    outcome.check("SIGKILL to atoll while pods start", lambda: _killed_while_starting(pair, ATOLL))
    outcome.check("SIGKILL to atoll while pods stop", lambda: _killed_while_stopping(pair))
    outcome.check("containerd up before atoll", lambda: _atoll_late(pair))


def _pods_go_on(pair: Pair, which: tuple[str, ...]) -> None:
    with pair.pod(host_network=False) as (pod, request):
        container = pair.run(
            pod, request, "echo kept >/dev/shm/kept; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
        )
        pid = pair.pid(pod)
        for _ in range(2):
            pair.restart(*which)
            eventually(lambda: pair.is_ready(pod) and pair.is_running(container), "ready and running")
            assert pair.pid(pod) == pid, "another process stands for the pod"
            assert pair.sh(container, "echo again") == "again"
            late = pair.run(pod, request)
            assert pair.sh(late, "cat /etc/hostname /dev/shm/kept") == "pod\nkept", (
                "a later container lacks the pod's files"
            )
            assert pair.sh(late, "cat /etc/resolv.conf") == pair.sh(container, "cat /etc/resolv.conf")
            pair.cri.stop(late)
            pair.cri.remove(late)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not pair.is_ready(pod), "the wait came back: the end of the sandbox is seen")


def _container_ends(pair: Pair, which: tuple[str, ...]) -> None:
    with pair.pod() as (pod, request):
        container = pair.run(pod, request, "while [ ! -e /dev/shm/end ]; do sleep 0.05; done; exit 9")
        other = pair.run(pod, request)
        daemons = {ATOLL: pair.atoll, CONTAINERD: pair.containerd}
        pair.sh(other, "(sleep 1.5; echo >/dev/shm/end) >/dev/null 2>&1 &")
        for name in which:
            daemons[name].crash()
        time.sleep(2.5)
        for name in sorted(which):
            daemons[name].start()
        pair.reconnected()
        assert pair.exit_code(container) == 9, pair.cri.container_status(container)
        assert pair.is_running(other)


def _sandbox_ends(pair: Pair, which: tuple[str, ...]) -> None:
    with pair.pod() as (pod, _):
        daemons = {ATOLL: pair.atoll, CONTAINERD: pair.containerd}
        pid = pair.pid(pod)
        for name in which:
            daemons[name].crash()
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        for name in sorted(which):
            daemons[name].start()
        pair.reconnected()
        eventually(lambda: not pair.is_ready(pod), "the pod is not ready")


def _killed_while_starting(pair: Pair, which: str) -> None:
    before = Leftovers.of(pair)
    daemon = pair.atoll if which == ATOLL else pair.containerd
    for wait_s in (0.002, 0.004, 0.006, 0.008, 0.012, 0.016):
        requests = [pair.request(f"cut{number}", host_network=number % 2 == 0) for number in range(3)]
        futures = [_future(pair, request) for request in requests]
        time.sleep(wait_s)
        daemon.crash()
        for future in futures:
            with contextlib.suppress(grpc.RpcError):
                future.result()
        daemon.start()
        pair.reconnected()
    pair.cri.remove_all()
    before.expect_the_same(pair, within=RECLAIMED_WITHIN_S)


def _future(pair: Pair, request: PodRequest, timeout_s: float = 30.0) -> grpc.Future:
    asked = pb.RunPodSandboxRequest(config=request.config, runtime_handler=request.handler)
    return pair.cri.future("RunPodSandbox", asked, pb.RunPodSandboxResponse, timeout_s=timeout_s)


def _killed_while_stopping(pair: Pair) -> None:
    before = Leftovers.of(pair)
    for wait_s in (0.001, 0.003, 0.006, 0.012):
        request = pair.request(host_network=False)
        pod = pair.cri.run_pod(request)
        pair.run(pod, request)
        stop = pair.cri.future(
            "StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod), pb.StopPodSandboxResponse
        )
        time.sleep(wait_s)
        pair.atoll.crash()
        with contextlib.suppress(grpc.RpcError):
            stop.result()
        pair.atoll.start()
        pair.reconnected()
        pair.cri.stop_pod(pod)
        remove = pair.cri.future(
            "RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod), pb.RemovePodSandboxResponse
        )
        time.sleep(wait_s)
        pair.atoll.crash()
        with contextlib.suppress(grpc.RpcError):
            remove.result()
        pair.atoll.start()
        pair.reconnected()
        pair.cri.remove_pod(pod)
    before.expect_the_same(pair)


def _atoll_late(pair: Pair) -> None:
    """What docs/containerd.md says of the wrong order: not ready until containerd is started again."""
    with pair.pod() as (pod, request):
        container = pair.run(pod, request)
        pair.containerd.crash()
        pair.atoll.crash()
        pair.containerd.start()
        pair.atoll.start()
        eventually(lambda: not pair.is_ready(pod), "the pod is listed as not ready")
        assert pair.is_running(container)
        pair.restart(CONTAINERD)
        eventually(lambda: pair.is_ready(pod), "the pod is ready")
        assert pair.sh(container, "echo still") == "still"


def leaks(pair: Pair, outcome: Outcome) -> None:
    """The cases in which containerd never calls Shutdown."""
    for name, work in _LEAKS.items():

        def judged(work: Callable[[Pair], None] = work) -> None:
            before = Leftovers.of(pair)
            work(pair)
            before.expect_the_same(pair, within=RECLAIMED_WITHIN_S)

        outcome.check(f"nothing is left: {name}", judged)


def _refused(pair: Pair, request: PodRequest) -> str:
    try:
        pod = pair.cri.run_pod(request)
    except grpc.RpcError as error:
        return error.details() or ""
    pair.cri.stop_pod(pod)
    pair.cri.remove_pod(pod)
    raise AssertionError("the pod was started")


def _create_fails(pair: Pair) -> None:
    request = pair.request(host_network=False)
    request.config.linux.sysctls["net.not.there"] = "1"
    told = _refused(pair, request)
    assert "net.not.there" in told, told


def _start_fails(pair: Pair) -> None:
    request = pair.request(host_network=False)
    request.config.linux.sysctls["kernel.shmall"] = "not a number"
    _refused(pair, request)


def _no_pause_image(pair: Pair) -> None:
    """Create is called and then nothing more."""
    pair.containerd.ctr("images", "rm", "--sync", PAUSE_IMAGE)
    try:
        eventually(lambda: not pair.cri.has_image(PAUSE_IMAGE), "the pause image is gone")
        told = _refused(pair, pair.request(host_network=False))
        assert "pull" in told, told
    finally:
        pair.containerd.equip()


def _deadlines(pair: Pair) -> None:
    """Callers whose time is up somewhere in the walk; a pod that is there all the same is removed as kubelet does."""
    ended = 0
    for deadline_ms in DEADLINES_MS * 3:
        request = pair.request(host_network=ended % 2 == 0)
        try:
            _future(pair, request, timeout_s=deadline_ms / 1000).result()
        except grpc.RpcError:
            ended += 1
    assert ended, "no deadline was reached"
    time.sleep(1)
    pair.cri.remove_all()


def _shim_dies(pair: Pair) -> None:
    """The Task server of a pod is killed: its containers go with it, and the pod is not ready."""
    with pair.pod(host_network=False) as (pod, request):
        container = pair.run(pod, request)
        pid = pair.pid(pod)
        inside = _container_pid(pair, container)
        shim = host.parent(pid)
        assert "shim" in host.command(shim), host.command(shim)
        os.kill(shim, signal.SIGKILL)
        eventually(lambda: not is_alive(inside), "the container's process is gone")
        assert pair.exit_code(container) in (137, 255)
        eventually(lambda: not pair.is_ready(pod), "the pod is not ready")


def _container_pid(pair: Pair, container: str) -> int:
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    info = pair.cri.call("ContainerStatus", request, pb.ContainerStatusResponse).info["info"]
    return int(info.partition('"pid":')[2].partition(",")[0])


def _killed_between(pair: Pair) -> None:
    """containerd dies with pods under way, and comes back."""
    _killed_while_starting(pair, CONTAINERD)


def _vanished_caller(pair: Pair) -> None:
    """Another client of the controller creates sandboxes and goes away: one never started."""
    with grpc.insecure_channel(f"unix:{pair.atoll.places.socket}") as channel:
        Controller(channel).create("e" * 64, pair.request().config)


_LEAKS: dict[str, Callable[[Pair], None]] = {
    "Create fails": _create_fails,
    "Start fails": _start_fails,
    "the pause image is missing: Create without Start": _no_pause_image,
    "deadlines that pass anywhere in RunPodSandbox": _deadlines,
    "the shim is killed": _shim_dies,
    "containerd is killed between its calls": _killed_between,
    "a caller creates and goes away": _vanished_caller,
}
