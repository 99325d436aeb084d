"""What a containerd 2.3 was seen to call of its sandboxer and of the Task API of a pod, called here again."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.api import containerd_types_pb2 as types
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.ttrpc.client import Client
from tests.integration.conftest import Daemon, Roots
from tests.integration.leaks import wait_until
from tests.integration.sandbox_client import NOTREADY, READY, SandboxAPI, new_id, packed, sandbox_api

CRI = "io.containerd.grpc.v1.cri"
TASK = "containerd.task.v3.Task"
METADATA_URL = "github.com/containerd/cri/pkg/store/sandbox/Metadata"
WITHIN_S = 20.0
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Containerd:
    """What of a containerd the daemon gets to see."""

    roots: Roots
    daemon: Daemon
    api: SandboxAPI

    @property
    def root(self) -> Path:
        return self.roots.base / "containerd"

    @property
    def state(self) -> Path:
        return self.roots.state / "containerd"

    @property
    def netns(self) -> str:
        return f"/run/netns/{self.roots.prefix}ns"

    def links(self, sandbox_id: str) -> list[Path]:
        return [base / CRI / "sandboxes" / sandbox_id for base in (self.root, self.state)]

    def config(self) -> cri.PodSandboxConfig:
        config = cri.PodSandboxConfig(hostname="pod")
        config.metadata.name = config.metadata.uid = self.roots.prefix
        config.linux.cgroup_parent = f"/{self.roots.prefix}/kube"
        config.linux.sysctls["net.core.somaxconn"] = "77"
        config.dns_config.servers.append("10.10.10.10")
        config.dns_config.options.append("ndots:8")
        return config

    def create(self) -> str:
        """Create, with everything that containerd sends and nothing else."""
        sandbox_id = new_id()
        record = self.api.record(sandbox_id, labels={"name": f"pod_{self.roots.prefix}"})
        record.created_at.CopyFrom(Timestamp(seconds=-62135596800))
        record.updated_at.CopyFrom(Timestamp(seconds=-62135596800))
        metadata = {"Version": "v1", "Metadata": {"ID": sandbox_id, "NetNSPath": self.netns}}
        record.extensions["metadata"].CopyFrom(AnyMessage(type_url=METADATA_URL, value=json.dumps(metadata).encode()))
        return self.api.create(sandbox_id, options=packed(self.config()), sandbox=record, netns_path=self.netns)

    def tasks(self, address: str) -> Tasks:
        return Tasks(self, address.removeprefix("ttrpc+"))


@dataclass(frozen=True, slots=True)
class Tasks:
    """containerd's end of the Task API of one pod, with a connection for each call."""

    containerd: Containerd
    address: str

    def call(self, method: str, request: Message, answer: type[M]) -> M:
        async def ask() -> M:
            async with await Client.connect(self.address) as client:
                metadata = {"containerd-namespace-ttrpc": ["k8s.io"]}
                return await client.call(TASK, method, request, answer, timeout=WITHIN_S, metadata=metadata)

        return asyncio.run(ask())

    def bundle(self, name: str, pid: int, *command: str, version: str) -> Path:
        """As containerd makes one: namespaces by the pid of Status, files by the links."""
        containerd = self.containerd
        bundle = self.bundle_of(name)
        for folder in ("bin", "proc", "dev", "etc", "sys"):
            (bundle / "rootfs" / folder).mkdir(parents=True)
        shutil.copy("/bin/busybox", bundle / "rootfs/bin/busybox")
        spaces = [{"type": kind, "path": f"/proc/{pid}/ns/{kind}"} for kind in ("ipc", "uts", "pid")]
        spaces += [{"type": "network", "path": f"/proc/{pid}/ns/net"}, {"type": "mount"}]
        files, shm = containerd.links(self.pod(name))
        binds = {
            "/etc/resolv.conf": files / "resolv.conf",
            "/etc/hostname": files / "hostname",
            "/dev/shm": shm / "shm",
        }
        spec = {
            "ociVersion": version,
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", *command], "cwd": "/", "env": []},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                *(
                    {"destination": at, "type": "bind", "source": str(of), "options": ["rbind"]}
                    for at, of in binds.items()
                ),
            ],
            "linux": {"namespaces": spaces, "cgroupsPath": f"/{containerd.roots.prefix}/kube/{name}"},
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    def bundle_of(self, name: str) -> Path:
        return self.containerd.state / "io.containerd.runtime.v2.task" / "k8s.io" / name

    @staticmethod
    def pod(name: str) -> str:
        return name.partition("-")[0]

    def create(self, name: str, pid: int, *command: str, version: str = "1.0.2", binary: str = "") -> Path:
        bundle = self.bundle(name, pid, *command, version=version)
        address = f"ttrpc+{self.address}"
        options = runc_pb2.Options(task_api_address=address, task_api_version=3, binary_name=binary)
        out = self.containerd.roots.base / f"{name[-4:]}.out"
        request = task_pb2.CreateTaskRequest(
            id=name, bundle=str(bundle), stdout=f"file://{out}", stderr=f"file://{out}", options=packed(options)
        )
        self.call("Create", request, task_pb2.CreateTaskResponse)
        self.call("Connect", task_pb2.ConnectRequest(id=name), task_pb2.ConnectResponse)
        return out

    def start(self, name: str) -> int:
        return self.call("Start", task_pb2.StartRequest(id=name), task_pb2.StartResponse).pid

    def end(self, name: str) -> int:
        """Kill, wait, delete; the exit status."""
        self.call("Kill", task_pb2.KillRequest(id=name, signal=signal.SIGKILL, all=True), Empty)
        ended = self.call("Wait", task_pb2.WaitRequest(id=name), task_pb2.WaitResponse).exit_status
        self.call("Delete", task_pb2.DeleteRequest(id=name), task_pb2.DeleteResponse)
        return ended


