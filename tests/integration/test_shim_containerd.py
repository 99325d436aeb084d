"""`containerd-shim-atoll-v1` under a stock containerd, driven by ctr."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.api import containerd_runtime_bootstrap_v1_pb2 as bootstrap_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.api import containerd_types_pb2 as types_pb2
from atoll.image import builtin
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup
from tests.integration.conftest import Roots
from tests.integration.images import ImageFiles, write_layout
from tests.integration.leaks import wait_until

BIN = Path(sys.executable).parent
SHIM = BIN / "containerd-shim-atoll-v1"
RUNTIME = "io.containerd.atoll.v1"
WITHIN_S = 30.0

CONFIG = """version = 2
root = "{base}/root"
state = "{state}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "{state}/c.sock"
[ttrpc]
address = "{state}/c.sock.ttrpc"
"""


@dataclass(slots=True)
class Containerd:
    """A private containerd and a root filesystem."""

    roots: Roots
    process: subprocess.Popen[bytes]

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["ctr", "-a", str(self.roots.state / "c.sock"), *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=WITHIN_S)

    def run(
        self, name: str, *argv: str, flags: tuple[str, ...] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        spec = ["--rootfs", "--runtime", RUNTIME, "--cgroup", f"/{self.roots.prefix}/{name}", *flags]
        return self.ctr("run", *spec, str(self.roots.base / "rootfs"), name, *argv, check=check)

    @contextmanager
    def terminal(self, *arguments: str) -> Iterator[Terminal]:
        """`ctr` on a terminal of its own."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (33, 111))
        command = ["ctr", "-a", str(self.roots.state / "c.sock"), *arguments]
        with open(ours, "r+b", buffering=0) as stream, open(theirs, "r+b", buffering=0) as other:
            process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True)
            try:
                yield Terminal(stream.fileno(), process)
            finally:
                process.kill()
                process.wait()

    def remove(self, *names: str) -> None:
        for name in names:
            self.ctr("task", "rm", "--force", name, check=False)
            self.ctr("container", "rm", name)

    def start(self) -> None:
        with (self.roots.base / "containerd.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["containerd", "-c", str(self.roots.base / "containerd.toml")],
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            )
        wait_until(lambda: self.ctr("version", check=False).returncode == 0, within=WITHIN_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def status(self, name: str) -> str:
        lines = [line.split() for line in self.ctr("task", "ls").stdout.splitlines()]
        return next((line[2] for line in lines if line[0] == name), "")

    def pid(self, name: str) -> int:
        lines = [line.split() for line in self.ctr("task", "ls").stdout.splitlines()]
        return next(int(line[1]) for line in lines if line[0] == name)


@dataclass(slots=True)
class Terminal:
    """The other end of a program's terminal."""

    fd: int
    process: subprocess.Popen[bytes]
    seen: bytes = b""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, text: str) -> None:
        """Read until `text` has come."""
        deadline = time.monotonic() + WITHIN_S
        while text.encode() not in self.seen:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.fd], [], [], max(left, 0))
            assert ready, f"{text!r} did not come within {WITHIN_S:g} s: {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 65536)
            except OSError:  # EIO: the program has ended
                assert text.encode() in self.seen, f"{text!r} did not come: {self.seen!r}"


