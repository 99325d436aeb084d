"""Pause, resume and update of a whole pod by our shim: real freezers, real limits, both OCI runtimes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.api import containerd_cgroups_v1_pb2 as v1_pb2
from atoll.api import containerd_cgroups_v2_pb2 as v2_pb2
from atoll.api import containerd_runtime_sandbox_v1_pb2 as sandbox_pb2
from atoll.api import containerd_task_v3_pb2 as pb
from atoll.api.cri_runtime_v1_pb2 import (
    CONTAINER,
    NODE,
    POD,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceOption,
    PodSandboxConfig,
)
from atoll.linux import cgroup_layout, freezer, process
from atoll.linux.cgroup import Cgroup
from atoll.runtime.own import OwnClient
from tests.integration.conftest import Roots
from tests.integration.leaks import read, wait_until
from tests.integration.shim_pods import ShimUnderTest, ShimYard, open_yard

COUNTING = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"
PAUSED, RUNNING = 4, 2


@pytest.fixture(params=["crun", "runc"])
async def yard(request: pytest.FixtureRequest, roots: Roots) -> AsyncIterator[ShimYard]:
    yard, server = await open_yard(roots.base, roots.state, roots.prefix, request.param)
    async with server:
        try:
            yield yard
        finally:
            await yard.close()


@pytest.fixture
async def shim(yard: ShimYard) -> ShimUnderTest:
    """A pod on the host's network, with a cgroup of its own and a pid namespace."""
    shim = await yard.shim()
    await shim.create_sandbox(pod(), cgroup=f"/{yard.prefix}/{shim.id}")
    await shim.start_sandbox()
    return shim


def pod(*, pid: int = POD) -> PodSandboxConfig:
    spaces = NamespaceOption(network=NODE, pid=pid)  # type: ignore[arg-type]  # an enum's value
    security = LinuxSandboxSecurityContext(namespace_options=spaces)
    return PodSandboxConfig(metadata={"name": "paused"}, linux=LinuxPodSandboxConfig(security_context=security))


def own(shim: ShimUnderTest) -> OwnClient:
    return OwnClient(shim.client)


async def counting(shim: ShimUnderTest, cgroup: str = "") -> str:
    """A container that counts; `cgroup` where it is not below the pod's."""
    info = await told(shim)
    name = f"{shim.prefix}-count{len(shim.containers)}"
    path = cgroup or f"{info['cgroup']}/{name}"
    pid = f"/proc/{info['pid']}/ns/pid"
    return await shim.run("/bin/sh", "-c", COUNTING, cgroup=path, pid_path=pid)


async def told(shim: ShimUnderTest) -> dict[str, object]:
    return json.loads((await shim.status(verbose=True)).info["info"])


async def grows(shim: ShimUnderTest, name: str, within_s: float = 5.0) -> bool:
    """Whether the container goes on writing."""
    before = len(shim.output(name))
    deadline = time.monotonic() + within_s
    while len(shim.output(name)) == before:
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def stands(shim: ShimUnderTest, name: str) -> bool:
    return not await grows(shim, name, 0.3)


async def members(shim: ShimUnderTest, name: str) -> list[int]:
    return [entry.pid for entry in (await shim.call("Pids", pb.PidsRequest(id=name), pb.PidsResponse)).processes]


def is_frozen(pid: int) -> bool:
    """By the freezer of the process's cgroup, without changing anything, or by its own state."""
    seen = process.stat(pid)
    if seen is None or seen.state == "T":
        return True
    mounts = cgroup_layout.detect()
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            state = mounts.v1["freezer"] / path[1:] / freezer.V1_STATE
            return state.exists() and state.read_text().strip() == "FROZEN"
    return "frozen 1" in (mounts.unified / path[1:] / "cgroup.events").read_text()  # type: ignore[operator]


