"""The Sandbox service of our shim: real namespaces, files, sysctls and cgroups."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.api import containerd_runtime_sandbox_v1_pb2 as pb
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.api.cri_runtime_v1_pb2 import (
    CONTAINER,
    NODE,
    POD,
    LinuxContainerResources,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    UserNamespace,
)
from atoll.linux import cgroup_layout, netns
from atoll.linux.cgroup import Cgroup
from atoll.sandbox.config import LinuxPodConfig
from atoll.shim import records
from atoll.shim.pod_cgroup import PodCgroup
from atoll.shim.records import SandboxRecord
from tests.integration.conftest import Roots
from tests.integration.shim_pods import ShimUnderTest, ShimYard, open_yard


@pytest.fixture
async def yard(roots: Roots) -> AsyncIterator[ShimYard]:
    yard, server = await open_yard(roots.base, roots.state, roots.prefix, "crun")
    async with server:
        try:
            yield yard
        finally:
            await yard.close()


@pytest.fixture
async def shim(yard: ShimYard) -> ShimUnderTest:
    return await yard.shim()


@pytest.fixture
def network(roots: Roots) -> Iterator[Path]:
    folder = roots.state / "netns"
    path = folder / "pod"
    netns.create(path)
    yield path
    netns.remove_folder(folder)


def namespace(pid: int | str, kind: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def modes(*, network: NamespaceMode = POD, ipc: NamespaceMode = POD, pid: NamespaceMode = POD) -> LinuxPodSandboxConfig:
    options = NamespaceOption(network=network, ipc=ipc, pid=pid)
    return LinuxPodSandboxConfig(security_context=LinuxSandboxSecurityContext(namespace_options=options))


def inside(pid: int, *argv: str) -> str:
    """What a program says in the pod's namespaces."""
    command = ["nsenter", f"--target={pid}", "--net", "--uts", "--ipc", *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def assert_holds_nothing(pid: int) -> None:
    """A pod's holder is small and of no use to whoever gets hold of it."""
    assert os.listdir(f"/proc/{pid}/root") == []
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")] == []
    status = Path(f"/proc/{pid}/status").read_text()
    assert "CapPrm:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Uid:\t65535\t65535\t65535\t65535\n" in status
    assert "Groups:\t \n" in status
    assert os.getsid(pid) in (pid, 0)
    assert Path(f"/proc/{pid}/comm").read_text() == "pause\n"
    resident = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if "Rss" in line)
    assert int(resident.split()[1]) <= 64


async def test_a_small_process_holds_the_namespaces_and_stands_for_the_pod(shim: ShimUnderTest, network: Path) -> None:
    config = PodSandboxConfig(hostname="pod-one", linux=modes(pid=CONTAINER))
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    config.linux.sysctls["net.ipv4.ip_forward"] = "1"
    config.dns_config.servers.append("10.0.0.10")
    config.dns_config.searches.append("a.example")
    await shim.create_sandbox(config, netns=str(network))
    assert (await shim.status()).state == "SANDBOX_NOTREADY"
    answer = await shim.start_sandbox()
    pid = answer.pid
    assert pid != shim.forked.pid
    assert namespace(pid, "net") == network.stat().st_ino
    assert namespace(pid, "ipc") != namespace("self", "ipc")
    assert namespace(pid, "uts") != namespace("self", "uts")
    assert namespace(pid, "pid") == namespace("self", "pid")
    assert_holds_nothing(pid)
    for kind in ("net", "ipc", "uts"):
        assert namespace(shim.forked.pid, kind) == namespace("self", kind)
    assert inside(pid, "hostname") == "pod-one"
    for name, value in (
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0\t2147483647"),
    ):
        assert inside(pid, "sysctl", "-n", name) == value
    files = shim.bundle / "files"
    assert (files / "hostname").read_text() == "pod-one\n"
    assert (files / "hosts").read_bytes() == Path("/etc/hosts").read_bytes()
    assert (files / "resolv.conf").read_text() == "search a.example\nnameserver 10.0.0.10\n"
    shm = os.statvfs(files / "shm")
    assert shm.f_blocks * shm.f_frsize == 64 << 20
    assert (files / "shm").stat().st_mode & 0o7777 == 0o1777
    status = await shim.status(verbose=True)
    assert (status.state, status.pid, status.created_at) == ("SANDBOX_READY", pid, answer.created_at)
    assert json.loads(status.info["info"])["netns"] == str(network)
    assert json.loads(answer.spec.value)["linux"]["namespaces"][0] == {"type": "network", "path": str(network)}
    await shim.shutdown()
    await shim.shim_ended()
    assert not files.exists()
    assert not (shim.bundle / records.SANDBOX).exists()


