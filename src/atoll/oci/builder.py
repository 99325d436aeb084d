"""From what a container asks for to the runtime spec that makes it.

`container_spec` and `pause_spec` are pure but for four questions to the host: the image's account files,
host paths of mounts, device nodes, and a seccomp profile's file. They block for well under a millisecond on a local
disk, and are for a thread where a host path may be slow. Whatever this host cannot honour is an error;
nothing asked for is left out silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atoll import errors
from atoll.hardening import MASKED_PATHS, READONLY_PATHS
from atoll.linux.cgroup_layout import Layout
from atoll.linux.host import HostFacts
from atoll.oci import bpf, capabilities, devices, mounts, resources, seccomp, security, spec, sysctls, user, userns
from atoll.oci.config import (
    Device,
    IDMapping,
    KeyValue,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    Mount,
    NamespaceMode,
    NamespaceOption,
    SecurityProfile,
    UserNamespace,
)
from atoll.oci.features import RuntimeFeatures
from atoll.oci.rootfs import RootfsView

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PAUSE_CPU_SHARES = 2
PAUSE_OOM_SCORE_ADJ = -998


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDefaults:
    """The parts of an image's config that a container falls back to; `env` as `NAME=value`."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodContext:
    """What a pod gives its containers.

    Namespace paths such as /proc/<pid>/ns/net; None where the pod has none of its own. `files` is the folder of
    hostname, hosts and resolv.conf, `shm` the pod's /dev/shm.
    """

    hostname: str = ""
    network_namespace: Path | None = None
    ipc_namespace: Path | None = None
    uts_namespace: Path | None = None
    pid_namespace: Path | None = None
    user_namespace: Path | None = None
    userns_options: UserNamespace | None = None
    files: Path | None = None
    shm: Path | None = None
    privileged: bool = False

    @property
    def has_users(self) -> bool:
        """Whether it has a user namespace of its own."""
        return self.userns_options is not None and self.userns_options.mode is not NamespaceMode.NODE

    def has_group(self, gid: int) -> bool:
        """Whether its user namespace has the group; the host's has every one."""
        if self.userns_options is None or not self.has_users:
            return True
        return any(0 <= gid - one.container_id < one.length for one in self.userns_options.gids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpecRequest:
    """Everything that a container's runtime spec depends on.

    `rootfs_layers` are the folders that make up the root, topmost first, read for user names only; `rootfs` is the
    path written into the spec, relative to the bundle. `volumes` are the image's own volumes as bind mounts.
    `made_mounts` are as they are to be in the spec. `target_pid_namespace` is needed for pid mode TARGET.
    `unset_seccomp` applies where no profile is asked for.
    """

    id: str
    image: ImageDefaults
    pod: PodContext
    host: HostFacts
    runtime: RuntimeFeatures
    rootfs_layers: tuple[Path, ...]
    cgroups_path: str
    rootfs: str = "rootfs"
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[KeyValue, ...] = ()
    working_dir: str = ""
    tty: bool = False
    mounts: tuple[Mount, ...] = ()
    made_mounts: tuple[spec.Mount, ...] = ()
    volumes: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    security: LinuxContainerSecurityContext = field(default_factory=LinuxContainerSecurityContext)
    resources: LinuxContainerResources = field(default_factory=LinuxContainerResources)
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    hooks: spec.Hooks | None = None
    rlimits: tuple[spec.Rlimit, ...] = ()
    target_pid_namespace: Path | None = None
    privileged_without_host_devices: bool = False
    cgroup_writable: bool = False
    unset_seccomp: SecurityProfile | None = None
    seccomp_folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseSpecRequest:
    """Everything that a pause container's spec depends on; `security` is the pod's, in a container's words."""

    id: str
    image: ImageDefaults
    pod: PodContext
    host: HostFacts
    runtime: RuntimeFeatures
    rootfs_layers: tuple[Path, ...]
    cgroups_path: str
    namespaces: NamespaceOption
    rootfs: str = "rootfs"
    security: LinuxContainerSecurityContext = field(default_factory=LinuxContainerSecurityContext)
    sysctls: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    unset_seccomp: SecurityProfile | None = None
    seccomp_folder: Path | None = None


def container_spec(request: ContainerSpecRequest) -> spec.Spec:
    """The runtime spec of a container in a pod.

    Raises `InvalidArgument` naming the field, `FailedPrecondition` for what the host or runtime cannot honour.
    """
    asked, host, pod = request.security, request.host, request.pod
    if asked.privileged and not pod.privileged:
        raise errors.InvalidArgument("security_context.privileged: the pod is not privileged")
    namespaces = asked.namespace_options or NamespaceOption()
    _check_userns(namespaces.userns_options, pod)
    has_cgroup_namespace = host.hierarchies.layout is Layout.V2 and not asked.privileged
    mounted = mounts.resolve(
        mounts.MountRequest(
            asked=request.mounts,
            made=request.made_mounts,
            volumes=request.volumes,
            files=pod.files,
            shm=pod.shm,
            has_tty_group=pod.has_group(mounts.TTY_GROUP),
            privileged=asked.privileged,
            read_only_root=asked.readonly_rootfs,
            host_network_in_user_namespace=pod.has_users and pod.network_namespace is None,
            cgroup_namespace=has_cgroup_namespace,
            cgroup_writable=request.cgroup_writable,
        ),
        host,
        request.runtime,
    )
    found = devices.resolve(
        request.devices, all_devices=asked.privileged and not request.privileged_without_host_devices
    )
    labels = security.selinux_labels(None if asked.privileged else asked.selinux_options, host)
    if labels.mount:  # only a host with SELinux has labels
        for mount in request.mounts:
            if mount.selinux_relabel:
                security.relabel(os.path.realpath(mount.host_path), labels.mount)
    process = _process(request, labels)
    filtered = seccomp.resolve(
        seccomp.SeccompRequest(
            security=asked,
            capabilities=process.capabilities.bounding if process.capabilities else (),
            unset=request.unset_seccomp,
            folder=request.seccomp_folder,
        ),
        host,
        request.runtime,
    )
    return spec.Spec(
        oci_version=spec.OCI_VERSION,
        process=process,
        root=spec.Root(path=request.rootfs, readonly=asked.readonly_rootfs),
        mounts=mounted.mounts,
        hooks=request.hooks,
        annotations=_annotations(request.annotations, filtered.annotations),
        linux=spec.Linux(
            uid_mappings=_mappings(pod, "uids"),
            gid_mappings=_mappings(pod, "gids"),
            resources=resources.resolve(request.resources, host, found.rules),
            cgroups_path=request.cgroups_path,
            namespaces=_namespaces(request, namespaces, has_cgroup_namespace),
            devices=found.nodes,
            seccomp=filtered.profile,
            rootfs_propagation=mounted.rootfs_propagation,
            masked_paths=_hidden(request, asked.masked_paths, MASKED_PATHS, "masked_paths"),
            readonly_paths=_hidden(request, asked.readonly_paths, READONLY_PATHS, "readonly_paths"),
            mount_label=labels.mount,
        ),
    )


def _process(request: ContainerSpecRequest, labels: security.Labels) -> spec.Process:
    asked = request.security
    args = _args(request)
    return spec.Process(
        terminal=request.tty,
        user=user.resolve(asked, request.image.user, RootfsView(request.rootfs_layers)),
        args=args,
        env=_env(request),
        cwd=_working_dir(request.working_dir or request.image.working_dir),
        capabilities=capabilities.resolve(
            asked.capabilities, privileged=asked.privileged, available=request.host.capabilities
        ),
        rlimits=request.rlimits,
        no_new_privileges=asked.no_new_privs,
        apparmor_profile=security.apparmor_profile(asked, request.host),
        oom_score_adj=resources.oom_score_adj(request.resources.oom_score_adj, request.host),
        selinux_label=labels.process,
    )


def _args(request: ContainerSpecRequest) -> tuple[str, ...]:
    command, args = request.command, request.args
    if not command:
        # An image may spell "no entrypoint" as one empty string.
        command = request.image.entrypoint if request.image.entrypoint != ("",) else ()
        args = args or request.image.cmd
    argv = (*command, *args)
    if not argv:
        raise errors.InvalidArgument("command: neither the container nor its image names one")
    for text in argv:
        _check_text(text, "command")
    return argv


def _env(request: ContainerSpecRequest) -> tuple[str, ...]:
    """Later values replace earlier ones of the same name, in the earlier place."""
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": request.pod.hostname or os.uname().nodename}
    if request.tty:
        values["TERM"] = "xterm"
    values.update(_image_env(request.image.env))
    for entry in request.env:
        if not entry.key or "=" in entry.key:
            raise errors.InvalidArgument(f"envs: {entry.key[:60]!r} is no name of a variable")
        try:
            values[entry.key] = entry.value.decode()
        except UnicodeDecodeError:
            raise errors.InvalidArgument(f"envs: the value of {entry.key} is not UTF-8") from None
    for name, value in values.items():
        _check_text(name + value, f"envs: {name}")
    return tuple(f"{name}={value}" for name, value in values.items())


def _annotations(asked: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    if bpf.ANNOTATION in asked:
        raise errors.InvalidArgument(f"annotation {bpf.ANNOTATION}: would replace the seccomp filter; not for callers")
    return {**asked, **ours}


def _image_env(env: Iterable[str]) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in env)
    return {name: value for name, found, value in pairs if name and found}


def _working_dir(path: str) -> str:
    _check_text(path, "working_dir")
    if path and not path.startswith("/"):
        raise errors.InvalidArgument(f"working_dir: {path[:200]!r} is not absolute")
    return path or "/"


def _check_text(text: str, what: str) -> None:
    if "\0" in text:
        raise errors.InvalidArgument(f"{what}: holds a zero byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.InvalidArgument(f"{what}: is not UTF-8") from None


def _hidden(
    request: ContainerSpecRequest, asked: tuple[str, ...], usual: tuple[str, ...], name: str
) -> tuple[str, ...]:
    """The paths asked for. A request that names none cannot be told from one that wants none: it gets the usual ones,
    for the host's root could write the host's sysctls, save where the container's root is not the host's.
    """
    for path in asked:
        if not path.startswith("/") or "\0" in path:
            raise errors.InvalidArgument(f"{name}: {path[:200]!r} is not an absolute path")
    if request.security.privileged:
        return ()
    return asked or (() if request.pod.has_users else usual)


def _namespaces(
    request: ContainerSpecRequest, asked: NamespaceOption, has_cgroup_namespace: bool
) -> tuple[spec.Namespace, ...]:
    pod = request.pod
    found = [spec.Namespace(type="mount")]
    if asked.pid is NamespaceMode.CONTAINER:
        found.append(spec.Namespace(type="pid"))
    elif asked.pid is NamespaceMode.TARGET:
        found.append(_join("pid", request.target_pid_namespace, "the target container's"))
    elif asked.pid is NamespaceMode.POD:
        found.append(_join("pid", pod.pid_namespace, "the pod's"))
    if asked.ipc is not NamespaceMode.NODE:
        found.append(_join("ipc", pod.ipc_namespace, "the pod's"))
    if asked.network is not NamespaceMode.NODE:
        found.append(_join("network", pod.network_namespace, "the pod's"))
        found.append(_join("uts", pod.uts_namespace, "the pod's"))
    elif pod.uts_namespace is not None:
        found.append(_join("uts", pod.uts_namespace, "the pod's"))
    if pod.has_users:
        found.append(_join("user", pod.user_namespace, "the pod's"))
    if has_cgroup_namespace:
        found.append(spec.Namespace(type="cgroup"))
    return tuple(found)


def _join(kind: spec.NamespaceType, path: Path | None, whose: str) -> spec.Namespace:
    if path is None:
        raise errors.FailedPrecondition(f"namespace_options.{kind}: {whose} {kind} namespace is not there to join")
    return spec.Namespace(type=kind, path=str(path))


def _check_userns(asked: UserNamespace | None, pod: PodContext) -> None:
    if asked is None or (asked.mode is NamespaceMode.NODE and userns.is_host(asked) and not pod.has_users):
        return
    if asked != pod.userns_options:
        raise errors.InvalidArgument("namespace_options.userns_options: must be the pod's")


def _mappings(pod: PodContext, which: str) -> tuple[spec.IDMapping, ...]:
    if pod.userns_options is None or not pod.has_users:
        return ()
    ranges: tuple[IDMapping, ...] = getattr(pod.userns_options, which)
    return mounts.id_mappings(ranges)


def pause_spec(request: PauseSpecRequest) -> spec.Spec:
    """The runtime spec of a pod's pause container, which makes the pod's namespaces.

    Namespaces with a path in `pod` are joined, the others made. Errors as `container_spec`.
    """
    asked, host, image = request.security, request.host, request.image
    args = (*image.entrypoint, *image.cmd)
    if not args:
        raise errors.InvalidArgument(f"pause container {request.id}: its image names no command")
    labels = security.selinux_labels(None if asked.privileged else asked.selinux_options, host)
    granted = capabilities.resolve(None, privileged=False, available=host.capabilities)
    filtered = seccomp.resolve(
        seccomp.SeccompRequest(
            security=asked, capabilities=granted.bounding, unset=request.unset_seccomp, folder=request.seccomp_folder
        ),
        host,
        request.runtime,
    )
    return spec.Spec(
        oci_version=spec.OCI_VERSION,
        process=spec.Process(
            user=user.resolve(asked, image.user, RootfsView(request.rootfs_layers)),
            args=args,
            env=tuple(f"{name}={value}" for name, value in {"PATH": DEFAULT_PATH, **_image_env(image.env)}.items()),
            cwd=_working_dir(image.working_dir),
            capabilities=granted,
            no_new_privileges=True,
            oom_score_adj=resources.oom_score_adj(PAUSE_OOM_SCORE_ADJ, host),
            selinux_label=labels.process,
        ),
        root=spec.Root(path=request.rootfs, readonly=True),
        hostname=request.pod.hostname,
        mounts=_pause_mounts(request),
        annotations=_annotations(request.annotations, filtered.annotations),
        linux=spec.Linux(
            uid_mappings=_mappings(request.pod, "uids"),
            gid_mappings=_mappings(request.pod, "gids"),
            sysctl=sysctls.resolve(request.sysctls, request.namespaces),
            resources=spec.Resources(devices=(devices.DENY_ALL,), cpu=spec.CPU(shares=PAUSE_CPU_SHARES)),
            cgroups_path=request.cgroups_path,
            namespaces=_pause_namespaces(request),
            seccomp=filtered.profile,
            masked_paths=MASKED_PATHS,
            readonly_paths=READONLY_PATHS,
            mount_label=labels.mount,
        ),
    )


def _pause_mounts(request: PauseSpecRequest) -> tuple[spec.Mount, ...]:
    pod = request.pod
    kernel = mounts.kernel_mounts(
        mounts.MountRequest(
            has_tty_group=pod.has_group(mounts.TTY_GROUP),
            privileged=request.security.privileged,
            host_network_in_user_namespace=pod.has_users and request.namespaces.network is NamespaceMode.NODE,
        ),
        request.host,
    )
    options = ("rbind", "ro", "nosuid", "nodev", "noexec")
    binds = {"/dev/shm": pod.shm, "/etc/resolv.conf": pod.files / "resolv.conf" if pod.files else None}  # noqa: S108
    own = tuple(
        spec.Mount(destination=destination, type="bind", source=str(source), options=options)
        for destination, source in binds.items()
        if source is not None
    )
    taken = {mount.destination for mount in own} | {"/sys/fs/cgroup"}
    return (*(mount for mount in kernel if mount.destination not in taken), *own)


def _pause_namespaces(request: PauseSpecRequest) -> tuple[spec.Namespace, ...]:
    pod, asked = request.pod, request.namespaces
    found = [spec.Namespace(type="mount")]
    if asked.pid is not NamespaceMode.NODE:
        found.append(spec.Namespace(type="pid"))
    if asked.ipc is not NamespaceMode.NODE:
        found.append(spec.Namespace(type="ipc", path=str(pod.ipc_namespace or "")))
    if asked.network is not NamespaceMode.NODE:
        found.append(_join("network", pod.network_namespace, "the pod's"))
        found.append(spec.Namespace(type="uts", path=str(pod.uts_namespace or "")))
    if pod.has_users:
        found.append(spec.Namespace(type="user", path=str(pod.user_namespace or "")))
    return tuple(found)
