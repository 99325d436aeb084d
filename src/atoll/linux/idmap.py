"""Mounts that show the files of the host with other owners: those that they have in a user namespace.

Source: mount_setattr(2), "ID-mapped mounts".
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Generator
from pathlib import Path

from atoll.linux import syscalls, userns
from atoll.linux.host import kernel_version
from atoll.linux.userns import IDMap, IDRange

OVERLAY_KERNEL = (5, 19)
"""From where on overlayfs takes ID-mapped lower folders."""
_ANY = (IDRange(container_id=0, host_id=1 << 20, length=1),)


@contextlib.contextmanager
def tree(source: Path, users: int, *, recursive: bool) -> Generator[int]:
    """A descriptor of a copy of the mount that `source` lies on, from there on, with the ids of the user namespace of
    the descriptor `users`; it goes with the block unless it is moved to a place. Raises `OSError` naming the source.

    EINVAL: a file system cannot do it, that of `source` or, with `recursive`, one that is mounted below.
    """
    below = syscalls.AT_RECURSIVE if recursive else 0
    fd = syscalls.open_tree(source, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | below)
    try:
        try:
            syscalls.mount_setattr(
                "",
                folder_fd=fd,
                attr_set=syscalls.MOUNT_ATTR_IDMAP,
                userns_fd=users,
                recursive=recursive,
            )
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(source)) from None
        yield fd
    finally:
        os.close(fd)


def bind(source: Path, target: Path, users: int) -> None:
    """Mount `source`, with all that is mounted below it, at `target`, which is made; errors as `tree`."""
    if stat.S_ISDIR(source.stat().st_mode):
        target.mkdir(mode=0o711, exist_ok=True)
    else:
        target.touch(mode=0o600)
    with tree(source, users, recursive=True) as fd:
        syscalls.move_mount(fd, target)


def problem(folder: Path) -> str:
    """Why the files below `folder` cannot be shown with other owners as the layers of a container; empty where they
    can. Makes a user namespace, so it blocks for some milliseconds."""
    if kernel_version(os.uname().release) < OVERLAY_KERNEL:
        return "overlayfs takes ID-mapped layers from Linux 5.19 on"
    try:
        with userns.made(IDMap(uids=_ANY, gids=_ANY), network=False) as pid:
            users = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                probe = tempfile.TemporaryDirectory(prefix=".idmap-", dir=folder)
                with probe as probed, tree(Path(probed), users, recursive=False):
                    return ""
            finally:
                os.close(users)
    except OSError as error:
        return f"ID-mapped mounts of {folder}: {error.strerror} ({error.filename})"
