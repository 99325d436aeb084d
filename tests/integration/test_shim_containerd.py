"""`containerd-shim-atoll-v1` under a stock containerd, driven by ctr."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.api import containerd_runtime_bootstrap_v1_pb2 as bootstrap_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.api import containerd_types_pb2 as types_pb2
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup
from tests.integration.conftest import Roots
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


@pytest.fixture
def containerd(roots: Roots) -> Iterator[Containerd]:
    if shutil.which("containerd") is None or shutil.which("ctr") is None:
        pytest.skip("needs containerd and ctr: run `make setup-tests`")
    (roots.base / "containerd.toml").write_text(CONFIG.format(base=roots.base, state=roots.state))
    rootfs = roots.base / "rootfs"
    for folder in ("bin", "proc", "dev", "sys", "tmp", "run", "etc"):
        (rootfs / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin/busybox")
    for applet in ("sh", "echo", "sleep", "stty"):
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
