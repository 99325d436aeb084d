"""Pods held by a pause container through the engine and CRI: over our own shim, and over containerd's."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import grpc
import pytest

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, content, eventually, in_parallel, refused
from tests.integration.leaks import pids, read

GO_SHIM = "containerd-shim-runc-v2"
RUNTIMES = """
[runtimes.atoll]

[runtimes.pod]
sandboxer = "podsandbox"

[runtimes.runc]
sandboxer = "podsandbox"
shim = "io.containerd.runc.v2"

[runtimes.nowhere]
sandboxer = "podsandbox"
shim = "io.containerd.nowhere.v9"
"""
HANDLERS = ("atoll", "pod", "runc")
WITHIN_S = 15.0
SIZED = "until stty size 2>/dev/null | grep .; do usleep 10000; done; tty"
"""Runtimes give an exec's terminal its size only when its process runs already."""

pytestmark = [
    pytest.mark.skipif(shutil.which(GO_SHIM) is None, reason=f"needs {GO_SHIM}: apt install containerd"),
    pytest.mark.shared_daemon(config=RUNTIMES),
]


def go_shims(roots: Roots) -> list[int]:
    """The shims of containerd that were started for this daemon."""
    return [
        pid
        for pid in pids()
        if GO_SHIM.encode() in read(pid, "cmdline") and bytes(roots.socket) in read(pid, "cmdline")
    ]


@pytest.fixture(autouse=True)
def nothing_of_others_stays(cri: CRI, roots: Roots) -> Iterator[None]:
    """No shim of containerd, and nothing that it keeps, outlives the pods of a test."""
    yield
    for pod in cri.list_pods():
        cri.remove_pod(pod.id)
    eventually(lambda: go_shims(roots) == [], "its shims have ended", within=WITHIN_S)
    runc = roots.state / "runc" / "k8s.io"
    assert not runc.exists() or os.listdir(runc) == []


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest) -> str:
    return request.param


def shim_of(roots: Roots, pod: str) -> int:
    """The process of the shim that serves a pod, ours or containerd's."""
    (told,) = (roots.state / "shims" / pod).rglob("shim.json")
    pid = json.loads(told.read_text())["pid"]
    assert isinstance(pid, int)
    return pid


def processes_of(roots: Roots, pod: str) -> list[int]:
    """Everything that runs in a pod."""
    return [
        pid
        for pid in pids()
        if f"/{roots.prefix}/".encode() in read(pid, "cgroup") and pod.encode() in read(pid, "cgroup")
    ]


def socket_of(roots: Roots, pod: str) -> Path:
    """Where the shim of a pod listens."""
    (told,) = (roots.state / "shims" / pod).rglob("bootstrap.json")
    return Path(json.loads(told.read_text())["address"].removeprefix("unix://"))


def relay_of(pod: str) -> int:
    relays = (pid for pid in pids() if read(pid, "comm").strip() == b"atoll-relay" and pod in _cwd(pid))
    return next(relays, 0)


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_two_containers_of_a_pod_talk_over_localhost(cri: CRI, handler: str, roots: Roots) -> None:
    pod = cri.run_pod(cri.pod_config(network=True, hostname="held"), handler)
    status = cri.pod_status(pod)
    assert (status.state, status.runtime_handler) == (pb.SANDBOX_READY, handler)
    assert re.fullmatch(r"198\.1[89]\.\d+\.\d+", status.network.ip)
    server = cri.script(pod, "echo from the other >/tmp/said; exec httpd -f -p 127.0.0.1:7000 -h /tmp")
    client = cri.script(pod, "sleep 1000")
    fetch = "wget -qO- http://127.0.0.1:7000/said"
    eventually(lambda: cri.exec(client, "sh", "-c", fetch).code == 0, "the server listens")
    assert cri.sh(client, fetch) == "from the other"
    assert cri.sh(client, "hostname") == "held"
    assert cri.stats(server).memory.usage_bytes.value > 0
    assert cri.fsck() == []
    listening = socket_of(roots, pod)
    assert listening.is_socket()
    cri.stop(server)
    assert cri.status(server).exit_code == 137
    cri.remove(server)
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert cri.status(client).state == pb.CONTAINER_EXITED
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert cri.list_pods() == cri.list() == []
    assert not listening.exists()


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_codes_and_logs_are_the_containers(cri: CRI, handler: str, code: int) -> None:
    container = cri.script(cri.run_pod(handler=handler), f"echo out; echo err >&2; exit {code}")
    assert cri.wait(container).code == code
    assert cri.output(container) == b"out\n"
    assert cri.output(container, "stderr") == b"err\n"
    assert cri.status(container).exit_code == code


def test_the_stop_signal_comes_first(cri: CRI, handler: str) -> None:
    container = cri.script(
        cri.run_pod(handler=handler), "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done"
    )
    eventually(lambda: b"up" in cri.log(container), "the trap is set")
    cri.stop(container, timeout=10)
    assert cri.status(container).exit_code == 4
    assert cri.output(container) == b"up\nbye\n"


