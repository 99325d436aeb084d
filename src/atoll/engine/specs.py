"""From a container's config, its pod and its image to the runtime spec."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.container.store import Container
from atoll.engine import branch_base as branching
from atoll.engine import own_mounts, volumes
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.image.model import Image, ImageConfig
from atoll.oci import cdi, resources, rlimits, spec, user
from atoll.oci.builder import ContainerSpecRequest, ImageDefaults, PodContext, container_spec
from atoll.oci.config import LinuxContainerSecurityContext, NamespaceMode, NamespaceOption
from atoll.oci.failures import explain_command
from atoll.oci.rootfs import RootfsView

SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
"""The annotation by which shims group the containers of a pod."""


def build(
    parts: Parts, pod: Pod, container_id: str, config: ContainerConfig, image: Image, target: Container | None
) -> spec.Spec:
    """The spec of a container to be; blocks for as long as host paths take.

    Errors as `container_spec`, `volumes.specified` and `cdi.inject`.
    """
    devices = cdi.requested((device.name for device in config.CDI_devices), config.annotations)
    target_pid = target.status.get().pid if target is not None else 0
    name = config.metadata.name if config.metadata is not None else ""
    built = container_spec(
        ContainerSpecRequest(
            id=container_id,
            image=_defaults(image.config),
            pod=pod_context(parts, pod),
            host=parts.host,
            runtime=parts.features[pod.handler_name],
            rootfs_layers=branching.all_layers(parts, config, image),
            cgroups_path=cgroups_path(parts, pod, container_id),
            command=config.command,
            args=config.args,
            env=config.envs,
            working_dir=config.working_dir,
            tty=config.tty,
            mounts=tuple(mount for mount in config.mounts if mount.image is None),
            made_mounts=(*volumes.specified(parts, pod, config), *own_mounts.of(parts, pod, config)),
            devices=config.devices,
            security=msgspec.structs.replace(
                config.security, namespace_options=namespaces(pod.config.namespaces, config.security.namespace_options)
            ),
            resources=config.resources,
            rlimits=rlimits.of(config.annotations, pod.config.annotations, parts.host),
            annotations={
                **_allowed(pod.config.annotations, pod.handler.pod_annotations),
                **_allowed(config.annotations, pod.handler.container_annotations),
                "io.kubernetes.cri.container-type": "container",
                SANDBOX_ID: pod.id,
                "io.kubernetes.cri.container-name": name,
                "io.kubernetes.cri.image-name": config.image.image if config.image is not None else "",
            },
            target_pid_namespace=Path(f"/proc/{target_pid}/ns/pid") if target_pid else None,
            privileged_without_host_devices=pod.handler.privileged_without_host_devices,
        )
    )
    return cdi.inject(built, devices, tuple(Path(folder) for folder in parts.config.cdi.spec_dirs))


def namespaces(pod: NamespaceOption, asked: NamespaceOption | None) -> NamespaceOption:
    """The namespaces of a container in a pod: its network and ipc are the pod's whatever it asks, so is the host's pid.

    In a pod that shares no pid namespace each container has its own: POD, the default of the message, says nothing.
    Raises `InvalidArgument` for a container that asks for the host's where its pod has its own.
    """
    wanted = asked or NamespaceOption()
    for name, of_pod in (("network", pod.network), ("ipc", pod.ipc), ("pid", pod.pid)):
        if getattr(wanted, name) is NamespaceMode.NODE and of_pod is not NamespaceMode.NODE:
            raise errors.InvalidArgument(f"namespace_options.{name}: NODE, but the pod has a namespace of its own")
    if wanted.target_id and wanted.pid is not NamespaceMode.TARGET:
        raise errors.InvalidArgument("namespace_options.target_id: goes with pid mode TARGET only")
    pid = wanted.pid
    if pid in (NamespaceMode.POD, NamespaceMode.NODE):
        pid = pod.pid
    return msgspec.structs.replace(wanted, network=pod.network, ipc=pod.ipc, pid=pid)


def pod_context(parts: Parts, pod: Pod) -> PodContext:
    """What the pod gives its containers, by the pid that stands for it."""
    pid = pod.instance.pid if pod.instance is not None else 0
    namespaces = pod.config.namespaces
    folder = Path(f"/proc/{pid}/ns")
    files = parts.paths.pods / pod.id
    host_network = namespaces.network is NamespaceMode.NODE
    return PodContext(
        hostname=pod.config.hostname or os.uname().nodename,
        network_namespace=None if host_network else folder / "net",
        ipc_namespace=None if namespaces.ipc is NamespaceMode.NODE else folder / "ipc",
        uts_namespace=None if host_network else folder / "uts",
        pid_namespace=folder / "pid",
        user_namespace=folder / "user" if pod.config.users is not None else None,
        userns_options=namespaces.userns_options,
        files=files,
        shm=Path("/dev/shm") if namespaces.ipc is NamespaceMode.NODE else files / "shm",  # noqa: S108  the host's own
        privileged=pod.config.privileged,
    )


def pod_cgroup(parts: Parts, pod: Pod) -> str:
    """The parent of the cgroups of the pod's containers."""
    return pod.config.cgroup_parent or f"{parts.cgroup_parent}/{pod.id}"


def cgroups_path(parts: Parts, pod: Pod, container_id: str) -> str:
    """Where a container's cgroup is; in systemd's form where the parent is a slice."""
    systemd = pod.handler.systemd_cgroup
    return resources.cgroups_path(pod_cgroup(parts, pod), container_id, systemd=systemd)


def exec_user(parts: Parts, container: Container, name: str) -> spec.User:
    """Who `name` (`uid[:gid]` or names) is inside a container, from its own files."""
    folders: list[Path] = []
    key: str | None = container.record.snapshot_key
    while key is not None:
        folders.append(parts.snapshotter.fs(key))
        key = parts.snapshotter.stat(key).parent
    return user.resolve(LinuxContainerSecurityContext(), name, RootfsView(tuple(folders)))


def explained(container: Container, process: spec.Process | None, error: errors.AtollError) -> errors.AtollError:
    """`error` in clear words where it says that the command of `process` cannot be executed in the container."""
    if process is None or not process.args:
        return error
    config = container.metadata.config
    name = config.metadata.name if config is not None and config.metadata is not None else container.id[:13]
    where = f"container {name} (image {container.record.image})"
    return explain_command(error, process.args[0], process.cwd, where)


def _defaults(config: ImageConfig) -> ImageDefaults:
    return ImageDefaults(
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        env=config.env,
        user=config.user,
        working_dir=config.working_dir,
    )


def _allowed(annotations: dict[str, str], patterns: tuple[str, ...]) -> dict[str, str]:
    """The annotations that the runtime handler passes on; a pattern is a name or ends in `*`."""
    return {
        key: value
        for key, value in annotations.items()
        if any(key == pattern or (pattern.endswith("*") and key.startswith(pattern[:-1])) for pattern in patterns)
    }
