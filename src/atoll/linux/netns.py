"""Network namespaces pinned by a bind mount, so that they live without a process in them.

No function changes a namespace of the calling thread or of the process: whatever must happen inside a
namespace happens on a short-lived thread of its own, which ends there (unshare(2) and setns(2) with
CLONE_NEWNET act on the calling thread only).

The folder that holds the pins is a mount of its own, private first and then shared: pins do not show
up twice through the parent's peer group, and a mount namespace cloned while a pod lives (a service with
PrivateTmp, a container that mounts /run) loses its copy of a pin when we unmount ours. With a private
folder such a copy would keep the namespace, its veth and its bridge port alive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from atoll.linux import syscalls, userns
from atoll.linux.userns import IDMap

T = TypeVar("T")

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

_folder_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class NamespaceId:
    """Tells one living namespace from every other of this boot, whatever the path it is reached by."""

    device: int
    inode: int


def create(path: Path, users: IDMap | None = None) -> NamespaceId:
    """Make a fresh network namespace with `lo` up and pin it at `path`.

    With `users` a new user namespace with these ids owns it, which lives as long. Blocks for about a millisecond.
    Raises `FileExistsError` where `path` exists, `OSError` for anything the kernel refuses; nothing is left then.
    """
    _prepare_folder(path.parent)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    try:
        if users is not None:
            with userns.made(users, network=True) as pid:
                syscalls.mount(f"/proc/{pid}/ns/net", path, flags=syscalls.MS_BIND)
            inside(path, lambda: set_link_up("lo"))
        else:
            _on_own_thread(lambda: _unshare_and_pin(path))
        return identity(path)
    except BaseException:
        remove(path)
        raise


def pin(source: Path, path: Path) -> NamespaceId:
    """Pin the existing namespace `source` (such as /proc/<pid>/ns/net) at `path`; errors as `create`."""
    _prepare_folder(path.parent)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    try:
        syscalls.mount(source, path, flags=syscalls.MS_BIND)
        return identity(path)
    except BaseException:
        remove(path)
        raise


def remove(path: Path) -> None:
    """Drop the pin at `path`; idempotent.

    The namespace ends when nothing else refers to it; the kernel then deletes its links by itself, after
    the call. Pins stacked by mistake are all dropped.
    """
    _unmount_all(path)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def identity(path: Path) -> NamespaceId:
    """The namespace pinned at `path`. Raises `FileNotFoundError`; `NotPinned` where a plain file is there."""
    status = path.stat()
    if status.st_dev != os.stat("/proc/thread-self/ns/net").st_dev:
        raise NotPinned(errno.EINVAL, "no namespace is mounted here", str(path))
    return NamespaceId(status.st_dev, status.st_ino)


class NotPinned(OSError):
    """The file is there but no namespace is mounted on it, as after a reboot or a stray umount."""


def exists(path: Path) -> bool:
    """Whether a namespace is pinned at `path`."""
    try:
        identity(path)
    except (FileNotFoundError, NotPinned):
        return False
    return True


def pins(folder: Path) -> list[Path]:
    """Every file of `folder`, pinned or left over, sorted; none where the folder is missing."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def remove_folder(folder: Path) -> None:
    """Drop every pin of `folder`, then the folder's own mount and the folder; idempotent."""
    for path in pins(folder):
        remove(path)
    _unmount_all(folder)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def inside(path: Path, work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own inside the namespace at `path`; blocks until it ends."""

    def enter() -> T:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # what is none must not hold us up
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
        finally:
            os.close(fd)
        return work()

    return _on_own_thread(enter)


def set_link_up(name: str) -> None:
    """Bring the link `name` of the calling thread's namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sh22x", name.encode(), 0)
        flags: int = struct.unpack_from("h", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags | IFF_UP))


def _unshare_and_pin(path: Path) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    set_link_up("lo")
    syscalls.mount("/proc/thread-self/ns/net", path, flags=syscalls.MS_BIND)


def _unmount_all(path: Path) -> None:
    while True:
        try:
            syscalls.umount2(path, syscalls.MNT_DETACH)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: not a mount point (any more)
                raise
            return


def _prepare_folder(folder: Path) -> None:
    """Make `folder` a mount of its own, private and then shared (see the module's docstring)."""
    try:
        syscalls.mount(None, folder, flags=syscalls.MS_SHARED)  # fails with EINVAL where it is no mount point yet
        return
    except FileNotFoundError:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    with _folder_lock:
        try:
            syscalls.mount(None, folder, flags=syscalls.MS_SHARED)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            syscalls.mount(folder, folder, flags=syscalls.MS_BIND)
            syscalls.mount(None, folder, flags=syscalls.MS_PRIVATE)
            syscalls.mount(None, folder, flags=syscalls.MS_SHARED)


def _on_own_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1, thread_name_prefix="atoll-netns") as thread:
        return thread.submit(work).result()