async def test_a_pod_of_host_namespaces_makes_none(shim: ShimUnderTest) -> None:
    await shim.create_sandbox(PodSandboxConfig(linux=modes(network=NODE, ipc=NODE, pid=NODE)))
    pid = (await shim.start_sandbox()).pid
    assert pid != shim.forked.pid
    for kind in ("net", "ipc", "uts", "pid"):
        assert namespace(pid, kind) == namespace("self", kind)
    assert (shim.bundle / "files/hostname").read_text().strip() == socket.gethostname()
    assert not (shim.bundle / "files/shm").exists()


async def test_a_shared_pid_namespace_has_a_small_init_that_reaps(shim: ShimUnderTest, network: Path) -> None:
    await shim.create_sandbox(PodSandboxConfig(), netns=str(network))
    pid = (await shim.start_sandbox()).pid
    assert pid != shim.forked.pid
    assert namespace(pid, "pid") != namespace("self", "pid")
    assert namespace(pid, "net") == network.stat().st_ino
    for kind in ("ipc", "uts"):
        assert namespace(pid, kind) != namespace("self", kind)
    assert_holds_nothing(pid)
    script = "(sleep 0.1 & exec true) & sleep 0.6; ps -o pid,ppid,stat,comm"
    name = await shim.run("/bin/sh", "-c", script, pid_path=f"/proc/{pid}/ns/pid")
    await shim.wait(name)
    lines = shim.output(name).splitlines()
    assert lines[1].split()[:2] == ["1", "0"]
    assert not [line for line in lines if " Z " in line]


async def test_what_a_container_leaves_in_a_shared_pid_namespace_ends_with_it(yard: ShimYard, network: Path) -> None:
    shim = await yard.shim(events=True)
    await shim.create_sandbox(PodSandboxConfig(), netns=str(network))
    pid = (await shim.start_sandbox()).pid
    name = await shim.run("/bin/sh", "-c", "sleep 600 & sleep 600 & sleep 0.5", pid_path=f"/proc/{pid}/ns/pid")
    await shim.exec(name, "e", "/bin/sleep", "600")
    await shim.start(name, "e")
    assert (await shim.wait(name)).exit_status == 0
    assert (await shim.wait(name, "e")).exit_status == 137
    assert len(os.listdir(f"/proc/{pid}/task")) == 1
    ended = (await shim.call("State", task_pb2.StateRequest(id=name), task_pb2.StateResponse)).pid
    left: list[int] = []
    for _ in range(100):  # they are killed; a busy kernel takes its time to let them go
        found = await shim.call("Pids", task_pb2.PidsRequest(id=name), task_pb2.PidsResponse)
        left = [process.pid for process in found.processes]
        if left == [ended]:
            break
        await asyncio.sleep(0.02)
    assert left == [ended], "what has ended lists its init, for a containerd that starts"
    await shim.delete(name)
    await yard.sink.until("/tasks/delete")
    exits = [envelope for envelope in yard.sink.envelopes if envelope.topic == "/tasks/exit"]
    assert name.encode() in exits[-1].event.value
    assert b"\x12\x01e" not in exits[-1].event.value


async def test_calls_may_be_repeated(shim: ShimUnderTest, network: Path) -> None:
    config = PodSandboxConfig(hostname="again")
    await shim.create_sandbox(config, netns=str(network))
    await shim.create_sandbox(config, netns=str(network))
    with pytest.raises(errors.AlreadyExists):
        await shim.create_sandbox(PodSandboxConfig(hostname="other"), netns=str(network))
    first = await shim.start_sandbox()
    assert await shim.start_sandbox() == first
    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(shim.wait_sandbox()) for _ in range(5)]
        await shim.stop_sandbox()
        await shim.stop_sandbox()
    ended = [waiter.result() for waiter in waiters]
    assert ended == [ended[0]] * 5
    assert await shim.wait_sandbox() == ended[0]
    status = await shim.status()
    assert (status.state, status.pid, status.exited_at) == ("SANDBOX_NOTREADY", 0, ended[0].exited_at)
    record = records.read(shim.bundle / records.SANDBOX, SandboxRecord)
    assert record is not None
    assert record.exit is not None
    assert record.exit.exited_at_ns == ended[0].exited_at.ToNanoseconds()
    with pytest.raises(errors.FailedPrecondition):
        await shim.start_sandbox()


