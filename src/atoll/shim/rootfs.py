"""The mounts that make a root filesystem, as a Create request lists them."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.api.containerd_types_pb2 import Mount as MountMessage
from atoll.linux import mounts, syscalls

STACKED_LIMIT = 64
MAPPED = "mounts"
"""The folder beside the root file system with a container's mapped mounts (see `mapped`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootMount:
    """One mount; `target` is a path inside the root filesystem, empty for the root itself."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, message: MountMessage) -> RootMount:
        """From the wire; `InvalidArgument` for a target that leaves the root filesystem."""
        if ".." in Path(message.target).parts or "\0" in message.target + message.source:
            raise errors.InvalidArgument(f"mount target {message.target!r}: leaves the root filesystem")
        return cls(type=message.type, source=message.source, target=message.target, options=tuple(message.options))


_WRONG_MOUNT = (errno.ENODEV, errno.ENOENT, errno.ENOTDIR, errno.ENOTBLK, errno.EINVAL)
"""What the kernel says of a type that it has not, and of a source or an option that is none (mount(2))."""


def mount_root(wanted: tuple[RootMount, ...], rootfs: Path) -> None:
    """Make the folder and mount all in order; an error names the mount, and the earlier ones are undone."""
    rootfs.mkdir(mode=0o711, exist_ok=True)
    done = False
    try:
        for mount in wanted:
            target = rootfs / mount.target.lstrip("/")
            try:
                mounts.mount(mount.type, mount.source, target, mount.options)
            except OSError as error:
                kind = errors.InvalidArgument if error.errno in _WRONG_MOUNT else errors.Internal
                raise kind(f"mount {mount.type} {mount.source} on {target}: {error.strerror}") from error
        done = True
    finally:
        if not done:
            unmount_root(rootfs)


def unmount_root(rootfs: Path) -> None:
    """Unmount everything at and below the folder, which stays, and the mapped mounts beside it, which go.

    Idempotent. Raises `OSError`.
    """
    mapped = rootfs.with_name(MAPPED)
    if mapped.is_dir():
        for place in mapped.iterdir():
            mounts.unmount_tree(place)
            place.rmdir() if place.is_dir() else place.unlink()
        mapped.rmdir()
    for _ in range(STACKED_LIMIT):
        try:
            syscalls.umount2(rootfs, syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # nothing is mounted (any more)
                return
            break
    mounts.unmount_tree(rootfs)