@pytest.fixture
def containerd(roots: Roots) -> Iterator[Containerd]:
    root, state = roots.base / "containerd", roots.state / "containerd"
    for folder in (root, state):
        folder.mkdir()
    roots.write_config(
        f'[sandboxes]\ncontainerd_root = "{root}"\ncontainerd_state = "{state}"\nunstarted_timeout_s = 2.0\n'
    )
    name = f"{roots.prefix}ns"
    subprocess.run(["ip", "netns", "add", name], check=True)
    daemon = Daemon(roots)
    daemon.start()
    try:
        with sandbox_api(roots.socket) as api:
            yield Containerd(roots=roots, daemon=daemon, api=api)
        if not daemon.is_running():
            daemon.start()
        check = daemon.run("fsck")
        assert check.returncode == 0, check.stdout
        assert daemon.stop() == 0
    finally:
        daemon.kill()
        subprocess.run(["ip", "netns", "delete", name], check=True)


def is_unknown(containerd: Containerd, sandbox_id: str) -> bool:
    try:
        containerd.api.status(sandbox_id)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.NOT_FOUND
    return False


def nothing_is_left(containerd: Containerd, sandbox_id: str) -> bool:
    state = containerd.roots.state
    folders = [state / name / sandbox_id for name in ("pods", "shims")]
    return is_unknown(containerd, sandbox_id) and not any(map(os.path.lexists, folders + containerd.links(sandbox_id)))


def test_the_whole_life_of_a_pod_with_a_container(containerd: Containerd) -> None:
    api = containerd.api
    pod = containerd.create()
    started = api.start(pod)
    assert started.version == 3
    assert started.address.startswith("ttrpc+unix:///")
    assert started.labels["name"] == f"pod_{containerd.roots.prefix}"
    waiting = api.later("Wait", timeout=None, sandbox_id=pod)
    status = api.status(pod)
    assert (status.pid, status.state, status.address, status.version) == (started.pid, READY, started.address, 3)
    assert status.created_at == started.created_at
    assert status.created_at.seconds > 0
    assert api.platform(pod).os == "linux"
    assert os.stat(f"/proc/{status.pid}/ns/net").st_ino == os.stat(containerd.netns).st_ino

    tasks, name = containerd.tasks(status.address), f"{pod}-c1"
    script = "cat /etc/hostname /etc/resolv.conf /proc/sys/net/core/somaxconn; echo x >/dev/shm/y; exec sleep 600"
    out = tasks.create(name, status.pid, "sh", "-c", script)
    pid = tasks.start(name)
    assert wait_until(lambda: "77" in out.read_text(), within=WITHIN_S)
    assert out.read_text() == "pod\nnameserver 10.10.10.10\noptions ndots:8\n77\n"
    assert (containerd.links(pod)[1] / "shm" / "y").read_text() == "x\n"
    stats = tasks.call("Stats", task_pb2.StatsRequest(id=name), task_pb2.StatsResponse).stats
    assert stats.type_url.startswith("io.containerd.cgroups.")
    assert tasks.call("State", task_pb2.StateRequest(id=name), task_pb2.StateResponse).pid == pid
    assert tasks.end(name) == 137

    api.stop(pod)
    ended = waiting.result()
    assert ended.exited_at.seconds > 0
    assert api.status(pod).state == NOTREADY
    api.shutdown(pod)
    assert nothing_is_left(containerd, pod)


def test_a_restart_of_the_daemon_loses_nothing(containerd: Containerd) -> None:
    pod = containerd.create()
    before = containerd.api.start(pod)
    containerd.api.status(pod)
    containerd.daemon.kill()
    containerd.daemon.start()
    status = containerd.api.status(pod)
    assert (status.pid, status.address, status.version, status.state) == (before.pid, before.address, 3, READY)
    assert status.created_at == before.created_at
    name = f"{pod}-late"
    tasks = containerd.tasks(status.address)
    out = tasks.create(name, status.pid, "cat", "/etc/hostname")
    tasks.start(name)
    assert wait_until(lambda: out.read_text() == "pod\n", within=WITHIN_S)
    waiting = containerd.api.later("Wait", timeout=None, sandbox_id=pod)
    os.kill(status.pid, signal.SIGKILL)
    assert waiting.result().exit_status == 137
    # containerd takes the pod for not ready, so no Stop comes.
    containerd.api.shutdown(pod)
    assert nothing_is_left(containerd, pod)