def test_memory_that_runs_out_is_told(cri: CRI, handler: str) -> None:
    config = cri.container_config("/bin/sh", "-c", "exec tail -c 67108864 /dev/zero")
    config.linux.resources.memory_limit_in_bytes = 16 << 20
    container = cri.create(cri.run_pod(handler=handler), config)
    cri.start(container)
    cri.wait(container)
    assert cri.status(container).reason == "OOMKilled"


def test_a_command_that_is_not_there_is_a_start_error(cri: CRI, handler: str) -> None:
    pod = cri.run_pod(handler=handler)
    container = cri.create(pod, cri.container_config("/no/such/program"))
    begun = time.monotonic()
    with refused((grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNKNOWN), "no/such/program"):
        cri.start(container)
    assert time.monotonic() - begun < 5, "nobody waits for output that never was"
    assert cri.status(container).state == pb.CONTAINER_EXITED
    assert cri.status(container).reason == "StartError"
    assert cri.wait(cri.script(pod, "exit 3")).code == 3
    cri.remove(container)


def test_exec_gives_output_code_input_and_time_limit(cri: CRI, handler: str) -> None:
    container = cri.script(cri.run_pod(handler=handler), "sleep 1000")
    outcome = cri.exec(container, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (9, b"out\n", b"err\n")
    data = os.urandom(300_000)

    def inputs() -> Iterator[own.ExecRequest]:
        for at in range(0, len(data), 30_000):
            yield own.ExecRequest(stdin=data[at : at + 30_000])
        yield own.ExecRequest(close_stdin=True)

    echoed = cri.run_exec(container, "cat", inputs=inputs(), stdin=True)
    assert (echoed.code, echoed.stdout == data) == (0, True)
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        cri.exec(container, "sleep", "1000", timeout=1)
    size = own.TerminalSize(width=90, height=30)
    terminal = cri.run_exec(container, "sh", "-c", SIZED, tty=True, size=size)
    assert terminal.stdout.splitlines()[0] == b"30 90"
    assert b"/dev/pts/" in terminal.stdout


def test_logs_are_byte_exact_over_a_killed_daemon(cri: CRI, daemon: Daemon, handler: str) -> None:
    pod = cri.run_pod(cri.pod_config(network=True), handler)
    ip = cri.pod_status(pod).network.ip
    script = "i=0; while [ $i -lt 1500 ]; do echo line $i; i=$((i+1)); usleep 1000; done; echo end; exit 5"
    container = cri.script(pod, script)
    other = cri.script(pod, "sleep 1000")
    eventually(lambda: b"line 20\n" in cri.output(container), "it writes")
    daemon.kill()
    time.sleep(0.3)
    daemon.start()
    assert (cri.pod_status(pod).state, cri.pod_status(pod).network.ip) == (pb.SANDBOX_READY, ip)
    assert cri.sh(other, "echo again") == "again"
    assert cri.wait(container).code == 5
    assert cri.output(container) == b"".join(b"line %d\n" % n for n in range(1500)) + b"end\n"
    assert cri.fsck() == []


def test_an_exit_while_the_daemon_is_down_is_not_lost(cri: CRI, daemon: Daemon, handler: str) -> None:
    pod = cri.run_pod(handler=handler)
    container = cri.script(pod, "echo up; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo down; exit 6")
    eventually(lambda: b"up" in cri.log(container), "it runs")
    init = next(pid for pid in pids() if container.encode() in read(pid, "cgroup") and read(pid, "cmdline"))
    daemon.kill()
    Path(f"/proc/{init}/root/tmp/go").touch()
    eventually(lambda: not Path(f"/proc/{init}").exists(), "it has ended")
    daemon.start()
    assert cri.wait(container).code == 6
    assert cri.output(container) == b"up\ndown\n"


def test_a_rotated_log_goes_on_in_a_new_file(cri: CRI, handler: str) -> None:
    container = cri.script(
        cri.run_pod(handler=handler), "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); usleep 2000; done"
    )
    path = Path(cri.status(container).log_path)
    eventually(lambda: b"line 20\n" in cri.output(container), "it writes")
    rotated = path.with_name("rotated")
    path.rename(rotated)
    request = pb.ReopenContainerLogRequest(container_id=container)
    cri.runtime.call("ReopenContainerLog", request, pb.ReopenContainerLogResponse)
    cri.wait(container)
    assert path.stat().st_size > 0
    assert content(rotated.read_bytes() + path.read_bytes()) == b"".join(b"line %d\n" % n for n in range(400))


@pytest.mark.parametrize("once", [True, False])
def test_attach_writes_to_stdin_and_reads_output(cri: CRI, handler: str, once: bool) -> None:
    pod = cri.run_pod(handler=handler)
    script = "while read line; do echo got $line; done; echo over; sleep 1000"
    container = cri.script(pod, script, stdin=True, stdin_once=once)
    answers: list[bytes] = []
    got = threading.Event()

    def requests() -> Iterator[own.AttachRequest]:
        yield own.AttachRequest(start=own.AttachStart(container_id=container, stdin=True))
        time.sleep(0.3)
        yield own.AttachRequest(stdin=b"one\ntwo\n")
        got.wait(10)
        yield own.AttachRequest(close_stdin=True)
        eventually(lambda: b"over" in cri.log(container), "stdin ends") if once else time.sleep(0.3)

    stream = cri.own.stream("Attach", requests())
    for message in stream:
        assert isinstance(message, own.ExecResponse)
        answers.append(message.stdout)
        if b"got two" in b"".join(answers):
            got.set()
            break
    if once:
        eventually(lambda: b"over" in cri.log(container), "stdin ends")
    stream.cancel()
    assert b"got one\ngot two\n" in b"".join(answers)
    if not once:
        time.sleep(0.2)
        assert b"over" not in cri.log(container)


def test_a_terminal_is_one(cri: CRI, handler: str) -> None:
    container = cri.script(cri.run_pod(handler=handler), "tty; echo to stderr >&2; sleep 1000", tty=True, stdin=True)
    eventually(lambda: b"to stderr" in cri.log(container), "it writes")
    assert b"/dev/pts/" in cri.output(container)


def test_a_killed_shim_ends_the_pod_and_leaves_nothing(cri: CRI, handler: str, roots: Roots) -> None:
    pod = cri.run_pod(cri.pod_config(network=True), handler)
    container = cri.script(pod, "echo up; sleep 1000")
    eventually(lambda: b"up" in cri.log(container), "it runs")
    listening = socket_of(roots, pod)
    inside = processes_of(roots, pod)
    os.kill(shim_of(roots, pod), signal.SIGKILL)
    assert cri.wait(container).code in (137, 255)
    eventually(lambda: cri.pod_status(pod).state == pb.SANDBOX_NOTREADY, "the pod is known to have ended")
    assert cri.output(container) == b"up\n"
    cri.remove_pod(pod)
    assert not listening.exists()
    assert cri.fsck() == []
    # Nobody but the machine's first process reaps them.
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside), "they are reaped", within=60)


