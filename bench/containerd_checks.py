"""The parts of `scripts/containerd-conformance`: what a CRI client asks of a containerd whose sandboxer is Atoll."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from bench import containerd_faults, containerd_images
from bench.containerd_pair import WITHIN_S, Leftovers, Outcome, Pair, eventually
from bench.cri import container_config

__all__ = ["PARTS", "Leftovers", "Outcome", "Pair"]

CRITEST_S = 1800.0
SKIPPED = "Image Manager|benchmark|Image ID Consistency|Image consistency"
"""Suites of critest that pull from public registries, or measure."""


def crictl(pair: Pair, outcome: Outcome) -> None:
    """Every kind of call, by crictl where it has one."""
    with pair.pod(host_network=False) as (pod, request):
        container = pair.run(pod, request, "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.2; done")
        check = outcome.check
        check("crictl pods shows it ready", lambda: _has(pair.crictl("pods").stdout, pod[:13], b"Ready", b"atoll"))
        check("crictl ps shows it running", lambda: _has(pair.crictl("ps").stdout, container[:13], b"Running"))
        check("crictl inspectp", lambda: _inspect(pair, pod))
        check("crictl inspect", lambda: _has(pair.crictl("inspect", container).stdout, b"CONTAINER_RUNNING"))
        check(
            "crictl logs",
            lambda: eventually(lambda: b"line 0\nline 1" in pair.crictl("logs", container).stdout, "logs"),
        )
        check("crictl exec", lambda: _exec(pair, container))
        check("crictl exec, streams and exit codes", lambda: _exec_streams(pair, container))
        check("crictl exec on a terminal", lambda: _terminal(pair, container))
        check("crictl attach", lambda: _attach(pair, pod, request))
        check("crictl port-forward", lambda: _port_forward(pair, pod, request))
        check("crictl stats", lambda: _stats(pair, container))
        check("crictl statsp", lambda: _pod_stats(pair, pod))
        check("crictl metricsp", lambda: pair.crictl("metricsp"))
        check("crictl update", lambda: _update(pair, container))
        check("update of the pod's resources", lambda: _update_pod(pair, pod))
        check("the pod's files and shared memory are the containers'", lambda: _files(pair, pod, request, container))
        check("stop within a grace period", lambda: _stop(pair, pod, request))
        check("an exit code is seen", lambda: _equal(pair.exit_code(pair.run(pod, request, "exit 7")), 7))
        check("out of memory is told", lambda: _oom(pair, pod, request))
        check("a command that is not there", lambda: _no_command(pair, pod, request))
        check("the end of the sandbox makes the pod not ready", lambda: _sandbox_ends(pair))


def _has(output: bytes, *words: str | bytes) -> None:
    for word in words:
        wanted = word.encode() if isinstance(word, str) else word
        assert wanted in output, f"{wanted!r} is not in {output!r}"


def _equal(found: object, wanted: object) -> None:
    assert found == wanted, f"{found!r} is not {wanted!r}"


def _inspect(pair: Pair, pod: str) -> None:
    told = json.loads(pair.crictl("inspectp", pod).stdout)
    _equal(told["status"]["state"], "SANDBOX_READY")
    assert told["status"]["network"]["ip"], "no address"
    assert Path(f"/proc/{told['info']['pid']}").is_dir(), told["info"]["pid"]
    for kind in ("net", "ipc", "uts"):
        own = os.readlink(f"/proc/self/ns/{kind}")
        assert os.readlink(f"/proc/{told['info']['pid']}/ns/{kind}") != own, f"{kind} is the host's"


def _exec(pair: Pair, container: str) -> None:
    _equal(pair.crictl("exec", "-s", container, "echo", "said").stdout.strip(), b"said")
    answer = pair.cri.exec_sync(container, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    _equal((answer.exit_code, answer.stdout, answer.stderr), (3, b"out\n", b"err\n"))


def _exec_streams(pair: Pair, container: str) -> None:
    data = os.urandom(300_000).hex().encode()
    done = pair.crictl("exec", "-i", container, "sh", "-c", "cat; echo end >&2; exit 5", stdin=data, check=False)
    assert done.stdout == data, f"{len(done.stdout)} bytes of {len(data)} came back"
    _has(done.stderr, b"end")
    assert done.returncode, "the exit code is lost"


def _terminal(pair: Pair, container: str) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "r+b", buffering=0) as stream, open(theirs, "r+b", buffering=0) as other:
        command = pair.crictl_command("exec", "-i", "-t", container, "sh")
        process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True)
        try:
            stream.write(b"test -t 0 && echo is a term''inal\n")
            _expect(stream.fileno(), b"is a terminal")
            stream.write(b"exit\n")
            _equal(process.wait(WITHIN_S), 0)
        finally:
            process.kill()
            process.wait()


def _expect(fd: int, text: bytes) -> None:
    seen, deadline = b"", time.monotonic() + WITHIN_S
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"{text!r} did not come: {seen!r}"
        seen += os.read(fd, 65536)


def _attach(pair: Pair, pod: str, request: object) -> None:
    config = container_config(["sh", "-c", "while read line; do echo got $line; done"])
    config.metadata.name, config.log_path, config.stdin = "attached", "attached.log", True
    container = pair.cri.create(pod, request, config)  # pyright: ignore[reportArgumentType]
    pair.cri.start(container)
    command = pair.crictl_command("attach", "-i", container)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"one\n")
            process.stdin.flush()
            _expect(process.stdout.fileno(), b"got one")
        finally:
            process.kill()


def _port_forward(pair: Pair, pod: str, request: object) -> None:
    config = container_config([])
    config.ClearField("command")
    config.image.image = f"{containerd_images.E2E}/nginx:1.14-2"
    config.metadata.name, config.log_path = "web", "web.log"
    pair.cri.start(pair.cri.create(pod, request, config))  # pyright: ignore[reportArgumentType]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(pair.crictl_command("port-forward", pod, f"{port}:80"), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: b"Welcome to nginx" in _get(f"http://127.0.0.1:{port}/"), "the page")
    finally:
        process.kill()
        process.wait()


def _get(url: str) -> bytes:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return answer.read()
    return b""


def _stats(pair: Pair, container: str) -> None:
    told = json.loads(pair.crictl("stats", "-o", "json", "--id", container).stdout)["stats"][0]
    assert int(told["cpu"]["usageCoreNanoSeconds"]["value"]) > 0, told
    assert int(told["memory"]["workingSetBytes"]["value"]) > 0, told


def _pod_stats(pair: Pair, pod: str) -> None:
    told = json.loads(pair.crictl("statsp", "-o", "json", "--id", pod).stdout)["stats"][0]
    assert int(told["linux"]["memory"]["workingSetBytes"]["value"]) > 0, told


def _update(pair: Pair, container: str) -> None:
    pair.crictl("update", "--memory", str(48 << 20), "--cpu-share", "77", container)
    limits = pair.sh(
        container, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true"
    )
    assert str(48 << 20) in limits, limits


def _update_pod(pair: Pair, pod: str) -> None:
    request = pb.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod,
        overhead=pb.LinuxContainerResources(cpu_shares=3),
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=256 << 20),
    )
    pair.cri.call("UpdatePodSandboxResources", request, pb.UpdatePodSandboxResourcesResponse)
    assert pair.is_ready(pod)


def _files(pair: Pair, pod: str, request: object, container: str) -> None:
    _equal(pair.sh(container, "cat /etc/hostname && hostname"), "pod\npod")
    assert pair.sh(container, "cat /etc/resolv.conf"), "resolv.conf is empty"
    pair.sh(container, "echo shared >/dev/shm/seen")
    other = pair.run(pod, request)  # pyright: ignore[reportArgumentType]
    _equal(pair.sh(other, "cat /dev/shm/seen"), "shared")
    pair.cri.stop(other)
    pair.cri.remove(other)


def _stop(pair: Pair, pod: str, request: object) -> None:
    polite = pair.run(pod, request, "trap 'exit 6' TERM; while :; do sleep 0.05; done")  # pyright: ignore[reportArgumentType]
    pair.cri.stop(polite, 20)
    _equal(pair.exit_code(polite), 6)
    deaf = pair.run(pod, request, "trap '' TERM; while :; do sleep 0.05; done")  # pyright: ignore[reportArgumentType]
    pair.cri.stop(deaf, 1)
    _equal(pair.exit_code(deaf), 137)


def _oom(pair: Pair, pod: str, request: object) -> None:
    config = container_config(["sh", "-c", "x=a; while :; do x=$x$x; done"])
    config.linux.resources.memory_limit_in_bytes = 16 << 20
    config.linux.resources.memory_swap_limit_in_bytes = 16 << 20
    config.metadata.name, config.log_path = "oom", "oom.log"
    container = pair.cri.create(pod, request, config)  # pyright: ignore[reportArgumentType]
    pair.cri.start(container)
    _equal(pair.exit_code(container), 137)
    eventually(lambda: pair.cri.container_status(container).reason == "OOMKilled", "the reason OOMKilled")


def _no_command(pair: Pair, pod: str, request: object) -> None:
    config = container_config(["/not/there"])
    config.metadata.name, config.log_path = "none", "none.log"
    container = pair.cri.create(pod, request, config)  # pyright: ignore[reportArgumentType]
    try:
        pair.cri.start(container)
    except grpc.RpcError as error:
        _has((error.details() or "").encode(), "/not/there")
    else:
        raise AssertionError("it was started")


def _sandbox_ends(pair: Pair) -> None:
    with pair.pod() as (pod, _):
        os.kill(pair.pid(pod), signal.SIGKILL)
        eventually(lambda: not pair.is_ready(pod), "the pod is not ready")


def critest(pair: Pair, outcome: Outcome) -> None:
    """The specs of critest that need no public registry."""
    binary = pair.containerd.binaries.critest
    if binary is None:
        raise RuntimeError("there is no critest in the folder of binaries")
    endpoint = f"unix://{pair.containerd.places.socket}"
    report = pair.containerd.places.base / "critest"
    report.mkdir(exist_ok=True)
    segments = _segments()
    command = [str(binary), "--config", "/dev/null", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint]
    command += [
        "--runtime-handler",
        pair.handler,
        f"--ginkgo.skip={SKIPPED}",
        "--ginkgo.no-color",
        "--report-dir",
        str(report),
    ]
    with (pair.containerd.places.base / "critest.log").open("wb") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=CRITEST_S)
    for segment in _segments() - segments:  # its specs make them and leave them
        subprocess.run(["ipcrm", "-m", segment], check=False, capture_output=True)
    told = (pair.containerd.places.base / "critest.log").read_text(errors="replace")
    summary = next((line for line in reversed(told.splitlines()) if re.search(r"Passed.*Failed", line)), told[-300:])
    failed = re.findall(r"^\s*\[(?:FAIL|TIMEDOUT|PANICKED)[^\]]*\] (.*)$", told, re.MULTILINE)
    print(f"critest: {summary.strip()}")

    def judge() -> None:
        assert done.returncode == 0, f"{summary.strip()}: {'; '.join(sorted(set(failed)))}"

    outcome.check(f"critest --runtime-handler {pair.handler}", judge)


def _segments() -> set[str]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {line.split()[1] for line in lines}


def versions(pair: Pair, outcome: Outcome) -> None:
    """A configuration file of each version gives the same pods."""
    version = pair.containerd.version

    def walk() -> None:
        with pair.pod(host_network=False) as (pod, request):
            container = pair.run(pod, request)
            _equal(pair.sh(container, "cat /etc/hostname"), "pod")
            plugins = pair.containerd.ctr("plugins", "ls").stdout
            assert re.search(r"io\.containerd\.sandbox\.controller\.v1\s+atoll\s+\S*\s*ok", plugins), plugins

    outcome.check(f"config version {version}", walk)
    outcome.check(f"config version {version}: ctr run", lambda: _ctr_run(pair))
    for handler in ("runc", "atoll-shim"):

        def other(handler: str = handler) -> None:
            request = pair.request(handler=handler, host_network=False)
            pod = pair.cri.run_pod(request)
            container = pair.run(pod, request)
            _equal(pair.sh(container, "cat /etc/hostname"), "pod")
            _equal(pair.exit_code(pair.run(pod, request, "exit 7")), 7)
            pair.cri.stop_pod(pod)
            pair.cri.remove_pod(pod)

        outcome.check(f"config version {version}: handler {handler}", other)


def _ctr_run(pair: Pair) -> None:
    """Our shim by itself, started with the bootstrap parameters of 2.3."""
    run = ("run", "--runtime", "io.containerd.atoll.v1", "--cgroup", f"{pair.containerd.places.cgroup}/ctr")
    image = containerd_images.builtin.BUSYBOX
    done = pair.containerd.ctr(*run, "--rm", image, "ctr-one", "sh", "-c", "echo said; exit 3", check=False)
    _equal((done.stdout, done.returncode), ("said\n", 3))
    pair.containerd.ctr(*run, "-d", image, "ctr-two", "sleep", "600")
    done = pair.containerd.ctr("task", "exec", "--exec-id", "e", "ctr-two", "echo", "in")
    _equal(done.stdout, "in\n")
    pair.containerd.ctr("task", "metrics", "ctr-two")
    pair.containerd.ctr("task", "pause", "ctr-two")
    pair.containerd.ctr("task", "resume", "ctr-two")
    pair.containerd.ctr("task", "rm", "--force", "ctr-two", check=False)
    pair.containerd.ctr("container", "rm", "ctr-two")


PARTS: dict[str, Callable[[Pair, Outcome], None]] = {
    "crictl": crictl,
    "restarts": containerd_faults.restarts,
    "leaks": containerd_faults.leaks,
    "critest": critest,
    "versions": versions,
}