async def test_every_process_stands_wherever_its_cgroup_is(shim: ShimUnderTest) -> None:
    below = await counting(shim)
    beside = await counting(shim, cgroup=f"/{shim.prefix}/elsewhere")
    await shim.exec(below, "more", "/bin/sleep", "1000")
    await shim.start(below, "more")
    assert [await grows(shim, name) for name in (below, beside)] == [True, True]
    await own(shim).pause()
    pids = [*await members(shim, below), *await members(shim, beside), int(str((await told(shim))["pid"]))]
    assert len(pids) >= 4
    assert [pid for pid in pids if not is_frozen(pid)] == []
    assert [await stands(shim, name) for name in (below, beside)] == [True, True]
    status = await shim.status(verbose=True)
    assert (status.state, json.loads(status.info["info"])["processStatus"]) == ("SANDBOX_READY", "paused")
    assert {(await shim.state(name)).status for name in (below, beside)} == {PAUSED}
    await own(shim).pause()
    await own(shim).resume()
    await own(shim).resume()
    assert [await grows(shim, name) for name in (below, beside)] == [True, True]
    assert [pid for pid in pids if process.stat(pid) is not None and is_frozen(pid)] == []
    assert {(await shim.state(name)).status for name in (below, beside)} == {RUNNING}
    assert (await told(shim))["processStatus"] == "running"


async def test_a_container_that_was_paused_by_itself_stays_paused(shim: ShimUnderTest) -> None:
    alone, other = await counting(shim), await counting(shim)
    await shim.call("Pause", pb.PauseRequest(id=alone), Empty)
    await own(shim).pause()
    await own(shim).resume()
    assert await grows(shim, other)
    assert await stands(shim, alone)
    await shim.call("Resume", pb.ResumeRequest(id=alone), Empty)
    assert await grows(shim, alone)


async def test_what_adds_processes_says_that_the_pod_is_paused(shim: ShimUnderTest) -> None:
    running = await counting(shim)
    await shim.exec(running, "added", "/bin/true")
    fresh = shim.make_bundle("/bin/true")
    await own(shim).pause()
    for work in (
        shim.create(fresh),
        shim.exec(running, "late", "/bin/true"),
        shim.start(running, "added"),
        shim.call("Pause", pb.PauseRequest(id=running), Empty),
        shim.call("Resume", pb.ResumeRequest(id=running), Empty),
        shim.call("Checkpoint", pb.CheckpointTaskRequest(id=running, path="/nowhere"), Empty),
    ):
        with pytest.raises(errors.FailedPrecondition, match="is paused"):
            await work
    stats = await shim.call("Stats", pb.StatsRequest(id=running), pb.StatsResponse)
    assert stats.stats.type_url
    await own(shim).resume()
    await shim.start(running, "added")
    assert (await shim.wait(running, "added")).exit_status == 0
    await shim.create(fresh)
    await shim.start(fresh)
    assert (await shim.wait(fresh)).exit_status == 0


async def test_sigkill_of_one_container_ends_that_one_and_no_other_goes_on(shim: ShimUnderTest) -> None:
    doomed, other = await counting(shim), await counting(shim)
    await own(shim).pause()
    async with asyncio.timeout(10):
        await shim.kill(doomed, 9)
        assert (await shim.wait(doomed)).exit_status == 137
        await shim.delete(doomed)
    assert await stands(shim, other)
    await own(shim).resume()
    assert await grows(shim, other)


async def test_sigkill_of_an_exec_ends_it_and_its_container_stands_again(shim: ShimUnderTest) -> None:
    name = await counting(shim)
    await shim.exec(name, "more", "/bin/sleep", "1000")
    await shim.start(name, "more")
    await own(shim).pause()
    async with asyncio.timeout(10):
        await shim.kill(name, 9, "more")
        assert (await shim.wait(name, "more")).exit_status == 137
    assert await stands(shim, name)
    await own(shim).resume()


async def test_a_created_container_can_be_deleted_in_a_paused_pod(shim: ShimUnderTest) -> None:
    name = shim.make_bundle("/bin/true")
    await shim.create(name)
    await own(shim).pause()
    async with asyncio.timeout(10):
        await shim.delete(name)
    await own(shim).resume()