@pytest.fixture
def containerd(roots: Roots) -> Iterator[Containerd]:
    if shutil.which("containerd") is None or shutil.which("ctr") is None:
        pytest.skip("needs containerd and ctr: run `make setup-tests`")
    (roots.base / "containerd.toml").write_text(CONFIG.format(base=roots.base, state=roots.state))
    rootfs = roots.base / "rootfs"
    for folder in ("bin", "proc", "dev", "sys", "tmp", "run", "etc"):
        (rootfs / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin/busybox")
    for applet in ("sh", "echo", "sleep", "stty", "cat", "grep"):
        (rootfs / "bin" / applet).symlink_to("busybox")
    containerd = Containerd(roots, subprocess.Popen(["true"]))
    containerd.process.wait()
    containerd.start()
    try:
        yield containerd
    finally:
        containerd.kill()
        Cgroup(f"/{roots.prefix}", cgroup_layout.detect()).delete()


def test_a_stock_containerd_runs_a_container(containerd: Containerd) -> None:
    done = containerd.run("one", "/bin/sh", "-c", "echo said; exit 3", flags=("--rm",), check=False)
    assert (done.stdout, done.returncode) == ("said\n", 3)


def test_a_stock_containerd_drives_the_whole_life(containerd: Containerd) -> None:
    containerd.run("life", "/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done", flags=("-d",))
    assert containerd.status("life") == "RUNNING"
    done = containerd.ctr("task", "exec", "--exec-id", "e", "life", "/bin/sh", "-c", "echo in; exit 4", check=False)
    assert (done.stdout, done.returncode) == ("in\n", 4)
    metrics = containerd.ctr("task", "metrics", "life").stdout
    assert "memory.usage_in_bytes" in metrics or "memory.usage" in metrics
    assert "pids.current" in metrics
    containerd.ctr("task", "pause", "life")
    assert containerd.status("life") == "PAUSED"
    containerd.ctr("task", "resume", "life")
    assert str(containerd.pid("life")) in containerd.ctr("task", "ps", "life").stdout
    containerd.ctr("task", "kill", "-s", "TERM", "life")
    wait_until(lambda: containerd.status("life") == "STOPPED", within=WITHIN_S)
    assert "non-zero exit code 7" in containerd.ctr("task", "rm", "life", check=False).stderr
    containerd.ctr("container", "rm", "life")


def test_a_container_outlives_its_containerd(containerd: Containerd) -> None:
    containerd.run("old", "/bin/sleep", "600", flags=("-d",))
    pid = containerd.pid("old")
    containerd.kill()
    containerd.start()
    assert (containerd.status("old"), containerd.pid("old")) == ("RUNNING", pid)
    done = containerd.ctr("task", "exec", "--exec-id", "e", "old", "/bin/echo", "still")
    assert done.stdout == "still\n"
    containerd.ctr("task", "kill", "-s", "KILL", "old")
    wait_until(lambda: containerd.status("old") == "STOPPED", within=WITHIN_S)
    containerd.ctr("task", "rm", "old", check=False)
    containerd.ctr("container", "rm", "old")


def test_an_exit_without_a_containerd_is_told_by_the_next(containerd: Containerd) -> None:
    script = "trap 'exit 9' TERM; while :; do sleep 0.05; done"
    containerd.run("gone", "/bin/sh", "-c", script, flags=("-d",))
    pid = containerd.pid("gone")
    containerd.kill()
    os.kill(pid, signal.SIGTERM)
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists(), within=WITHIN_S)
    containerd.start()
    assert containerd.status("gone") == "STOPPED"
    assert "non-zero exit code 9" in containerd.ctr("task", "rm", "gone", check=False).stderr
    containerd.ctr("container", "rm", "gone")


def test_what_a_killed_shim_leaves_is_cleaned_up(containerd: Containerd) -> None:
    containerd.run("dead", "/bin/sleep", "600", flags=("-d",))
    pid = containerd.pid("dead")
    stat = Path(f"/proc/{pid}/stat").read_text()
    shim = int(stat.rpartition(")")[2].split()[1])
    assert "containerd-shim-atoll-v1" in Path(f"/proc/{shim}/cmdline").read_text()
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), within=WITHIN_S)
    wait_until(lambda: containerd.status("dead") == "", within=WITHIN_S)
    containerd.ctr("container", "rm", "dead")


def test_several_containers_at_once_have_shims_of_their_own(containerd: Containerd) -> None:
    names = [f"many{number}" for number in range(5)]
    for name in names:
        containerd.run(name, "/bin/sh", "-c", f"echo {name} >/tmp/{name}; exec sleep 600", flags=("-d",))
    pids = {name: containerd.pid(name) for name in names}
    assert len({parent(pid) for pid in pids.values()}) == len(names)
    for name in names:
        done = containerd.ctr("task", "exec", "--exec-id", "e", name, "/bin/cat", f"/tmp/{name}")
        assert done.stdout == f"{name}\n"
    containerd.ctr("task", "kill", "-s", "KILL", names[0])
    wait_until(lambda: containerd.status(names[0]) == "STOPPED", within=WITHIN_S)
    assert all(containerd.status(name) == "RUNNING" for name in names[1:])
    containerd.remove(*names)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_terminal(containerd: Containerd, roots: Roots) -> None:
    run = ("run", "--rm", "-t", "--rootfs", "--runtime", RUNTIME, "--cgroup", f"/{roots.prefix}/tty")
    with containerd.terminal(*run, str(roots.base / "rootfs"), "tty", "/bin/sh") as shell:
        # ctr tells the size some time after the start.
        shell.type("until stty size | grep '33 111'; do sleep 0.05; done; test -t 0 && echo a terminal\n")
        shell.expect("\n33 111")
        shell.expect("\na terminal")
        with containerd.terminal("task", "exec", "-t", "--exec-id", "e", "tty", "/bin/sh") as other:
            other.type("test -t 1 && echo another; exit 5\n")
            other.expect("\nanother")
            assert other.process.wait(WITHIN_S) == 5
        shell.type("exit 6\n")
        assert shell.process.wait(WITHIN_S) == 6


