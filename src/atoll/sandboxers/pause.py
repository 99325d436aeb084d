"""What a pause container is: the record it is found again by, and its runtime spec.

Source: containerd's pod sandbox controller, whose annotations clients know.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api.codec import to_struct
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.linux import syscalls
from atoll.linux.host import HostFacts
from atoll.linux.process import ProcessId
from atoll.linux.userns import IDMap, owner
from atoll.oci import spec as oci
from atoll.oci.builder import ImageDefaults, PauseSpecRequest, PodContext, pause_spec
from atoll.oci.config import (
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    NamespaceMode,
    SecurityProfile,
)
from atoll.oci.features import RuntimeFeatures
from atoll.sandbox import annotations
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import CreateOptions, ExitStatus, Sandbox
from atoll.sandbox.resources import NOTHING
from atoll.shim.pod_cgroup import PodResources
from atoll.shim.records import Record, SandboxExit
from atoll.snapshot.mount import Mount

CRI = "io.kubernetes.cri."
HOST_SHM = Path("/dev/shm")  # noqa: S108  the host's own


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRoot:
    """A root filesystem for one pause container.

    `mounts` are for the shim to make; `layers` the folders that they show, topmost first, read for user names only.
    """

    mounts: tuple[Mount, ...]
    image: ImageDefaults
    image_name: str
    layers: tuple[Path, ...] = ()
    snapshotter: str = "overlayfs"


class RootProvider(Protocol):
    """Gives pause containers their root filesystems, by sandbox ID."""

    async def prepare(self, sandbox_id: str, users: IDMap | None) -> PauseRoot:
        """Make one, for the pod's users where it has its own; on an error nothing is left.

        Raises `AlreadyExists`, and `NotFound` without a pause image.
        """
        ...

    async def remove(self, sandbox_id: str) -> None:
        """Take it away, unmounted before; idempotent."""
        ...


class PauseRecord(Record, frozen=True, kw_only=True):
    """What a new daemon must know of a pod; replaced whenever it changes. Times in ns since the epoch.

    `owns_cgroup`: nobody else uses `cgroup_parent`. `made_cgroup`: a pod made it. `annotations`,
    `overhead` and `resources` are None until an update changed them. `kept_frozen` names the cgroups below the pod's
    that a pause holds.
    """

    config: PodConfig
    netns: str
    files: str
    cgroup_parent: str
    runtime: str
    image: str = ""
    snapshotter: str = ""
    pid: int = 0
    start_ticks: int = 0
    boot_id: str = ""
    created_at_ns: int = 0
    owns_cgroup: bool = False
    made_cgroup: bool = False
    annotations: dict[str, str] | None = None
    overhead: LinuxContainerResources | None = None
    resources: LinuxContainerResources | None = None
    is_paused: bool = False
    kept_frozen: tuple[str, ...] = ()
    is_stopped: bool = False
    exit: SandboxExit | None = None

    @property
    def annotations_now(self) -> dict[str, str]:
        """The pod's annotations, after updates."""
        return dict(self.config.annotations if self.annotations is None else self.annotations)

    @property
    def resources_now(self) -> PodResources:
        """The pod's limits, after updates."""
        linux = self.config.linux
        return PodResources(
            overhead=self.overhead or (linux.overhead if linux is not None else None) or NOTHING,
            resources=self.resources or (linux.resources if linux is not None else None) or NOTHING,
        )

    @property
    def process(self) -> ProcessId | None:
        """The pause process; None before its start."""
        return ProcessId(pid=self.pid, start_ticks=self.start_ticks, boot_id=self.boot_id) if self.pid else None

    @property
    def created_at(self) -> datetime | None:
        return datetime.fromtimestamp(self.created_at_ns / 1e9, UTC) if self.created_at_ns else None

    @property
    def ended(self) -> ExitStatus | None:
        if self.exit is None:
            return None
        at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.exit.exited_at_ns // 1000)
        return ExitStatus(exit_status=self.exit.exit_status, exited_at=at)

    @property
    def has_ipc(self) -> bool:
        """Whether the pod has an IPC namespace, and so a /dev/shm, of its own."""
        return self.config.namespaces.ipc is not NamespaceMode.NODE