async def test_unknown_sandboxes(shim: ShimUnderTest) -> None:
    with pytest.raises(errors.NotFound):
        await shim.status()
    with pytest.raises(errors.NotFound):
        await shim.start_sandbox()
    with pytest.raises(errors.InvalidArgument):
        await shim.call(
            "CreateSandbox",
            pb.CreateSandboxRequest(sandbox_id="other", bundle_path="/tmp"),
            pb.CreateSandboxResponse,
        )


@pytest.mark.parametrize(
    ("config", "kind", "text"),
    [
        (
            PodSandboxConfig(linux=LinuxPodSandboxConfig(sysctls={"kernel.panic": "1"})),
            errors.InvalidArgument,
            "kernel.panic",
        ),
        (PodSandboxConfig(linux=LinuxPodSandboxConfig(sysctls={"net.none": "1"})), errors.InvalidArgument, "net.none"),
        (PodSandboxConfig(linux=LinuxPodSandboxConfig(cgroup_parent="/../up")), errors.InvalidArgument, "cgroup"),
        (PodSandboxConfig(hostname="x" * 65), errors.InvalidArgument, "hostname"),
        (
            PodSandboxConfig(
                linux=LinuxPodSandboxConfig(
                    security_context=LinuxSandboxSecurityContext(
                        namespace_options=NamespaceOption(userns_options=UserNamespace())
                    )
                )
            ),
            errors.InvalidArgument,
            "needs 1 to 340 ranges",
        ),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_nothing(
    shim: ShimUnderTest, network: Path, config: PodSandboxConfig, kind: type[errors.AtollError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        await shim.create_sandbox(config, netns=str(network))
    assert not (shim.bundle / "files").exists()
    assert not (shim.bundle / records.SANDBOX).exists()


async def test_after_a_refusal_another_pod_may_be_asked_for(shim: ShimUnderTest, network: Path) -> None:
    bad = PodSandboxConfig(linux=LinuxPodSandboxConfig(sysctls={"kernel.panic": "1"}))
    with pytest.raises(errors.InvalidArgument):
        await shim.create_sandbox(bad, netns=str(network))
    await shim.create_sandbox(PodSandboxConfig(), netns=str(network))
    assert (await shim.start_sandbox()).pid


async def test_a_missing_network_namespace_is_named(shim: ShimUnderTest) -> None:
    config = PodSandboxConfig(linux=LinuxPodSandboxConfig(cgroup_parent=f"/{shim.prefix}"))
    with pytest.raises(errors.AtollError, match="/run/none"):
        await shim.create_sandbox(config, netns="/run/none")
    assert not (shim.bundle / "files").exists()
    assert not Cgroup(f"/{shim.prefix}", cgroup_layout.detect()).exists()


async def test_the_cgroup_is_made_with_limits_and_removed(shim: ShimUnderTest, network: Path) -> None:
    linux = LinuxPodSandboxConfig(
        cgroup_parent=f"/{shim.prefix}/pod",
        resources=LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512),
        overhead=LinuxContainerResources(memory_limit_in_bytes=16 << 20),
    )
    await shim.create_sandbox(PodSandboxConfig(linux=linux), netns=str(network))
    await shim.start_sandbox()
    cgroup = Cgroup(f"/{shim.prefix}/pod", cgroup_layout.detect())
    folder = cgroup.folder("memory")
    assert folder is not None
    name = "memory.max" if cgroup.is_v2 else "memory.limit_in_bytes"
    assert int((folder / name).read_text()) == 80 << 20
    request = pb.SandboxMetricsRequest(sandbox_id=shim.id)
    metrics = (await shim.call("SandboxMetrics", request, pb.SandboxMetricsResponse)).metrics
    assert metrics.id == shim.id
    assert metrics.data.type_url.startswith("io.containerd.cgroups.v")
    container = await shim.run("/bin/sleep", "600", cgroup=f"/{shim.prefix}/pod/c")
    shim.containers.remove(container)
    await shim.shutdown()
    assert not cgroup.exists()


async def test_a_cgroup_that_another_pod_made_goes_with_the_last_one(shim: ShimUnderTest, network: Path) -> None:
    linux = LinuxPodSandboxConfig(cgroup_parent=f"/{shim.prefix}/pods")
    other = PodCgroup(linux.cgroup_parent, exclusive=False)
    other.create(LinuxPodConfig(cgroup_parent=linux.cgroup_parent))
    assert other.is_made
    await shim.create_sandbox(PodSandboxConfig(linux=linux), netns=str(network))
    await shim.start_sandbox()
    await shim.shutdown()  # here it is the last one
    assert not other.exists()


async def test_a_cgroup_of_others_is_left_alone(shim: ShimUnderTest, network: Path) -> None:
    parent = Cgroup(f"/{shim.prefix}", cgroup_layout.detect())
    parent.create()
    linux = LinuxPodSandboxConfig(cgroup_parent=parent.path)
    await shim.create_sandbox(PodSandboxConfig(linux=linux), netns=str(network))
    await shim.start_sandbox()
    await shim.shutdown()
    assert parent.exists()


async def test_stop_asks_first_and_then_kills(shim: ShimUnderTest, network: Path) -> None:
    await shim.create_sandbox(PodSandboxConfig(linux=modes(pid=CONTAINER)), netns=str(network))
    await shim.start_sandbox()
    polite = await shim.run("/bin/sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done")
    stubborn = await shim.run("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
    await asyncio.sleep(0.2)
    await shim.stop_sandbox(timeout_s=1)
    assert (await shim.wait(polite)).exit_status == 5
    assert (await shim.wait(stubborn)).exit_status == 137


async def test_a_stopped_pod_holds_no_network(shim: ShimUnderTest, network: Path) -> None:
    await shim.create_sandbox(PodSandboxConfig(linux=modes(pid=CONTAINER)), netns=str(network))
    pid = (await shim.start_sandbox()).pid
    assert namespace(pid, "net") == os.stat(network).st_ino
    await shim.stop_sandbox(timeout_s=0)
    assert not Path(f"/proc/{pid}").exists()


async def test_the_end_of_its_init_is_the_end_of_the_pod(shim: ShimUnderTest, network: Path) -> None:
    await shim.create_sandbox(PodSandboxConfig(), netns=str(network))
    pid = (await shim.start_sandbox()).pid
    name = await shim.run("/bin/sleep", "600", pid_path=f"/proc/{pid}/ns/pid")
    os.kill(pid, signal.SIGTERM)
    assert (await shim.status()).state == "SANDBOX_READY"
    os.kill(pid, signal.SIGKILL)
    assert (await shim.wait_sandbox()).exit_status == 137
    assert (await shim.wait(name)).exit_status == 137
    assert (await shim.status()).state == "SANDBOX_NOTREADY"


async def test_shutdown_takes_running_containers_with_it(shim: ShimUnderTest, network: Path) -> None:
    await shim.create_sandbox(PodSandboxConfig(linux=modes(pid=CONTAINER)), netns=str(network))
    await shim.start_sandbox()
    name = await shim.run("/bin/sleep", "600")
    shim.containers.remove(name)
    pid = (await shim.state(name)).pid
    await shim.shutdown()
    await shim.shim_ended()
    assert not Path(f"/proc/{pid}").exists()
    assert not shim.socket.exists()


async def test_platform_and_ping(shim: ShimUnderTest, network: Path) -> None:
    await shim.create_sandbox(PodSandboxConfig(), netns=str(network))
    platform = await shim.call("Platform", pb.PlatformRequest(sandbox_id=shim.id), pb.PlatformResponse)
    assert platform.platform.os == "linux"
    await shim.call("PingSandbox", pb.PingRequest(sandbox_id=shim.id), pb.PingResponse)
    with pytest.raises(errors.NotFound):
        await shim.call("PingSandbox", pb.PingRequest(sandbox_id="other"), pb.PingResponse)