def test_a_pod_that_is_never_started_is_freed(containerd: Containerd) -> None:
    pod = containerd.create()  # and then the pause image could not be pulled
    assert all(map(os.path.islink, containerd.links(pod)))
    assert wait_until(lambda: nothing_is_left(containerd, pod), within=WITHIN_S)


def test_a_pod_whose_start_nobody_heard_of_is_freed(containerd: Containerd) -> None:
    lost, known = containerd.create(), containerd.create()
    for pod in (known, lost):
        started = containerd.api.start(pod)
    containerd.daemon.kill()  # with the answer to the second start, say: then no Shutdown comes
    containerd.daemon.start()
    containerd.api.status(known)
    gone = containerd.links(lost)[0]
    assert wait_until(lambda: not os.path.lexists(gone), within=WITHIN_S)
    assert wait_until(lambda: nothing_is_left(containerd, lost), within=WITHIN_S)
    assert not Path(f"/proc/{started.pid}").exists()
    assert containerd.api.status(known).state == READY
    containerd.api.shutdown(known)


def test_a_create_whose_caller_gives_up_leaves_nothing(containerd: Containerd) -> None:
    sandbox_id = new_id()
    call = containerd.api.later(
        "Create",
        sandbox_id=sandbox_id,
        sandbox=containerd.api.record(sandbox_id),
        options=packed(containerd.config()),
        netns_path=containerd.netns,
    )
    call.cancel()
    assert wait_until(lambda: nothing_is_left(containerd, sandbox_id), within=WITHIN_S)


@pytest.mark.parametrize("binary", ["crun", "runc"])
def test_a_spec_of_a_newer_version_runs_in_any_runtime(containerd: Containerd, binary: str) -> None:
    pod = containerd.create()
    started = containerd.api.start(pod)
    tasks, name = containerd.tasks(started.address), f"{pod}-new"
    out = tasks.create(name, started.pid, "cat", "/etc/hostname", version="1.3.0", binary=binary)
    tasks.start(name)
    assert wait_until(lambda: out.read_text() == "pod\n", within=WITHIN_S)
    tasks.call("Wait", task_pb2.WaitRequest(id=name), task_pb2.WaitResponse)
    tasks.call("Delete", task_pb2.DeleteRequest(id=name), task_pb2.DeleteResponse)
    containerd.api.shutdown(pod)


@pytest.mark.parametrize("daemon_sees_it", [True, False])
def test_containers_end_with_the_shim_of_their_pod(containerd: Containerd, daemon_sees_it: bool) -> None:
    pod = containerd.create()
    started = containerd.api.start(pod)
    tasks, name = containerd.tasks(started.address), f"{pod}-c1"
    tasks.create(name, started.pid, "sleep", "600")
    pid = tasks.start(name)
    connected = tasks.call("Connect", task_pb2.ConnectRequest(id=name), task_pb2.ConnectResponse)
    waiting = containerd.api.later("Wait", timeout=None, sandbox_id=pod)
    if not daemon_sees_it:
        containerd.daemon.kill()
    os.kill(connected.shim_pid, signal.SIGKILL)
    if daemon_sees_it:
        assert waiting.result().exit_status == 255
    else:
        containerd.daemon.start()
        assert containerd.api.wait(pod).exit_status == 255
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists(), within=WITHIN_S), "an orphan goes on"
    assert containerd.api.status(pod).state == NOTREADY
    shutil.rmtree(tasks.bundle_of(name))  # containerd removes the container first
    containerd.api.shutdown(pod)
    assert nothing_is_left(containerd, pod)
    left = list(Path("/sys/fs/cgroup").glob(f"*/{containerd.roots.prefix}/kube/*"))
    assert not left, left
    runtimes = [Path("/run/atoll/oci/k8s.io", name), Path("/run/runc", name)]
    assert not any(path.exists() for path in runtimes), "the OCI runtime still knows it"
    other = subprocess.run(["crun", "--root", "/run/atoll/oci/k8s.io", "list"], check=False, capture_output=True)
    assert name.encode() not in other.stdout


def test_an_update_of_the_pods_resources(containerd: Containerd) -> None:
    """As UpdatePodSandboxResources sends it: no sandboxer in the request, the whole record, extensions alone."""
    pod = containerd.create()
    containerd.api.start(pod)
    record = types.Sandbox(sandbox_id=pod, sandboxer="atoll")
    resources = {"Overhead": {"cpu_shares": 3}, "Resources": {"memory_limit_in_bytes": 67108864}}
    record.extensions["updated-resources"].CopyFrom(
        AnyMessage(type_url="io.containerd.cri.v1/UpdatedResources", value=json.dumps(resources).encode())
    )
    containerd.api.update(record, "extensions")
    assert containerd.api.status(pod).state == READY
    containerd.api.shutdown(pod)