@pytest.mark.parametrize("timeout_s", [0, 5])
async def test_a_paused_pod_is_stopped_and_its_containers_hear_of_it(shim: ShimUnderTest, timeout_s: int) -> None:
    script = "trap 'echo bye; exit 3' TERM; while true; do sleep 0.02; done"
    info = await told(shim)
    polite = await shim.run(
        "/bin/sh", "-c", script, cgroup=f"{info['cgroup']}/polite", pid_path=f"/proc/{info['pid']}/ns/pid"
    )
    await asyncio.sleep(0.2)
    await own(shim).pause()
    async with asyncio.timeout(10):
        await shim.stop_sandbox(timeout_s)
        ended = await shim.wait(polite)
    assert (ended.exit_status, shim.output(polite)) == ((3, "bye\n") if timeout_s else (137, ""))
    assert (await shim.status()).state == "SANDBOX_NOTREADY"
    with pytest.raises(errors.FailedPrecondition):
        await own(shim).resume()


async def test_a_paused_pod_is_shut_down(shim: ShimUnderTest, yard: ShimYard) -> None:
    await counting(shim)
    await own(shim).pause()
    async with asyncio.timeout(10):
        await shim.shutdown()
        await shim.shim_ended()
    assert not Cgroup(f"/{yard.prefix}/{shim.id}", cgroup_layout.detect()).exists()


async def delete(shim_id: str, bundle: Path) -> None:
    """The shim's `delete`, in a process of its own: it becomes the parent of what it ends."""
    words = ["-m", "atoll.shim.main", "-namespace", "test", "-id", shim_id, "-bundle", str(bundle), "delete"]
    done = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.DEVNULL)
    assert await done.wait() == 0


async def test_a_paused_pod_whose_shim_is_dropped_is_freed(shim: ShimUnderTest, yard: ShimYard) -> None:
    name = await counting(shim)
    pids = await members(shim, name)
    await own(shim).pause()
    await shim.client.call("atoll.host.v1.Host", "End", Empty(), Empty)
    await shim.client.closed
    async with asyncio.timeout(20):
        await delete(name, shim.bundle_of(name))
        await delete(shim.id, shim.bundle)
    assert [pid for pid in pids if (seen := process.stat(pid)) is not None and seen.state != "Z"] == []
    shim.containers.clear()


def ignores_term(pid: int) -> bool:
    ignored = re.search(rb"^SigIgn:\s+(\w+)", read(pid, "status"), re.MULTILINE)
    return ignored is not None and bool(int(ignored[1], 16) & 1 << (signal.SIGTERM - 1))


async def test_a_shorter_stop_and_a_shutdown_overtake_a_polite_one(shim: ShimUnderTest) -> None:
    info = await told(shim)
    deaf = await shim.run(
        "/bin/sh",
        "-c",
        "trap '' TERM; while true; do sleep 0.05; done",
        cgroup=f"{info['cgroup']}/deaf",
        pid_path=f"/proc/{info['pid']}/ns/pid",
    )
    pid = (await shim.state(deaf)).pid
    assert await asyncio.to_thread(wait_until, lambda: ignores_term(pid)), "the trap is set"
    began = time.monotonic()
    slow = asyncio.ensure_future(shim.stop_sandbox(20))  # noqa: RUF100, TID251  two calls at once
    await asyncio.sleep(0.3)
    assert not slow.done()
    await shim.stop_sandbox(1)
    await slow
    assert 1 <= time.monotonic() - began < 10
    assert (await shim.wait(deaf)).exit_status == 137


async def test_pause_needs_a_running_pod(yard: ShimYard) -> None:
    shim = await yard.shim()
    await shim.create_sandbox(pod(pid=CONTAINER))
    for work in (own(shim).pause, own(shim).resume):
        with pytest.raises(errors.FailedPrecondition):
            await work()
    await shim.start_sandbox()
    await own(shim).pause()
    await shim.stop_sandbox()
    for work in (own(shim).pause, own(shim).resume):
        with pytest.raises(errors.FailedPrecondition):
            await work()


