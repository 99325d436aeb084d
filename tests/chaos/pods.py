"""Lives of pods of every kind, each as `PodLife` but for what makes it one of its kind."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.engine.own_mounts import POD_VOLUMES, VOLUMES
from tests.chaos.life import DEAF, EXIT_CODE, KILLED, SCRIPT, PodLife
from tests.integration.cri_client import BUSYBOX

FIRST_ID, IDS = 300_000, 65_536
LIMIT_BYTES = 64 << 20


@dataclass(slots=True)
class MappedLife(PodLife):
    """A pod with users of its own and a published port; its container has an image as a volume, and hears no signal."""

    ABOUT: ClassVar[str] = "a pod with users of its own and a published port, an image volume, limits that change"
    AGAIN: ClassVar[tuple[str, ...]] = (
        *("run/[nc]*", "create/*", "start/*", "shim pod/holder*", "shim create/*", "release/[nsv]*", "stop/network*"),
    )
    CODES: ClassVar[tuple[int, ...]] = (KILLED,)
    CAUSES: ClassVar[tuple[str, ...]] = ("create/bundle", "run/commit")

    def _namespaces(self) -> pb.NamespaceOption:
        ids = [pb.IDMapping(host_id=FIRST_ID, container_id=0, length=IDS)]
        users = pb.UserNamespace(mode=pb.POD, uids=ids, gids=ids)
        return pb.NamespaceOption(pid=pb.CONTAINER, userns_options=users)

    def config(self) -> pb.PodSandboxConfig:
        config = self.cri.pod_config(self.name, network=True, namespaces=self._namespaces())
        config.annotations[POD_VOLUMES] = "data"
        config.port_mappings.add(container_port=80, host_port=20_000 + zlib.crc32(self.name.encode()) % 12_000)
        return config

    def container_config(self) -> pb.ContainerConfig:
        config = self.cri.container_config("/bin/sh", "-c", DEAF, name="main")
        config.linux.security_context.namespace_options.CopyFrom(self._namespaces())
        config.annotations[VOLUMES] = "data:/var/lib/data"
        config.mounts.add(container_path="/image", image=pb.ImageSpec(image=BUSYBOX), image_sub_path="bin")
        return config

    def use(self) -> None:
        self.tried(self._update)
        self.tried(self._look)

    def _update(self) -> None:
        self.require_container()
        limits = pb.LinuxContainerResources(memory_limit_in_bytes=LIMIT_BYTES)
        request = pb.UpdateContainerResourcesRequest(container_id=self.container, linux=limits)
        self.cri.runtime.call("UpdateContainerResources", request, pb.UpdateContainerResourcesResponse)
        told = self.cri.status(self.container).resources.linux.memory_limit_in_bytes
        assert told == LIMIT_BYTES, f"the limit is told as {told}"

    def _look(self) -> None:
        self.require_container()
        script = "test -f /image/busybox && touch /var/lib/data/file && cat /proc/self/uid_map"
        outcome = self.cri.exec(self.container, "/bin/sh", "-c", script)
        assert outcome.code == 0, outcome.stderr
        assert outcome.stdout.split() == [b"0", str(FIRST_ID).encode(), str(IDS).encode()]

    def stop_within_s(self) -> int:
        return 0


@dataclass(slots=True)
class PausedLife(PodLife):
    """A pod that a pause container holds."""

    ABOUT: ClassVar[str] = "a pod held by a pause container"
    HANDLER: ClassVar[str] = "pod"
    CAUSES: ClassVar[tuple[str, ...]] = ("podsandbox start/start task:done", "podsandbox start/root:done")

    def config(self) -> pb.PodSandboxConfig:
        return self.cri.pod_config(self.name)

    def use(self) -> None:
        return


@dataclass(slots=True)
class ForeignLife(PausedLife):
    """A pod whose shim is containerd's."""

    ABOUT: ClassVar[str] = "a pod behind containerd's shim"
    HANDLER: ClassVar[str] = "go"
    CAUSES: ClassVar[tuple[str, ...]] = ()
    AGAIN: ClassVar[tuple[str, ...]] = ("podsandbox start/[sc]*", "create/*", "start/*")


@dataclass(slots=True)
class FarLife(PausedLife):
    """A pod of a sandboxer that is another process."""

    ABOUT: ClassVar[str] = "a pod of a remote sandboxer"
    HANDLER: ClassVar[str] = "far"
    CAUSES: ClassVar[tuple[str, ...]] = ()


@dataclass(slots=True)
class CheckpointLife(PodLife):
    """A container of runc's that is written to an archive, or of which is told why it cannot be, and goes on."""

    ABOUT: ClassVar[str] = "a container that is checkpointed"
    HANDLER: ClassVar[str] = "runc"
    CODES: ClassVar[tuple[int, ...]] = (EXIT_CODE,)

    def config(self) -> pb.PodSandboxConfig:
        return self.cri.pod_config(self.name)

    def container_config(self) -> pb.ContainerConfig:
        return self.cri.container_config("/bin/sh", "-c", SCRIPT, name="main")

    def use(self) -> None:
        target = self.world.roots.base / f"{self.name}.tar"
        try:
            self._checkpoint(target)
        except grpc.RpcError as error:  # and nobody asks again: the container goes on all the same
            self.failures.append(f"checkpoint: {error.code().name}")
        finally:
            target.unlink(missing_ok=True)
        self.tried(self._exec)  # which a container that stands still does not answer

    def _checkpoint(self, target: Path) -> None:
        self.require_container()
        request = pb.CheckpointContainerRequest(container_id=self.container, location=str(target))
        try:
            self.cri.runtime.call("CheckpointContainer", request, pb.CheckpointContainerResponse)
        except grpc.RpcError as error:
            assert not target.exists(), "half an archive"
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return  # this CRIU cannot dump on this kernel
        assert target.stat().st_size