def test_a_detached_container_is_attached_to(containerd: Containerd, roots: Roots) -> None:
    run = ("run", "-d", "-t", "--rootfs", "--runtime", RUNTIME, "--cgroup", f"/{roots.prefix}/back")
    script = "while read line; do echo got $line; done"
    with containerd.terminal(*run, str(roots.base / "rootfs"), "back", "/bin/sh", "-c", script) as started:
        assert started.process.wait(WITHIN_S) == 0
    with containerd.terminal("task", "attach", "back") as attached:
        attached.type("one\n")
        attached.expect("got one")
    assert containerd.status("back") == "RUNNING", "the end of an attach ends nothing"
    containerd.remove("back")


def test_standard_input_is_closed_when_its_source_ends(containerd: Containerd) -> None:
    command = ["ctr", "-a", str(containerd.roots.state / "c.sock"), "run", "--rm", "--rootfs", "--runtime", RUNTIME]
    command += ["--cgroup", f"/{containerd.roots.prefix}/in", str(containerd.roots.base / "rootfs"), "in", "/bin/cat"]
    done = subprocess.run(command, input=b"to the end", capture_output=True, check=False, timeout=WITHIN_S)
    assert (done.stdout, done.returncode) == (b"to the end", 0), done.stderr


def test_processes_are_listed_with_their_execs(containerd: Containerd) -> None:
    containerd.run("ps", "/bin/sleep", "600", flags=("-d",))
    containerd.ctr("task", "exec", "-d", "--exec-id", "listed", "ps", "/bin/sleep", "601")
    lines = [line.split() for line in containerd.ctr("task", "ps", "ps").stdout.splitlines()[1:]]
    assert len(lines) == 2
    assert str(containerd.pid("ps")) in {line[0] for line in lines}
    assert any("listed" in line[-1] for line in lines), lines
    containerd.ctr("task", "kill", "-s", "KILL", "--exec-id", "listed", "ps")
    wait_until(lambda: len(containerd.ctr("task", "ps", "ps").stdout.splitlines()) == 2, within=WITHIN_S)
    assert containerd.status("ps") == "RUNNING"
    containerd.ctr("task", "kill", "-s", "KILL", "--all", "ps")
    wait_until(lambda: containerd.status("ps") == "STOPPED", within=WITHIN_S)
    containerd.remove("ps")


def test_metrics_count_what_a_container_uses(containerd: Containerd) -> None:
    containerd.run("use", "/bin/sh", "-c", "while :; do :; done", flags=("-d", "--memory-limit", str(64 << 20)))

    def used() -> int:
        told = json.loads(containerd.ctr("task", "metrics", "--format", "json", "use").stdout)
        assert told["pids"]["current"] == 1
        if "usage_limit" in told["memory"]:  # cgroup v2
            assert told["memory"]["usage_limit"] == 64 << 20
            return told["cpu"]["usage_usec"]
        assert told["memory"]["usage"]["limit"] == 64 << 20
        return told["cpu"]["usage"]["total"]

    before = used()
    wait_until(lambda: used() > before, within=WITHIN_S)
    assert used() > before
    containerd.remove("use")


def test_a_paused_container_stands_still(containerd: Containerd) -> None:
    containerd.run("still", "/bin/sh", "-c", "while :; do echo x >>/tmp/still; sleep 0.01; done", flags=("-d",))
    grows = containerd.roots.base / "rootfs/tmp/still"
    wait_until(grows.exists, within=WITHIN_S)
    containerd.ctr("task", "pause", "still")
    assert containerd.status("still") == "PAUSED"
    size = grows.stat().st_size
    time.sleep(0.2)
    assert grows.stat().st_size == size
    refused = containerd.ctr("task", "exec", "--exec-id", "e", "still", "/bin/echo", check=False)
    assert refused.returncode != 0
    containerd.ctr("task", "resume", "still")
    wait_until(lambda: grows.stat().st_size > size, within=WITHIN_S)
    assert grows.stat().st_size > size
    containerd.remove("still")


def test_events_tell_the_whole_life(containerd: Containerd) -> None:
    seen = containerd.roots.base / "events.log"
    with seen.open("wb") as log:
        listener = subprocess.Popen(["ctr", "-a", str(containerd.roots.state / "c.sock"), "events"], stdout=log)
    try:
        time.sleep(0.3)  # nothing tells when it listens
        containerd.run("told", "/bin/sh", "-c", "exit 9", flags=("--rm",), check=False)
        wait_until(lambda: "/tasks/delete" in seen.read_text(), within=WITHIN_S)
    finally:
        listener.kill()
        listener.wait()
    told = [line.split() for line in seen.read_text().splitlines()]
    topics = [word for line in told for word in line if word.startswith("/tasks/")]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    exits = next(line for line in seen.read_text().splitlines() if "/tasks/exit" in line)
    assert '"exit_status":9' in exits


