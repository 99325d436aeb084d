"""Pause, resume, update, metrics and status of every sandboxer over shims, with containers and across restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from atoll import errors
from atoll.api import containerd_cgroups_v1_pb2 as v1_pb2
from atoll.api import containerd_cgroups_v2_pb2 as v2_pb2
from atoll.linux import cgroup_layout, process
from atoll.linux.cgroup import Cgroup
from atoll.oci import spec as oci
from atoll.oci.config import NamespaceMode
from atoll.runtime.bootstrap import FILE, Bootstrap
from atoll.runtime.shim import Shim
from atoll.runtime.task import StdioPaths
from atoll.sandbox.controller import ControllerInstance, Sandbox, SandboxInfo, State, TypedAny
from atoll.sandboxers.podsandbox import PodSandboxController
from atoll.sandboxers.shim import ShimController
from atoll.sandboxers.update import SPEC_URL
from atoll.shim import records
from tests.conformance.controllers import ATOLL, RUNC, Real, options_of, pod, real
from tests.integration.conftest import Roots
from tests.integration.shim_pods import APPLETS

WITHIN_S = 20.0
KINDS = ("shim", f"podsandbox-{ATOLL}", f"podsandbox-{RUNC}")
COUNTING = "i=0; while true; do i=$((i+1)); echo $i > /count; sleep 0.02; done"
STATUS_LIMIT_MS = 1.0


@dataclass(slots=True, kw_only=True)
class World:
    """A controller with one running sandbox, and containers beside it."""

    parts: Real
    kind: str
    controller: ShimController | PodSandboxController
    sandbox: Sandbox
    instance: ControllerInstance
    shim: Shim
    made: list[str]

    def another(self) -> ShimController | PodSandboxController:
        return make(self.parts, self.kind)

    async def container(self, name: str) -> Path:
        """One that counts in a file, below the pod's cgroup; the file."""
        folder = self.parts.roots.base / name
        programs = folder / "rootfs" / "bin"
        programs.mkdir(parents=True)
        shutil.copy("/bin/busybox", programs / "busybox")
        for applet in APPLETS:
            (programs / applet).symlink_to("busybox")
        pid = f"/proc/{self.instance.pid}/ns/pid"
        spec = oci.Spec(
            oci_version=oci.OCI_VERSION,
            process=oci.Process(args=("/bin/sh", "-c", COUNTING), cwd="/", env=("PATH=/bin",)),
            root=oci.Root(path="rootfs"),
            mounts=(oci.Mount(destination="/proc", type="proc", source="proc"),),
            linux=oci.Linux(
                namespaces=(oci.Namespace(type="mount"), oci.Namespace(type="pid", path=pid)),
                cgroups_path=f"{cgroup(self).path}/{name}",
            ),
        )
        (folder / "config.json").write_bytes(oci.encode(spec))
        await self.shim.tasks.create(name, bundle=str(folder), rootfs=(), stdio=StdioPaths())
        await self.shim.tasks.start(name)
        self.made.append(name)
        return folder / "rootfs" / "count"

    async def delete(self, name: str) -> None:
        with contextlib.suppress(errors.NotFound):
            await self.shim.tasks.kill(name, signal.SIGKILL, all_processes=True)
        await asyncio.wait_for(self.shim.tasks.wait(name), WITHIN_S)
        await self.shim.tasks.delete(name)
        self.made.remove(name)


def make(parts: Real, kind: str) -> ShimController | PodSandboxController:
    return parts.shim() if kind == "shim" else parts.podsandbox(kind.removeprefix("podsandbox-"))


def cgroup(world: World) -> Cgroup:
    return Cgroup(f"/{world.parts.roots.prefix}/{world.sandbox.id}", cgroup_layout.detect())


async def started(parts: Real, kind: str) -> World:
    controller = make(parts, kind)
    runtime = RUNC if kind.endswith(RUNC) else ATOLL
    sandbox = replace(parts.sandbox(runtime, f"{parts.roots.prefix}-pod"), labels={"name": "changed"})
    await controller.create(sandbox, parts.options(sandbox.id))
    instance = await controller.start(sandbox.id)
    bootstrap = Bootstrap.from_endpoint(instance.address, instance.version)
    shim = await Shim.connect(id=sandbox.id, namespace=parts.roots.prefix, bootstrap=bootstrap)
    return World(parts=parts, kind=kind, controller=controller, sandbox=sandbox, instance=instance, shim=shim, made=[])


