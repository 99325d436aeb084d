"""The controllers that the contract is checked on, over real shims, namespaces and OCI runtimes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from atoll.api.codec import to_message
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.concurrency import Blocking
from atoll.linux.cgroup import Cgroup
from atoll.linux.cgroup_layout import detect
from atoll.linux.host import read_host_facts
from atoll.linux.process import PidfdSpawner
from atoll.linux.userns import IDMap
from atoll.oci.builder import ImageDefaults
from atoll.oci.config import NamespaceMode, NamespaceOption
from atoll.oci.features import RuntimeFeatures
from atoll.runtime.binary import BinaryLauncher, Daemon
from atoll.runtime.forked import AtollLauncher
from atoll.runtime.shim import Launcher
from atoll.runtime.zygote import Zygote
from atoll.sandbox import annotations
from atoll.sandbox.config import LinuxPodConfig, LinuxSandboxSecurityContext, PodConfig, PodMetadata
from atoll.sandbox.controller import (
    Controller,
    ControllerInstance,
    CreateOptions,
    Runtime,
    Sandbox,
    TypedAny,
)
from atoll.sandboxers.pause import PauseRoot, SpecFacts
from atoll.sandboxers.podsandbox import PodSandboxController
from atoll.sandboxers.shim import ShimController
from atoll.shim.request import RuntimeChoice
from atoll.snapshot.mount import Mount
from atoll.testing.conformance import LinuxHost, Subject
from atoll.testing.conformance.workload import ask_tasks, runs_busybox
from tests.integration.conftest import Roots

ATOLL, RUNC = "io.containerd.atoll.v1", "io.containerd.runc.v2"
RUNC_ROOTS = Path("/run/containerd/runc")
KILLED = 128 + signal.SIGKILL
CGROUP_WITHIN_S = 5.0


class FolderRoots:
    """One folder with a busybox for every pause container, read-only; remembers who has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.taken: set[str] = set()
        (folder / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", folder / "bin" / "busybox")
        for name in ("proc", "dev", "sys", "etc"):
            (folder / name).mkdir()
        (folder / "etc" / "resolv.conf").touch()

    async def prepare(self, sandbox_id: str, users: IDMap | None) -> PauseRoot:
        assert sandbox_id not in self.taken
        self.taken.add(sandbox_id)
        return PauseRoot(
            mounts=(Mount(type="bind", source=str(self._folder), options=("rbind", "ro")),),
            image=ImageDefaults(entrypoint=("/bin/busybox", "sleep", "1000000")),
            image_name="test/pause:latest",
            layers=(self._folder,),
        )

    async def remove(self, sandbox_id: str) -> None:
        self.taken.discard(sandbox_id)


def pod(*, pid: NamespaceMode = NamespaceMode.POD, network: NamespaceMode) -> PodSandboxConfig:
    namespaces = NamespaceOption(network=network, pid=pid)
    security = LinuxSandboxSecurityContext(namespace_options=namespaces)
    config = PodConfig(metadata=PodMetadata(name="checked"), linux=LinuxPodConfig(security_context=security))
    return to_message(config, PodSandboxConfig())


def options_of(config: PodSandboxConfig, *, netns: str = "", cgroup: str = "") -> CreateOptions:
    value = TypedAny(type_url="runtime.v1.PodSandboxConfig", value=config.SerializeToString())
    extra = {annotations.CGROUP: cgroup} if cgroup else {}
    return CreateOptions(options=value, netns_path=netns, annotations=extra)


class Real:
    """The parts of one test: launchers, folders, and what is still there of a sandbox."""

    def __init__(self, roots: Roots, zygote: Zygote, blocking: Blocking) -> None:
        self.roots = roots
        self.blocking = blocking
        self.bundles = roots.state / "shims"
        sockets = roots.state / "s"
        sockets.mkdir()
        choice = RuntimeChoice(binary=str(shutil.which("runc")), root=str(roots.state / "oci"))
        daemon = Daemon(grpc_address=str(roots.socket), events_address="", binary="/bin/true")
        self.launchers: dict[str, Launcher] = {
            ATOLL: AtollLauncher(zygote, sockets=sockets, runtime=choice, events_address="", blocking=blocking),
            RUNC: BinaryLauncher(daemon, PidfdSpawner(), blocking),
        }
        self.pause_roots: FolderRoots = FolderRoots(roots.base / "pause")
        self.facts = SpecFacts(
            host=read_host_facts(), features=RuntimeFeatures(name="runc", version="1.1.5"), namespace=roots.prefix
        )
        self.controllers: list[ShimController | PodSandboxController] = []

    def sandbox(self, runtime: str, sandbox_id: str) -> Sandbox:
        return Sandbox(id=sandbox_id, sandboxer="checked", runtime=Runtime(name=runtime))

    def options(self, sandbox_id: str, pid: NamespaceMode = NamespaceMode.POD) -> CreateOptions:
        config = pod(pid=pid, network=NamespaceMode.NODE)
        return options_of(config, cgroup=f"/{self.roots.prefix}/{sandbox_id}")

    def refused(self, sandbox_id: str) -> CreateOptions:
        """With a network namespace that is not there."""
        config = pod(network=NamespaceMode.POD)
        netns = str(self.roots.state / "no-such-netns")
        return options_of(config, netns=netns, cgroup=f"/{self.roots.prefix}/{sandbox_id}")

    def shim(self) -> ShimController:
        made = ShimController(
            launcher=self.launchers[ATOLL], bundles=self.bundles, namespace=self.roots.prefix, blocking=self.blocking
        )
        self.controllers.append(made)
        return made

    def podsandbox(self, runtime: str) -> PodSandboxController:
        made = PodSandboxController(
            launcher=self.launchers[runtime],
            roots=self.pause_roots,
            folder=self.bundles,
            facts=self.facts,
            blocking=self.blocking,
        )
        self.controllers.append(made)
        return made

    async def left(self, sandbox_id: str) -> tuple[str, ...]:
        """The files of a sandbox, and its pause container's root; the kit sees the rest by itself."""
        states = (self.bundles, self.roots.state / "oci", RUNC_ROOTS / self.roots.prefix)
        return (
            *(str(state / sandbox_id) for state in states if (state / sandbox_id).exists()),
            *(f"root filesystem of {taken}" for taken in self.pause_roots.taken if taken == sandbox_id),
        )

    def subject(self, kind: str) -> Subject:
        runtime = RUNC if kind.endswith(RUNC) else ATOLL
        pid = NamespaceMode.CONTAINER if kind == "shim-without-init" else NamespaceMode.POD

        def make() -> ShimController | PodSandboxController:
            return self.podsandbox(runtime) if kind.startswith("podsandbox") else self.shim()

        async def restart(sandboxes: tuple[Sandbox, ...]) -> Controller:
            await self.controllers[-1].aclose()
            made = make()
            for sandbox in sandboxes:
                await made.recover(sandbox)
            return made

        async def end(instance: ControllerInstance) -> int:
            os.kill(instance.pid, signal.SIGKILL)
            return KILLED

        return Subject(
            controller=make(),
            sandbox=lambda made: self.sandbox(runtime, made),
            options=lambda made: self.options(made, pid),
            refused=self.refused,
            end=end,
            left=self.left,
            host=LinuxHost(owned_cgroups=(f"/{self.roots.prefix}",)),
            namespaces=frozenset({"ipc"} if kind == "shim-without-init" else {"ipc", "pid"}),
            tasks=lambda instance: ask_tasks(instance, self.roots.prefix),
            owns_tasks=runtime == ATOLL,
            populate=runs_busybox(self.roots.base, self.roots.prefix),
            restart=restart,
            name=kind,
            prefix=self.roots.prefix,
        )

    async def aclose(self) -> None:
        for controller in self.controllers:
            await controller.aclose()
        # The pods' cgroups are their users', who gave them.
        group = Cgroup(f"/{self.roots.prefix}", detect())
        await asyncio.to_thread(group.delete, CGROUP_WITHIN_S)
        # Nobody deletes the containers that the kit puts into a sandbox, and this shim leaves runc's records of them.
        for record in (RUNC_ROOTS / self.roots.prefix).glob("*-w[0-9]*"):
            shutil.rmtree(record)
        with contextlib.suppress(FileNotFoundError):
            (RUNC_ROOTS / self.roots.prefix).rmdir()


@asynccontextmanager
async def real(roots: Roots) -> AsyncGenerator[Real]:
    async with AsyncExitStack() as stack:
        blocking = Blocking(threads=4)
        stack.callback(blocking.close)
        zygote = await stack.enter_async_context(await Zygote.start())
        made = Real(roots, zygote, blocking)
        stack.push_async_callback(made.aclose)
        yield made