def test_an_image_with_a_snapshot(containerd: Containerd, roots: Roots) -> None:
    one = next(image for image in builtin.build(builtin.find_busybox()) if image.name == builtin.BUSYBOX)
    layout = write_layout(
        roots.base / "layout", (ImageFiles(manifest=one.manifest, config=one.config, blobs=(one.layer,)), "latest")
    )
    archive = roots.base / "image.tar"
    subprocess.run(["tar", "-C", str(layout), "-cf", str(archive), "."], check=True)
    containerd.ctr("images", "import", "--base-name", "test/busybox", str(archive))
    arguments = ("--rm", "--runtime", RUNTIME, "--cgroup", f"/{roots.prefix}/image", "test/busybox:latest", "image")
    done = containerd.ctr("run", *arguments, "sh", "-c", "echo kept >/kept; cat /kept /etc/os-release")
    assert done.stdout.startswith("kept\nID=atoll-busybox\n")
    assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if roots.prefix in line]


def test_logs_go_where_their_uri_says(containerd: Containerd, roots: Roots) -> None:
    log = roots.base / "logs" / "of.log"
    containerd.run("logs", "/bin/sh", "-c", "echo out; echo err >&2", flags=("-d", "--log-uri", f"file://{log}"))
    wait_until(lambda: containerd.status("logs") == "STOPPED", within=WITHIN_S)
    assert sorted(log.read_text().splitlines()) == ["err", "out"]
    containerd.remove("logs")


def test_a_command_that_is_not_there_is_named(containerd: Containerd, roots: Roots) -> None:
    done = containerd.run("none", "/bin/nothing", flags=("--rm",), check=False)
    assert done.returncode != 0
    assert "/bin/nothing" in done.stderr
    assert "none" not in containerd.ctr("task", "ls").stdout


def test_a_checkpoint_that_cannot_be_made_says_why(containerd: Containerd, roots: Roots) -> None:
    containerd.run("point", "/bin/sleep", "600", flags=("-d",))
    done = containerd.ctr("task", "checkpoint", "--image-path", str(roots.base / "image"), "point", check=False)
    assert done.returncode != 0
    assert "checkpoint" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert containerd.status("point") == "RUNNING"
    containerd.remove("point")


def call(bundle: Path, *arguments: str, stdin: bytes = b"", **environment: str) -> bytes:
    env = {**os.environ, **environment}
    return subprocess.run(
        [str(SHIM), *arguments], cwd=bundle, input=stdin, check=True, capture_output=True, env=env
    ).stdout


def test_the_newest_daemon_gets_its_answer(roots: Roots) -> None:
    bundle = roots.state / "b"
    bundle.mkdir()
    (bundle / "config.json").write_text('{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}')
    other = roots.state / "c"
    shutil.copytree(bundle, other)
    sockets = str(roots.state / "s")
    answers: list[bootstrap_pb2.BootstrapResult] = []
    for folder in (bundle, other):
        params = bootstrap_pb2.BootstrapParams(instance_id=folder.name, namespace="n", socket_dir=sockets)
        told = call(folder, "-namespace", "n", "-id", folder.name, "start", stdin=params.SerializeToString())
        answers.append(bootstrap_pb2.BootstrapResult.FromString(told))
    assert answers[0] == answers[1], "containers of a pod share a shim"
    assert (answers[0].version, answers[0].protocol) == (3, "ttrpc")
    assert answers[0].address.startswith(f"unix://{sockets}/")
    record = (bundle / "shim.json").read_text()
    pid = int(record.partition('"pid":')[2].partition(",")[0])
    subprocess.run([sys.executable, "-c", SHUTDOWN, answers[0].address], check=True)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), within=WITHIN_S)


SHUTDOWN = """
import asyncio, sys
from google.protobuf.empty_pb2 import Empty
from atoll.api import containerd_task_v3_pb2 as pb
from atoll.ttrpc.client import Client
async def main():
    async with await Client.connect(sys.argv[1]) as client:
        await client.call("containerd.task.v3.Task", "Shutdown", pb.ShutdownRequest(), Empty)
asyncio.run(main())
"""


def test_delete_without_anything_answers_killed(roots: Roots) -> None:
    bundle = roots.state / "b"
    bundle.mkdir()
    answer = call(bundle, "-namespace", "n", "-id", "b", "-bundle", str(bundle), "delete")
    assert task_pb2.DeleteResponse.FromString(answer).exit_status == 137


def test_version_and_info(roots: Roots) -> None:
    assert RUNTIME.encode() in call(roots.base, "-v")
    info = types_pb2.RuntimeInfo.FromString(call(roots.base, "-info"))
    assert info.name == RUNTIME


@pytest.mark.parametrize("arguments", [(), ("start",), ("-namespace", "../x", "-id", "a", "start"), ("-what",)])
def test_bad_calls_say_why_in_one_line(roots: Roots, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [str(SHIM), *arguments], cwd=roots.base, capture_output=True, text=True, check=False, input=""
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
