"""What a CRI client asks of a runtime: every kind of call, by crictl where it has one."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from bench import containerd_images
from bench.cri import PodRequest, container_config
from bench.cri_subject import WITHIN_S, Outcome, Subject, eventually


def crictl(subject: Subject, outcome: Outcome) -> None:
    """Every kind of call, by crictl where it has one."""
    with subject.pod(host_network=False) as (pod, request):
        container = subject.run(pod, request, "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.2; done")
        check = outcome.check
        check(
            "crictl pods shows it ready",
            lambda: has(subject.crictl("pods").stdout, pod[:13], b"Ready", subject.handler),
        )
        check("crictl ps shows it running", lambda: has(subject.crictl("ps").stdout, container[:13], b"Running"))
        check("crictl inspectp", lambda: _inspect(subject, pod))
        check("crictl inspect", lambda: has(subject.crictl("inspect", container).stdout, b"CONTAINER_RUNNING"))
        check(
            "crictl logs",
            lambda: eventually(lambda: b"line 0\nline 1" in subject.crictl("logs", container).stdout, "logs"),
        )
        check("crictl exec", lambda: _exec(subject, container))
        check("crictl exec, streams and exit codes", lambda: _exec_streams(subject, container))
        check("crictl exec on a terminal", lambda: _terminal(subject, container))
        check("crictl attach", lambda: _attach(subject, pod, request))
        check("crictl port-forward", lambda: _port_forward(subject, pod, request))
        check("crictl stats", lambda: _stats(subject, container))
        check("crictl statsp", lambda: _pod_stats(subject, pod))
        check("crictl metricsp", lambda: subject.crictl("metricsp"))
        check("crictl update", lambda: _update(subject, container))
        check("update of the pod's resources", lambda: _update_pod(subject, pod))
        check("the pod's files and shared memory are the containers'", lambda: _files(subject, pod, request, container))
        check("stop within a grace period", lambda: _stop(subject, pod, request))
        check("an exit code is seen", lambda: equal(subject.exit_code(subject.run(pod, request, "exit 7")), 7))
        check("out of memory is told", lambda: _oom(subject, pod, request))
        check("a command that is not there", lambda: _no_command(subject, pod, request))
        check("the end of the sandbox makes the pod not ready", lambda: _sandbox_ends(subject))


def has(output: bytes, *words: str | bytes) -> None:
    for word in words:
        wanted = word.encode() if isinstance(word, str) else word
        assert wanted in output, f"{wanted!r} is not in {output!r}"


def equal(found: object, wanted: object) -> None:
    assert found == wanted, f"{found!r} is not {wanted!r}"


def _inspect(subject: Subject, pod: str) -> None:
    told = json.loads(subject.crictl("inspectp", pod).stdout)
    equal(told["status"]["state"], "SANDBOX_READY")
    assert told["status"]["network"]["ip"], "no address"
    assert Path(f"/proc/{told['info']['pid']}").is_dir(), told["info"]["pid"]
    for kind in ("net", "ipc", "uts"):
        own = os.readlink(f"/proc/self/ns/{kind}")
        assert os.readlink(f"/proc/{told['info']['pid']}/ns/{kind}") != own, f"{kind} is the host's"


def _exec(subject: Subject, container: str) -> None:
    equal(subject.crictl("exec", "-s", container, "echo", "said").stdout.strip(), b"said")
    answer = subject.cri.exec_sync(container, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    equal((answer.exit_code, answer.stdout, answer.stderr), (3, b"out\n", b"err\n"))


def _exec_streams(subject: Subject, container: str) -> None:
    data = os.urandom(300_000).hex().encode()
    done = subject.crictl("exec", "-i", container, "sh", "-c", "cat; echo end >&2; exit 5", stdin=data, check=False)
    assert done.stdout == data, f"{len(done.stdout)} bytes of {len(data)} came back"
    has(done.stderr, b"end")
    assert done.returncode, "the exit code is lost"


def _terminal(subject: Subject, container: str) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "r+b", buffering=0) as stream, open(theirs, "r+b", buffering=0) as other:
        command = subject.crictl_command("exec", "-i", "-t", container, "sh")
        process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True)
        try:
            stream.write(b"test -t 0 && echo is a term''inal\n")
            _expect(stream.fileno(), b"is a terminal")
            stream.write(b"exit\n")
            equal(process.wait(WITHIN_S), 0)
        finally:
            process.kill()
            process.wait()


def _expect(fd: int, text: bytes) -> None:
    seen, deadline = b"", time.monotonic() + WITHIN_S
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"{text!r} did not come: {seen!r}"
        came = os.read(fd, 65536)
        assert came, f"{text!r} did not come, and nothing will: {seen!r}"
        seen += came


def _attach(subject: Subject, pod: str, request: PodRequest) -> None:
    config = container_config(["sh", "-c", "while read line; do echo got $line; done"])
    config.metadata.name, config.log_path, config.stdin = "attached", "attached.log", True
    container = subject.cri.create(pod, request, config)
    subject.cri.start(container)
    command = subject.crictl_command("attach", "-i", container)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"one\n")
            process.stdin.flush()
            _expect(process.stdout.fileno(), b"got one")
        finally:
            process.kill()


def _port_forward(subject: Subject, pod: str, request: PodRequest) -> None:
    config = container_config([])
    config.ClearField("command")
    config.image.image = containerd_images.WEB
    config.metadata.name, config.log_path = "web", "web.log"
    subject.cri.start(subject.cri.create(pod, request, config))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(subject.crictl_command("port-forward", pod, f"{port}:80"), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: b"Welcome to nginx" in _get(f"http://127.0.0.1:{port}/"), "the page")
    finally:
        process.kill()
        process.wait()


def _get(url: str) -> bytes:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return answer.read()
    return b""


def _stats(subject: Subject, container: str) -> None:
    told = json.loads(subject.crictl("stats", "-o", "json", "--id", container).stdout)["stats"][0]
    assert int(told["cpu"]["usageCoreNanoSeconds"]["value"]) > 0, told
    assert int(told["memory"]["workingSetBytes"]["value"]) > 0, told


def _pod_stats(subject: Subject, pod: str) -> None:
    told = json.loads(subject.crictl("statsp", "-o", "json", "--id", pod).stdout)["stats"][0]
    assert int(told["linux"]["memory"]["workingSetBytes"]["value"]) > 0, told


def _update(subject: Subject, container: str) -> None:
    subject.crictl("update", "--memory", str(48 << 20), "--cpu-share", "77", container)
    limits = subject.sh(
        container, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true"
    )
    assert str(48 << 20) in limits, limits


def _update_pod(subject: Subject, pod: str) -> None:
    request = pb.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod,
        overhead=pb.LinuxContainerResources(cpu_shares=3),
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=256 << 20),
    )
    subject.cri.call("UpdatePodSandboxResources", request, pb.UpdatePodSandboxResourcesResponse)
    assert subject.is_ready(pod)


def _files(subject: Subject, pod: str, request: PodRequest, container: str) -> None:
    equal(subject.sh(container, "cat /etc/hostname && hostname"), "pod\npod")
    assert subject.sh(container, "cat /etc/resolv.conf"), "resolv.conf is empty"
    subject.sh(container, "echo shared >/dev/shm/seen")
    other = subject.run(pod, request)
    equal(subject.sh(other, "cat /dev/shm/seen"), "shared")
    subject.cri.stop(other)
    subject.cri.remove(other)


def _stop(subject: Subject, pod: str, request: PodRequest) -> None:
    for trap, grace_s, code in (("exit 6", 20, 6), ("", 1, 137)):
        container = subject.run(pod, request, f"trap '{trap}' TERM; touch /set; while :; do sleep 0.05; done")
        eventually(lambda one=container: subject.sh(one, "ls /").count("set") == 1, "the trap is set")
        subject.cri.stop(container, grace_s)
        equal(subject.exit_code(container), code)


def _oom(subject: Subject, pod: str, request: PodRequest) -> None:
    config = container_config(["sh", "-c", "x=a; while :; do x=$x$x; done"])
    config.linux.resources.memory_limit_in_bytes = 16 << 20
    config.linux.resources.memory_swap_limit_in_bytes = 16 << 20
    config.metadata.name, config.log_path = "oom", "oom.log"
    container = subject.cri.create(pod, request, config)
    subject.cri.start(container)
    equal(subject.exit_code(container), 137)
    eventually(lambda: subject.cri.container_status(container).reason == "OOMKilled", "the reason OOMKilled")


def _no_command(subject: Subject, pod: str, request: PodRequest) -> None:
    config = container_config(["/not/there"])
    config.metadata.name, config.log_path = "none", "none.log"
    container = subject.cri.create(pod, request, config)
    try:
        subject.cri.start(container)
    except grpc.RpcError as error:
        has((error.details() or "").encode(), "/not/there")
    else:
        raise AssertionError("it was started")


def _sandbox_ends(subject: Subject) -> None:
    with subject.pod() as (pod, _):
        os.kill(subject.pid(pod), signal.SIGKILL)
        eventually(lambda: not subject.is_ready(pod), "the pod is not ready")
