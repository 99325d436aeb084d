"""What is mounted in a container: the kernel's file systems, the pod's files, and the mounts asked for.

A mount asked for replaces one of ours with the same destination; one on /dev replaces ours below it too.
Source: the CRI's Mount message (propagation, recursive read-only); config.md of the runtime spec.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from atoll import errors
from atoll.linux.cgroup_layout import Layout
from atoll.linux.host import HostFacts
from atoll.linux.mounts import MountInfo, mount_of, read_mountinfo
from atoll.oci import spec
from atoll.oci.config import IDMapping, Mount, MountPropagation
from atoll.oci.features import RuntimeFeatures

RECURSIVE_READ_ONLY_KERNEL = (5, 12)
PATH_LIMIT = 4095
POD_FILES = ("hostname", "hosts", "resolv.conf")

TTY_GROUP = 5
"""Of terminals, wherever it is among a container's groups."""

_PROC = spec.Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev"))
_DEV = spec.Mount(
    destination="/dev",
    type="tmpfs",
    source="tmpfs",
    options=("nosuid", "strictatime", "mode=755", "size=65536k"),
)
_PTS = spec.Mount(
    destination="/dev/pts",
    type="devpts",
    source="devpts",
    options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", f"gid={TTY_GROUP}"),
)
_SHM = spec.Mount(
    destination="/dev/shm",  # noqa: S108  the container's own
    type="tmpfs",
    source="shm",
    options=("nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
)
_MQUEUE = spec.Mount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=("nosuid", "noexec", "nodev"))

_PROPAGATION = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """Everything that decides about mounts.

    `asked` are the request's, `made` more of them as they are to be in the spec, `volumes` the image's own volumes,
    which give way to them. `files` is the pod's folder of hostname, hosts and resolv.conf, `shm` its shared memory;
    None leaves them out. `has_tty_group`: `TTY_GROUP` is a group of the container's users.
    """

    asked: tuple[Mount, ...] = ()
    made: tuple[spec.Mount, ...] = ()
    volumes: tuple[Mount, ...] = ()
    files: Path | None = None
    shm: Path | None = None
    has_tty_group: bool = True
    privileged: bool = False
    read_only_root: bool = False
    host_network_in_user_namespace: bool = False
    cgroup_namespace: bool = False
    cgroup_writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounts:
    """The mounts in the order to make them, and the propagation that the root file system needs for them."""

    mounts: tuple[spec.Mount, ...]
    rootfs_propagation: str


def resolve(request: MountRequest, host: HostFacts, runtime: RuntimeFeatures) -> Mounts:
    """The mounts of a container.

    Looks at the host's file system: follows symlinks of host paths, and makes one that is missing a folder (0755).
    Raises `InvalidArgument` naming the mount, `FailedPrecondition` for what this host or runtime cannot do.
    """
    asked = [*(_bind(mount, host, runtime) for mount in request.asked), *request.made]
    taken = {mount.destination for mount in asked}
    asked += [bound for mount in request.volumes if (bound := _bind(mount, host, runtime)).destination not in taken]
    taken.update(mount.destination for mount in asked)
    ours = [mount for mount in _pod_files(request) if mount.destination not in taken]
    _check_propagation(request.asked)
    own = sorted([*asked, *ours], key=lambda mount: mount.destination.count("/"))
    return Mounts(
        mounts=(*_kept(kernel_mounts(request, host), own), *own), rootfs_propagation=_rootfs_propagation(request.asked)
    )


def kernel_mounts(request: MountRequest, host: HostFacts) -> tuple[spec.Mount, ...]:
    """/proc, /dev and what is below it, /sys and the cgroup hierarchy."""
    mode = "rw" if request.privileged else "ro"
    sys = spec.Mount(destination="/sys", type="sysfs", source="sysfs", options=("nosuid", "noexec", "nodev", mode))
    if request.host_network_in_user_namespace:
        # sysfs shows the network namespace's owner's devices and may be mounted only by that owner (sysfs(5)).
        options = ("rbind", "rro", "nosuid", "nodev", "noexec")
        sys = spec.Mount(destination="/sys", type="bind", source="/sys", options=options)
    writable = request.privileged or request.cgroup_writable
    options = ("nosuid", "noexec", "nodev", "relatime", "rw" if writable else "ro")
    if host.hierarchies.layout is Layout.V2 and not request.cgroup_namespace:
        # The hierarchy has one set of options: a mount that leaves these out would turn them off for the host.
        options += _unified_options(host)
    cgroup = spec.Mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=options)
    pts = _PTS
    if not request.has_tty_group:  # devpts takes no group that its user namespace does not have
        pts = msgspec.structs.replace(_PTS, options=_PTS.options[:-1])
    return (_PROC, _DEV, pts, _SHM, _MQUEUE, sys, cgroup)


def _unified_options(host: HostFacts) -> tuple[str, ...]:
    keep = ("nsdelegate", "memory_recursiveprot")
    for entry in read_mountinfo():
        if entry.filesystem == "cgroup2" and Path(entry.mount_point) == host.hierarchies.unified:
            return tuple(option for option in keep if option in entry.super_options)
    return ()