@pytest.fixture(params=KINDS)
async def world(request: pytest.FixtureRequest, roots: Roots) -> AsyncIterator[World]:
    async with real(roots) as parts:
        world = await started(parts, request.param)
        try:
            yield world
        finally:
            for name in list(world.made):
                await world.delete(name)
            await world.shim.aclose()
            await parts.controllers[-1].shutdown(world.sandbox.id)


async def changes(file: Path, within_s: float = 5.0) -> bool:
    before = file.read_text() if file.exists() else ""
    deadline = time.monotonic() + within_s
    while not file.exists() or file.read_text() == before:
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def info(controller: ShimController | PodSandboxController, sandbox: Sandbox) -> SandboxInfo:
    return SandboxInfo.decode((await controller.status(sandbox.id, verbose=True)).info)


def is_gone(pid: int) -> bool:
    seen = process.stat(pid)
    return seen is None or seen.state in "ZX"


async def test_a_pause_outlives_the_controller_and_holds_every_container(world: World) -> None:
    files = [await world.container(f"{world.sandbox.id}-{n}") for n in range(2)]
    assert [await changes(file) for file in files] == [True, True]
    await world.controller.pause(world.sandbox.id)
    await world.controller.pause(world.sandbox.id)
    assert [await changes(file, 0.3) for file in files] == [False, False]
    status = await world.controller.status(world.sandbox.id)
    assert (status.state, status.pid) == (State.READY, world.instance.pid)
    await world.controller.aclose()
    later = world.another()
    assert (await later.recover(world.sandbox)).state is State.READY
    assert (await info(later, world.sandbox)).process_status == "paused"
    await later.ping(world.sandbox.id)
    await later.resume(world.sandbox.id)
    await later.resume(world.sandbox.id)
    assert [await changes(file) for file in files] == [True, True]
    assert (await info(later, world.sandbox)).process_status == "running"


async def test_one_container_of_a_paused_pod_can_be_killed(world: World) -> None:
    doomed = f"{world.sandbox.id}-doomed"
    await world.container(doomed)
    other = await world.container(f"{world.sandbox.id}-other")
    await world.controller.pause(world.sandbox.id)
    await world.delete(doomed)
    assert not await changes(other, 0.3)
    await world.controller.resume(world.sandbox.id)
    assert await changes(other)


async def test_a_paused_pod_is_stopped_and_what_was_in_it_has_ended(world: World) -> None:
    name = f"{world.sandbox.id}-in"
    await world.container(name)
    await world.controller.pause(world.sandbox.id)
    async with asyncio.timeout(WITHIN_S):
        await world.controller.stop(world.sandbox.id)
        ended = await world.controller.wait(world.sandbox.id)
        assert (await world.shim.tasks.wait(name)).exit_status == 137
    status = await world.controller.status(world.sandbox.id)
    assert (status.state, status.exit_status, status.exited_at) == (
        State.NOTREADY,
        ended.exit_status,
        ended.exited_at,
    )
    for work in (world.controller.pause, world.controller.resume, world.controller.ping):
        with pytest.raises(errors.FailedPrecondition):
            await work(world.sandbox.id)


def limit(world: World, controller: str, v1: str, v2: str) -> str:
    folder = cgroup(world).folder(controller)
    assert folder is not None
    return (folder / (v2 if cgroup(world).is_v2 else v1)).read_text().strip()


async def test_an_update_reaches_the_pod_and_outlives_the_controller(world: World) -> None:
    document = {
        "annotations": {"tier": "gold"},
        "linux": {"resources": {"pids": {"limit": 55}, "memory": {"limit": 96 << 20}}},
    }
    update = {"Overhead": {"memory_limit_in_bytes": 8 << 20}, "Resources": {"memory_limit_in_bytes": 64 << 20}}
    record = replace(
        world.sandbox,
        labels={"name": "changed", "tier": "gold"},
        spec=TypedAny(type_url=SPEC_URL, value=json.dumps(document).encode()),
        extensions={
            "updated-resources": TypedAny(
                type_url="io.containerd.cri.v1/UpdatedResources", value=json.dumps(update).encode()
            )
        },
    )
    with pytest.raises(errors.InvalidArgument):
        await world.controller.update(world.sandbox.id, record, ("labels", "spec", "no-such-field"))
    before = await info(world.controller, world.sandbox)
    assert (before.labels, before.annotations) == ({"name": "changed"}, {})
    fields = ("labels.tier", "annotations", "spec", "extensions.updated-resources")
    await world.controller.update(world.sandbox.id, record, fields)
    await world.controller.aclose()
    later = world.another()
    await later.recover(record)  # as its keeper has it now
    for controller in (later,):
        found = await info(controller, world.sandbox)
        assert found.labels == {"name": "changed", "tier": "gold"}
        assert found.annotations == {"tier": "gold"}
        assert found.resources.memory_limit_in_bytes == 64 << 20  # type: ignore[union-attr]
        assert found.overhead.memory_limit_in_bytes == 8 << 20  # type: ignore[union-attr]
    assert limit(world, "memory", "memory.limit_in_bytes", "memory.max") == str(72 << 20)
    assert limit(world, "pids", "pids.max", "pids.max") == "55"


