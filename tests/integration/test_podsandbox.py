"""Pods held by a pause container, over both shims: real namespaces, the built-in pause image, containers beside it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from atoll import errors
from atoll.linux import mounts, netns
from atoll.linux.userns import IDMap
from atoll.oci import spec as oci
from atoll.oci.builder import ImageDefaults
from atoll.oci.config import NamespaceMode
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.shim import Shim
from atoll.runtime.task import StdioPaths
from atoll.sandbox import annotations
from atoll.sandbox.controller import CleanupFailed, CreateOptions, Sandbox, State
from atoll.sandboxers.pause import PauseRoot
from atoll.sandboxers.podsandbox import PodSandboxController
from atoll.sandboxers.roots import ImageRoots, snapshot_key
from atoll.snapshot.mount import Mount
from tests.conformance.controllers import ATOLL, RUNC, Real, options_of, pod, real
from tests.integration import images
from tests.integration.conftest import Roots
from tests.integration.leaks import mount_points

WITHIN_S = 20.0


@pytest.fixture
async def parts(roots: Roots) -> AsyncIterator[Real]:
    async with real(roots) as made:
        yield made


@pytest.fixture(params=[ATOLL, RUNC])
def runtime(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def controller(parts: Real, runtime: str) -> PodSandboxController:
    return parts.podsandbox(runtime)


@pytest.fixture
def sandbox(parts: Real, runtime: str) -> Sandbox:
    return parts.sandbox(runtime, f"{parts.roots.prefix}-pod")


@pytest.fixture
def options(parts: Real, sandbox: Sandbox) -> Iterator[CreateOptions]:
    """A pod with a network namespace, a hostname and DNS of its own."""
    folder = parts.roots.state / "netns"
    path = folder / "one"
    netns.create(path)
    config = pod(network=NamespaceMode.POD)
    config.hostname = "pausing"
    config.dns_config.servers.append("192.0.2.1")
    made = options_of(config, netns=str(path), cgroup=f"/{parts.roots.prefix}/{sandbox.id}")
    yield replace(made, annotations={**made.annotations, annotations.FILES: str(parts.roots.state / "files")})
    netns.remove_folder(folder)


def inode(pid: int, kind: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


async def test_the_pause_process_holds_the_pods_namespaces(
    controller: PodSandboxController, sandbox: Sandbox, options: CreateOptions, parts: Real
) -> None:
    await controller.create(sandbox, options)
    instance = await controller.start(sandbox.id)
    assert inode(instance.pid, "net") == netns.identity(Path(options.netns_path)).inode
    for kind in ("ipc", "uts", "pid", "mnt"):
        assert inode(instance.pid, kind) != inode(os.getpid(), kind)
    root = Path(f"/proc/{instance.pid}/root")
    assert (root / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\n"
    files = parts.roots.state / "files"
    assert (files / "hostname").read_text() == "pausing\n"
    assert mounts.is_mount_point(files / "shm")
    assert instance.spec is not None
    spec = oci.decode(instance.spec.value)
    assert spec.hostname == "pausing"
    assert spec.annotations["io.kubernetes.cri.sandbox-id"] == sandbox.id
    assert instance.labels == {"oci_runtime_type": sandbox.runtime.name}
    await controller.shutdown(sandbox.id)
    assert not files.exists()


async def test_containers_are_tasks_of_the_same_shim(
    controller: PodSandboxController, sandbox: Sandbox, options: CreateOptions, parts: Real
) -> None:
    await controller.create(sandbox, options)
    instance = await controller.start(sandbox.id)
    bootstrap = Bootstrap.from_endpoint(instance.address, instance.version)
    shim = await Shim.connect(id=sandbox.id, namespace=parts.roots.prefix, bootstrap=bootstrap)
    shim_pid, pause_pid = await shim.tasks.connect(sandbox.id)
    assert pause_pid == instance.pid
    inside = f"{sandbox.id}-web"
    bundle = container_bundle(parts, inside, instance.pid)
    pid = await shim.tasks.create(
        inside, bundle=str(bundle), rootfs=(), stdio=StdioPaths(), options=sandbox.runtime.options
    )
    await shim.tasks.start(inside)
    for kind in ("net", "ipc", "uts"):
        assert inode(pid, kind) == inode(instance.pid, kind)
    await shim.tasks.kill(inside, signal.SIGKILL)
    assert (await shim.tasks.wait(inside)).exit_status == 137
    assert (await controller.status(sandbox.id)).state is State.READY
    await shim.tasks.delete(inside)
    assert (await shim.tasks.connect(sandbox.id))[0] == shim_pid
    await shim.aclose()
    await controller.shutdown(sandbox.id)
    shutil.rmtree(bundle)


def container_bundle(parts: Real, container_id: str, pause_pid: int) -> Path:
    """A busybox that sleeps, in the namespaces of the pause process."""
    bundle = parts.roots.state / "bundles" / container_id
    programs = bundle / "rootfs" / "bin"
    programs.mkdir(parents=True)
    shutil.copy("/bin/busybox", programs / "busybox")
    pause = f"/proc/{pause_pid}/ns"
    joined = (
        oci.Namespace(type="network", path=f"{pause}/net"),
        oci.Namespace(type="ipc", path=f"{pause}/ipc"),
        oci.Namespace(type="uts", path=f"{pause}/uts"),
    )
    spec = oci.Spec(
        oci_version=oci.OCI_VERSION,
        process=oci.Process(args=("/bin/busybox", "sleep", "1000"), cwd="/"),
        root=oci.Root(path="rootfs"),
        mounts=(oci.Mount(destination="/proc", type="proc", source="proc"),),
        annotations={"io.kubernetes.cri.sandbox-id": container_id.removesuffix("-web")},
        linux=oci.Linux(
            namespaces=(oci.Namespace(type="mount"), *joined),
            cgroups_path=f"/{parts.roots.prefix}/{container_id}",
        ),
    )
    (bundle / "config.json").write_bytes(oci.encode(spec))
    return bundle


async def test_verbose_status_follows_the_pod(
    controller: PodSandboxController, sandbox: Sandbox, options: CreateOptions
) -> None:
    await controller.create(sandbox, options)
    instance = await controller.start(sandbox.id)
    told = json.loads((await controller.status(sandbox.id, verbose=True)).info["info"])
    assert (told["pid"], told["processStatus"], told["netNamespaceClosed"]) == (instance.pid, "running", False)
    assert told["config"]["hostname"] == "pausing"
    assert told["runtimeSpec"]["process"]["args"][0] == "/bin/busybox"
    await controller.pause(sandbox.id)
    told = json.loads((await controller.status(sandbox.id, verbose=True)).info["info"])
    assert told["processStatus"] == "paused"
    await controller.stop(sandbox.id)
    told = json.loads((await controller.status(sandbox.id, verbose=True)).info["info"])
    assert (told["pid"], told["processStatus"]) == (0, "stopped")
    await controller.shutdown(sandbox.id)


async def test_a_killed_shim_leaves_a_pod_that_is_known_to_have_ended(
    controller: PodSandboxController, sandbox: Sandbox, options: CreateOptions, parts: Real
) -> None:
    await controller.create(sandbox, options)
    instance = await controller.start(sandbox.id)
    bootstrap = Bootstrap.from_endpoint(instance.address, instance.version)
    shim = await Shim.connect(id=sandbox.id, namespace=parts.roots.prefix, bootstrap=bootstrap)
    shim_pid, _ = await shim.tasks.connect(sandbox.id)
    os.kill(shim_pid, signal.SIGKILL)
    await asyncio.wait_for(shim.closed, WITHIN_S)
    ended = await asyncio.wait_for(controller.wait(sandbox.id), WITHIN_S)
    assert ended.exit_status == 255
    status = await controller.status(sandbox.id)
    assert (status.state, status.exited_at) == (State.NOTREADY, ended.exited_at)
    await shim.aclose()
    await controller.shutdown(sandbox.id)
    assert await parts.left(sandbox.id) == ()


class Stuck:
    """Root filesystems that cannot be taken away at first; the pause program is not there either."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refusals = 1
        folder.mkdir()

    async def prepare(self, sandbox_id: str, users: IDMap | None) -> PauseRoot:
        mount = Mount(type="bind", source=str(self.folder), options=("rbind", "ro"))
        return PauseRoot(mounts=(mount,), image=ImageDefaults(entrypoint=("/no/program",)), image_name="none")

    async def remove(self, sandbox_id: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise errors.Unavailable("the disk is slow")


async def test_a_failed_start_that_cannot_be_undone_is_told_and_paid_by_shutdown(
    parts: Real, runtime: str, sandbox: Sandbox, options: CreateOptions
) -> None:
    parts.pause_roots = Stuck(parts.roots.base / "stuck")  # type: ignore[assignment]  # a provider as good as the other
    controller = parts.podsandbox(runtime)
    await controller.create(sandbox, options)
    with pytest.raises(CleanupFailed) as caught:
        await controller.start(sandbox.id)
    assert "the disk is slow" in caught.value.left[0]
    assert (await controller.status(sandbox.id)).state is not State.READY
    await controller.shutdown(sandbox.id)
    with pytest.raises(errors.NotFound):
        await controller.status(sandbox.id)
    assert not (parts.bundles / sandbox.id).exists()


async def test_the_built_in_pause_image_holds_a_pod(parts: Real, sandbox: Sandbox, options: CreateOptions) -> None:
    async with images.stack(parts.roots.root) as stores:
        await stores.images.install_builtins()
        provider = ImageRoots(stores.images, stores.snapshots, "atoll/pause")
        controller = PodSandboxController(
            launcher=parts.launchers[sandbox.runtime.name],
            roots=provider,
            folder=parts.bundles,
            facts=parts.facts,
            blocking=parts.blocking,
        )
        await controller.create(sandbox, options)
        instance = await controller.start(sandbox.id)
        assert stores.snapshots.has(snapshot_key(sandbox.id))
        assert msgspec.json.decode(instance.spec.value if instance.spec else b"")["root"]["readonly"] is True
        assert (await controller.status(sandbox.id)).state is State.READY
        await controller.shutdown(sandbox.id)
        assert not stores.snapshots.has(snapshot_key(sandbox.id))
        assert not [point for point in mount_points() if sandbox.id in point]
        await controller.aclose()