def _kept(ours: Sequence[spec.Mount], own: Sequence[spec.Mount]) -> tuple[spec.Mount, ...]:
    taken = {mount.destination for mount in own}
    return tuple(
        mount
        for mount in ours
        if mount.destination not in taken and not ("/dev" in taken and mount.destination.startswith("/dev/"))
    )


def _pod_files(request: MountRequest) -> list[spec.Mount]:
    mode = "ro" if request.read_only_root else "rw"
    mounts: list[spec.Mount] = []
    if request.files is not None:
        for name in POD_FILES:
            source = request.files / name
            if source.exists():
                options = ("rbind", "rprivate", mode)
                mounts.append(spec.Mount(destination=f"/etc/{name}", type="bind", source=str(source), options=options))
    if request.shm is not None:
        options = ("rbind", "rprivate", "rw")
        mounts.append(spec.Mount(destination=_SHM.destination, type="bind", source=str(request.shm), options=options))
    return mounts


def _bind(mount: Mount, host: HostFacts, runtime: RuntimeFeatures) -> spec.Mount:
    place = destination(mount)
    if mount.recursive_read_only:
        if not mount.readonly or mount.propagation is not MountPropagation.PRIVATE:
            raise errors.InvalidArgument(f"mount {place}: recursive_read_only needs readonly and private propagation")
        if not runtime.recursive_read_only or host.kernel < RECURSIVE_READ_ONLY_KERNEL:
            raise errors.FailedPrecondition(
                f"mount {place}: {runtime.name} or this kernel cannot mount recursively read-only"
            )
    if (mount.uidMappings or mount.gidMappings) and not runtime.id_mapped_mounts:
        raise errors.FailedPrecondition(f"mount {place}: the ids of a mount cannot be mapped here")
    mode = "rro" if mount.recursive_read_only else "ro" if mount.readonly else "rw"
    source = _source(mount, place)
    if place == _PROC.destination and mount_of(Path(source), read_mountinfo()).filesystem != "proc":
        raise errors.InvalidArgument(f"mount {place}: {source} is no proc file system, and no process runs without one")
    return spec.Mount(
        destination=place,
        type="bind",
        source=source,
        options=("rbind", _PROPAGATION[mount.propagation], mode),
        uid_mappings=id_mappings(mount.uidMappings),
        gid_mappings=id_mappings(mount.gidMappings),
    )


def id_mappings(mappings: Sequence[IDMapping]) -> tuple[spec.IDMapping, ...]:
    """The request's id ranges in the words of the runtime spec; raises `InvalidArgument` for impossible ones."""
    for entry in mappings:
        if entry.length < 1 or entry.host_id < 0 or entry.container_id < 0:
            raise errors.InvalidArgument("id mapping: needs a length of at least 1 and ids that are not negative")
    return tuple(
        spec.IDMapping(containerID=entry.container_id, hostID=entry.host_id, size=entry.length) for entry in mappings
    )


def destination(mount: Mount) -> str:
    """Where a mount is in the container, clean; `InvalidArgument` for what is no place below its root."""
    path = mount.container_path
    if not path or "\0" in path or len(os.fsencode(path)) > PATH_LIMIT:
        raise errors.InvalidArgument(f"mount {path[:200]!r}: container_path must be a path of 1 to {PATH_LIMIT} bytes")
    # A relative path is one below the root, as it always was for containerd.
    clean = posixpath.normpath("/" + path.lstrip("/"))
    if clean == "/":
        raise errors.InvalidArgument("mount '/': container_path must not be the root")
    return clean


def _source(mount: Mount, destination: str) -> str:
    path = mount.host_path
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > PATH_LIMIT:
        raise errors.InvalidArgument(f"mount {destination}: host_path {path[:200]!r} must be an absolute path")
    try:
        real = os.path.realpath(path, strict=True)
    except FileNotFoundError:
        real = os.path.realpath(path)
        try:
            os.makedirs(real, mode=0o755, exist_ok=True)
        except OSError as error:
            raise errors.FailedPrecondition(f"mount {destination}: {path} cannot be made: {error.strerror}") from error
    except OSError as error:
        raise errors.InvalidArgument(f"mount {destination}: {path}: {error.strerror}") from error
    return real


def _check_propagation(mounts: Sequence[Mount]) -> None:
    table: list[MountInfo] | None = None
    for mount in mounts:
        if mount.propagation is MountPropagation.PRIVATE:
            continue
        table = table or read_mountinfo()
        entry = mount_of(Path(os.path.realpath(mount.host_path)), table)
        slave_will_do = mount.propagation is MountPropagation.HOST_TO_CONTAINER
        if not entry.is_shared and not (slave_will_do and entry.is_slave):
            raise errors.FailedPrecondition(
                f"mount {mount.container_path}: {mount.host_path} lies on {entry.mount_point}, which is not"
                f" shared{' or slave' if slave_will_do else ''}; try mount --make-rshared {entry.mount_point}"
            )


def _rootfs_propagation(mounts: Sequence[Mount]) -> str:
    asked = {mount.propagation for mount in mounts}
    if MountPropagation.BIDIRECTIONAL in asked:
        return "rshared"
    return "rslave" if MountPropagation.HOST_TO_CONTAINER in asked else ""