def test_a_killed_relay_is_replaced_and_the_output_goes_on(cri: CRI) -> None:
    pod = cri.run_pod(handler="runc")
    container = cri.script(pod, "i=0; while [ $i -lt 600 ]; do echo line $i; i=$((i+1)); usleep 2000; done")
    eventually(lambda: b"line 20\n" in cri.output(container), "it writes")
    time.sleep(1.0)
    before = relay_of(pod)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: relay_of(pod) not in (0, before), "another relay")
    assert cri.wait(container).code == 0
    lines = cri.output(container).splitlines()
    assert lines[-1] == b"line 599"
    assert len(lines) > 590, "what the dead relay had read and not written is lost, nothing else"


def test_a_created_container_starts_after_a_restart(cri: CRI, daemon: Daemon, handler: str) -> None:
    pod = cri.run_pod(handler=handler)
    container = cri.create(pod, cri.container_config("/bin/sh", "-c", "echo hello; exit 4"))
    daemon.kill()
    daemon.start()
    cri.start(container)
    assert cri.wait(container).code == 4
    assert cri.output(container) == b"hello\n"


def test_a_handler_whose_shim_is_not_installed_says_so(cri: CRI) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "nowhere", "containerd-shim-nowhere-v9"):
        cri.run_pod(handler="nowhere")
    assert cri.fsck() == []


def test_what_an_exec_left_behind_does_not_hold_its_answer_up_for_long(cri: CRI) -> None:
    containers = [cri.script(cri.run_pod(handler=handler), "sleep 1000") for handler in HANDLERS]
    begun = time.monotonic()
    outcomes = in_parallel([partial(cri.exec, one, "sh", "-c", "sleep 1000 & echo done") for one in containers])
    assert [one for one in outcomes if isinstance(one, Exception)] == []
    assert [(one.code, one.stdout) for one in outcomes if not isinstance(one, Exception)] == [(0, b"done\n")] * 3
    assert time.monotonic() - begun < 15


def test_a_pod_that_nobody_knows_is_found_and_freed(cri: CRI, daemon: Daemon, handler: str, roots: Roots) -> None:
    pod = cri.run_pod(cri.pod_config(network=True), handler)
    container = cri.script(pod, "echo up; sleep 1000")
    eventually(lambda: b"up" in cri.log(container), "it runs")
    inside = processes_of(roots, pod)
    daemon.kill()
    with closing(sqlite3.connect(roots.root / "state.db", isolation_level=None)) as db:
        for table in ("sandboxes", "containers", "ledger"):
            db.execute(f"DELETE FROM {table}")
    daemon.start()
    found = {one.kind for one in cri.fsck()}
    assert {"sandbox", "bundle", "snapshot"} <= found
    cri.fsck(repair=True)
    eventually(lambda: cri.fsck() == [], "a repair mends it", within=WITHIN_S)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside), "they are reaped", within=60)