def record_of(sandbox: Sandbox, options: CreateOptions, files: Path) -> PauseRecord:
    """What `create` was asked for; `files` is where the pod's files are unless the request says otherwise.

    Raises `InvalidArgument` for options that are no PodSandboxConfig or name no path.
    """
    message = PodSandboxConfig()
    given = options.options
    if given is not None:
        if given.type_url.rpartition("/")[2] != message.DESCRIPTOR.full_name:
            raise errors.InvalidArgument(f"sandbox options {given.type_url}: must be a {message.DESCRIPTOR.full_name}")
        try:
            message.ParseFromString(given.value)
        except DecodeError as error:
            raise errors.InvalidArgument(f"sandbox options: cannot be decoded: {error}") from error
    config = annotations.with_asked(to_struct(PodConfig, message), options.annotations)
    own_files = options.annotations.get(annotations.FILES, "")
    for path in (own_files, options.netns_path):
        if path and (not path.startswith("/") or ".." in Path(path).parts or "\0" in path):
            raise errors.InvalidArgument(f"path {path[:200]!r}: must be absolute, without '..'")
    if options.rootfs:
        raise errors.InvalidArgument("rootfs: a pause container brings its own")
    if config.host_network and options.netns_path:
        raise errors.InvalidArgument(
            f"network namespace {options.netns_path}: given, but the pod uses the host's network"
        )
    if not config.host_network and not options.netns_path:
        raise errors.InvalidArgument("network namespace: the pod has one of its own, but no path was given")
    return PauseRecord(
        config=config,
        netns=options.netns_path,
        files=own_files or str(files),
        cgroup_parent=config.cgroup_parent or options.annotations.get(annotations.CGROUP, ""),
        runtime=sandbox.runtime.name,
        owns_cgroup=not config.cgroup_parent and bool(options.annotations.get(annotations.CGROUP)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFacts:
    """What a pause container's spec depends on beside its pod."""

    host: HostFacts
    features: RuntimeFeatures
    namespace: str
    unset_seccomp: SecurityProfile | None = None
    seccomp_folder: Path | None = None


def cgroups_path(sandbox_id: str, record: PauseRecord, namespace: str) -> str:
    """The pause container's own cgroup; in systemd's form where its parent is a slice."""
    parent = record.cgroup_parent or f"/{namespace}"
    base = parent.rpartition("/")[2]
    return f"{base}:atoll:{sandbox_id}" if base.endswith(".slice") else f"{parent.rstrip('/')}/{sandbox_id}"


def build(sandbox_id: str, record: PauseRecord, root: PauseRoot, facts: SpecFacts, userns: Path | None = None) -> bytes:
    """The pause container's config.json; errors as `pause_spec`. Blocks briefly.

    `userns` is the user namespace to join, that of the pod's network; without one the pause container makes it.
    """
    config = record.config
    files = Path(record.files)
    request = PauseSpecRequest(
        id=sandbox_id,
        image=root.image,
        pod=PodContext(
            hostname=config.hostname,
            network_namespace=Path(record.netns) if record.netns else None,
            user_namespace=userns,
            userns_options=config.namespaces.userns_options,
            files=files,
            shm=files / "shm" if record.has_ipc else HOST_SHM,
            privileged=config.privileged,
        ),
        host=facts.host,
        runtime=facts.features,
        rootfs_layers=root.layers,
        cgroups_path=cgroups_path(sandbox_id, record, facts.namespace),
        namespaces=config.namespaces,
        security=_security(config),
        sysctls=config.linux.sysctls if config.linux is not None else {},
        annotations=_annotations(sandbox_id, config, root.image_name),
        unset_seccomp=facts.unset_seccomp,
        seccomp_folder=facts.seccomp_folder,
    )
    return oci.encode(pause_spec(request))


def _security(config: PodConfig) -> LinuxContainerSecurityContext:
    asked = config.linux.security_context if config.linux is not None else None
    return asked.in_container_words() if asked is not None else LinuxContainerSecurityContext()


def _annotations(sandbox_id: str, config: PodConfig, image: str) -> dict[str, str]:
    metadata = config.metadata
    found = {
        f"{CRI}container-type": "sandbox",
        f"{CRI}sandbox-id": sandbox_id,
        f"{CRI}sandbox-namespace": metadata.namespace if metadata is not None else "",
        f"{CRI}sandbox-uid": metadata.uid if metadata is not None else "",
        f"{CRI}sandbox-name": metadata.name if metadata is not None else "",
        f"{CRI}sandbox-log-directory": config.log_directory,
        f"{CRI}podsandbox.image-name": image,
    }
    resources = config.linux.resources if config.linux is not None else None
    if resources is not None:
        found[f"{CRI}sandbox-cpu-period"] = str(resources.cpu_period)
        found[f"{CRI}sandbox-cpu-quota"] = str(resources.cpu_quota)
        found[f"{CRI}sandbox-cpu-shares"] = str(resources.cpu_shares)
        found[f"{CRI}sandbox-memory"] = str(resources.memory_limit_in_bytes)
    return found


def let_in(folder: Path, group: int) -> None:
    """Let root of the pod's users through to the bundle, whose root file system an OCI runtime mounts as that."""
    os.chown(folder, -1, group)
    folder.chmod(0o710)


def pin_owner(netns: str, at: Path) -> Path:
    """Pin the user namespace that owns the pod's network at a path; `InvalidArgument` where it is the host's."""
    with open(netns, "rb") as namespace:
        fd = owner(namespace.fileno())
    if fd is None:
        raise errors.InvalidArgument(
            f"network namespace {netns}: belongs to the host, and the pod has users of its own"
        )
    try:
        at.touch(mode=0o400)
        syscalls.mount(f"/proc/self/fd/{fd}", at, flags=syscalls.MS_BIND)
    finally:
        os.close(fd)
    return at
