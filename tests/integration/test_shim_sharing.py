"""Pods that share a shim process: apart in everything but that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri_pb2
from atoll.api.cri_runtime_v1_pb2 import (
    CONTAINER,
    POD,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceOption,
    PodSandboxConfig,
)
from atoll.linux import netns
from atoll.linux import process as processes
from atoll.shim import records
from atoll.shim.records import SandboxRecord, ShimRecord
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, eventually
from tests.integration.shim_pods import ShimUnderTest, ShimYard, open_yard

KINDS = ("net", "ipc", "uts", "pid")


@pytest.fixture
async def yard(roots: Roots) -> AsyncIterator[ShimYard]:
    yard, server = await open_yard(roots.base, roots.state, roots.prefix, "crun", pods_per_shim=4)
    async with server:
        try:
            yield yard
        finally:
            await yard.close()


@pytest.fixture
def networks(roots: Roots) -> Iterator[list[Path]]:
    folder = roots.state / "netns"
    paths = [folder / name for name in ("a", "b", "c")]
    for path in paths:
        netns.create(path)
    yield paths
    netns.remove_folder(folder)


def namespace(pid: int | str, kind: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def config(hostname: str, pid: cri_pb2.NamespaceMode = POD) -> PodSandboxConfig:
    linux = LinuxPodSandboxConfig(
        security_context=LinuxSandboxSecurityContext(namespace_options=NamespaceOption(pid=pid))
    )
    return PodSandboxConfig(hostname=hostname, linux=linux)


async def ready_pod(yard: ShimYard, hostname: str, network: Path) -> tuple[ShimUnderTest, int]:
    shim = await yard.shim()
    await shim.create_sandbox(config(hostname), netns=str(network))
    return shim, (await shim.start_sandbox()).pid


def holder(shim: ShimUnderTest) -> processes.ProcessId:
    record = records.read(shim.bundle / records.SANDBOX, SandboxRecord)
    assert record is not None
    assert record.holder is not None
    return record.holder


async def test_pods_of_one_process_have_nothing_else_in_common(yard: ShimYard, networks: list[Path]) -> None:
    (one, first), (two, second) = [await ready_pod(yard, f"pod-{path.name}", path) for path in networks[:2]]
    assert one.forked.pid == two.forked.pid
    assert len({namespace(pid, kind) for kind in KINDS for pid in (first, second, "self")}) == 3 * len(KINDS)
    assert {namespace(one.forked.pid, kind) for kind in KINDS} == {namespace("self", kind) for kind in KINDS}
    assert (holder(one).pid, holder(two).pid) == (first, second)
    name = await two.run("/bin/sleep", "600", pid_path=f"/proc/{second}/ns/pid")
    with pytest.raises(errors.NotFound):
        await one.state(name)
    await one.shutdown()
    await one.shim_ended()
    assert not Path(f"/proc/{first}").exists()
    assert (await two.status()).state == "SANDBOX_READY"
    assert (await two.state(name)).pid
    assert f" {two.id} " not in (one.bundle / "log").read_text()
    assert f" {one.id} " not in (two.bundle / "log").read_text()


async def test_the_end_of_a_holder_is_the_end_of_its_pod_alone(yard: ShimYard, networks: list[Path]) -> None:
    (one, first), (two, _) = [await ready_pod(yard, f"pod-{path.name}", path) for path in networks[:2]]
    os.kill(first, signal.SIGKILL)
    assert (await one.wait_sandbox()).exit_status == 137
    assert (await one.status()).state == "SANDBOX_NOTREADY"
    assert (await two.status()).state == "SANDBOX_READY"


async def test_a_chatty_container_does_not_keep_the_others_waiting(yard: ShimYard, networks: list[Path]) -> None:
    (loud, first), (calm, second) = [await ready_pod(yard, f"pod-{path.name}", path) for path in networks[:2]]
    name = loud.make_bundle("/bin/busybox", "yes")
    await loud.create(name, stdout=f"file://{os.devnull}", stderr="")
    await loud.start(name)
    quiet = await calm.run("/bin/sleep", "600", pid_path=f"/proc/{second}/ns/pid")
    assert first != second
    took: list[float] = []
    for number in range(5):
        await calm.exec(quiet, f"e{number}", "/bin/true")
        began = time.monotonic()
        await calm.start(quiet, f"e{number}")
        assert (await calm.wait(quiet, f"e{number}")).exit_status == 0
        took.append(time.monotonic() - began)
    assert min(took) < 0.2, "most of it is the OCI runtime's, on a machine that is busy with other things too"


async def test_programs_of_a_shared_process_keep_the_usual_descriptor_limit(
    yard: ShimYard, networks: list[Path]
) -> None:
    shim, pid = await ready_pod(yard, "limits", networks[0])
    name = await shim.run("/bin/sh", "-c", "ulimit -n", pid_path=f"/proc/{pid}/ns/pid")
    await shim.wait(name)
    limits = Path(f"/proc/{yard.zygote.pid}/limits").read_text().splitlines()
    usual = next(line.split()[3] for line in limits if line.startswith("Max open files"))
    assert shim.output(name).strip() == usual


def shim_pid(roots: Roots, pod: str) -> int:
    (path,) = roots.state.rglob(f"{pod}/{records.SHIM}")
    record = records.read(path, ShimRecord)
    assert record is not None
    return record.pid


def shared(cri: CRI, own_pids: bool = False) -> str:
    wanted = cri.pod_config()
    wanted.linux.security_context.namespace_options.pid = POD if own_pids else CONTAINER
    return cri.run_pod(wanted)


def test_a_killed_process_ends_every_pod_of_it_and_each_can_be_removed(cri: CRI, roots: Roots) -> None:
    pods = [shared(cri), shared(cri), shared(cri, own_pids=True)]
    containers = [cri.script(pod, "sleep 1000") for pod in pods]
    holders = [cri.pod_info(pod)["pid"] for pod in pods]
    (process,) = {shim_pid(roots, pod) for pod in pods}
    os.kill(process, signal.SIGKILL)
    for pod in pods:
        eventually(lambda pod=pod: cri.pod_status(pod).state == cri_pb2.SANDBOX_NOTREADY, "the pod is not ready")
    for pod, container in zip(pods, containers, strict=True):
        cri.stop(container)
        assert cri.status(container).state == cri_pb2.CONTAINER_EXITED
        cri.stop_pod(pod)
        cri.remove_pod(pod)
    assert cri.list_pods() == []
    assert not [pid for pid in holders if Path(f"/proc/{pid}/ns/net").exists()]
    assert cri.fsck() == []
    again = shared(cri)
    assert cri.sh(cri.script(again, "sleep 1000"), "echo here").strip() == "here"


def test_a_restarted_daemon_finds_the_pods_of_a_shared_process(cri: CRI, daemon: Daemon, roots: Roots) -> None:
    pods = [shared(cri), shared(cri, own_pids=True)]
    containers = [cri.script(pod, "sleep 1000") for pod in pods]
    (process,) = {shim_pid(roots, pod) for pod in pods}
    daemon.kill()
    daemon.start()
    for pod, container in zip(pods, containers, strict=True):
        eventually(lambda pod=pod: cri.pod_status(pod).state == cri_pb2.SANDBOX_READY, "the pod is found")
        assert shim_pid(roots, pod) == process
        assert cri.sh(container, "echo here").strip() == "here"
    new = shared(cri)
    assert shim_pid(roots, new) != process, "what lived before the daemon gets no new pods"
    for pod in pods:
        cri.remove_pod(pod)
    eventually(lambda: not Path(f"/proc/{process}/exe").exists(), "it ends with its last pod")
    assert cri.fsck() == []