async def test_metrics_are_of_the_whole_pod(world: World) -> None:
    for number in range(2):
        await changes(await world.container(f"{world.sandbox.id}-{number}"))
    metric = await world.controller.metrics(world.sandbox.id)
    total = v2_pb2.Metrics() if cgroup(world).is_v2 else v1_pb2.Metrics()
    assert metric.data.type_url == total.DESCRIPTOR.full_name
    total.ParseFromString(metric.data.value)
    assert total.pids.current >= 2
    await world.controller.stop(world.sandbox.id)
    with pytest.raises(errors.FailedPrecondition):
        await world.controller.metrics(world.sandbox.id)


async def test_a_brief_status_takes_less_than_a_millisecond(world: World) -> None:
    taken: list[float] = []
    for _ in range(200):
        began = time.perf_counter()
        assert (await world.controller.status(world.sandbox.id)).state is State.READY
        taken.append((time.perf_counter() - began) * 1e3)
    assert statistics.median(taken) < STATUS_LIMIT_MS


async def test_the_end_of_the_pods_process_is_told_without_being_asked_for(world: World) -> None:
    os.kill(world.instance.pid, signal.SIGKILL)
    ended = await asyncio.wait_for(world.controller.wait(world.sandbox.id), WITHIN_S)
    status = await world.controller.status(world.sandbox.id)
    assert (status.state, status.pid, status.exited_at) == (State.NOTREADY, 0, ended.exited_at)
    assert (status.exit_status, ended.exit_status) == (137, 137)


async def test_a_pod_without_a_cgroup_says_that_it_cannot_be_paused_by_another_shim(roots: Roots) -> None:
    async with real(roots) as parts:
        controller = parts.podsandbox(RUNC)
        sandbox = parts.sandbox(RUNC, f"{roots.prefix}-pod")
        await controller.create(sandbox, options_of(pod(network=NamespaceMode.NODE)))
        await controller.start(sandbox.id)
        with pytest.raises(errors.FailedPrecondition, match="cgroup_parent"):
            await controller.pause(sandbox.id)
        assert (await controller.status(sandbox.id)).state is State.READY
        await controller.shutdown(sandbox.id)
        assert await parts.left(sandbox.id) == ()
        Cgroup(f"/{roots.prefix}", cgroup_layout.detect()).create()  # for the clean-up, which expects it


@pytest.mark.parametrize("copy", [True, False], ids=["kept twice", "as an older daemon left it"])
@pytest.mark.parametrize("restart", [True, False])
async def test_a_torn_bootstrap_file_keeps_nobody_from_stopping_a_living_shim(
    roots: Roots, copy: bool, restart: bool
) -> None:
    async with real(roots) as parts:
        world = await started(parts, f"podsandbox-{RUNC}")
        shim_pid, _ = await world.shim.tasks.connect(world.sandbox.id)
        await world.shim.aclose()
        await world.controller.aclose()
        bundle = parts.bundles / world.sandbox.id / world.sandbox.id
        (bundle / FILE).write_text('{"version": 3, "addr')
        if not copy:
            record = records.read(bundle / records.SHIM, records.ShimRecord)
            assert record is not None
            older = {"pid": record.pid, "start_ticks": record.start_ticks, "boot_id": record.boot_id, "version": ""}
            (bundle / records.SHIM).write_text(json.dumps(older))
        later = world.another()
        if restart:
            status = await later.recover(world.sandbox)
            assert status.state is (State.READY if copy else State.UNKNOWN)
            async with asyncio.timeout(WITHIN_S):
                await later.stop(world.sandbox.id)
            assert (await later.status(world.sandbox.id)).state is State.NOTREADY
            assert is_gone(world.instance.pid)
        await later.shutdown(world.sandbox.id)
        assert is_gone(shim_pid)
        assert await parts.left(world.sandbox.id) == ()
        if not copy:
            # Where it answered is nowhere any more, so its socket cannot be found.
            Path(world.instance.address.removeprefix("ttrpc+unix://")).unlink(missing_ok=True)