async def test_a_shim_without_a_pod_pauses_its_containers(yard: ShimYard) -> None:
    shim = await yard.shim()
    name = await shim.run("/bin/sh", "-c", COUNTING)
    await own(shim).pause()
    assert await stands(shim, name)
    info = await shim.client.call("atoll.shim.v1.Shim", "Info", own_pb2.InfoRequest(), own_pb2.InfoResponse)
    assert info.paused
    await own(shim).resume()
    assert await grows(shim, name)


# updates


def limit(shim: ShimUnderTest, controller: str, v1: str, v2: str) -> str:
    group = Cgroup(f"/{shim.prefix}/{shim.id}", cgroup_layout.detect())
    folder = group.folder(controller)
    assert folder is not None
    return (folder / (v2 if group.is_v2 else v1)).read_text().strip()


def memory(shim: ShimUnderTest) -> str:
    return limit(shim, "memory", "memory.limit_in_bytes", "memory.max")


def shares(shim: ShimUnderTest) -> str:
    return limit(shim, "cpu", "cpu.shares", "cpu.weight")


async def update(shim: ShimUnderTest, **changes: object) -> None:
    given = {key: json.dumps(value).encode() for key, value in changes.items()}
    await own(shim).update(
        resources=given.get("resources", b""),
        updated=given.get("updated", b""),
        annotations={"at": "1"},
        removed=(),
        all_annotations=False,
    )


async def test_limits_reach_the_cgroup_and_the_status(shim: ShimUnderTest) -> None:
    cpu = {"shares": 512, "quota": 20000, "period": 100000}
    await update(shim, resources={"cpu": cpu, "memory": {"limit": 64 << 20}, "pids": {"limit": 77}})
    assert (memory(shim), limit(shim, "pids", "pids.max", "pids.max")) == (str(64 << 20), "77")
    assert shares(shim) in ("512", "20")
    assert limit(shim, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "20000"
    overhead, resources = {"memory_limit_in_bytes": 1 << 20}, {"memory_limit_in_bytes": 32 << 20}
    await update(shim, updated={"Overhead": overhead, "Resources": resources})
    assert memory(shim) == str(33 << 20)
    info = await told(shim)
    assert info["overhead"] == overhead
    assert info["resources"] == {"memory_limit_in_bytes": 32 << 20, "cpu_shares": 512, "cpu_quota": 20000} | {
        "cpu_period": 100000
    }
    assert info["annotations"] == {"at": "1"}


async def test_a_refused_limit_changes_nothing(shim: ShimUnderTest) -> None:
    await update(shim, resources={"cpu": {"shares": 512}, "memory": {"limit": 64 << 20}})
    before = (memory(shim), shares(shim), await told(shim))
    with pytest.raises(errors.InvalidArgument):
        await update(shim, resources={"cpu": {"shares": 100, "cpus": "900-901"}, "memory": {"limit": 32 << 20}})
    assert (memory(shim), shares(shim), await told(shim)) == before


async def test_a_pod_without_a_cgroup_cannot_be_limited(yard: ShimYard) -> None:
    shim = await yard.shim()
    await shim.create_sandbox(pod())
    await shim.start_sandbox()
    with pytest.raises(errors.FailedPrecondition, match="no cgroup"):
        await update(shim, resources={"memory": {"limit": 64 << 20}})
    await update(shim)
    assert (await told(shim))["annotations"] == {"at": "1"}


async def test_metrics_are_of_the_whole_pod(shim: ShimUnderTest, yard: ShimYard) -> None:
    """With a cgroup of the pod, and as the sum of its containers' without."""
    bare = await yard.shim()
    await bare.create_sandbox(pod())
    await bare.start_sandbox()
    for one in (shim, bare):
        for number in range(2):
            await counting(one, cgroup="" if one is shim else f"/{yard.prefix}/bare/{number}")
        request = sandbox_pb2.SandboxMetricsRequest(sandbox_id=one.id)
        answer = await one.call("SandboxMetrics", request, sandbox_pb2.SandboxMetricsResponse)
        data = answer.metrics.data
        total = v1_pb2.Metrics() if data.type_url.endswith("v1.Metrics") else v2_pb2.Metrics()
        total.ParseFromString(data.value)
        assert answer.metrics.id == one.id
        assert total.pids.current >= 2
