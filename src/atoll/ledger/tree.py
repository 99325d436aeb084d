"""Removal of a folder tree that a container has written to: it trusts nothing in there.

No symbolic link is followed, no mount is crossed (bind mounts of the same filesystem count too), and a
tree of any depth is removed with a bounded number of open files: what is deeper than `MAX_DEPTH` is
first moved up.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from pathlib import Path

from atoll import errors
from atoll.linux import syscalls

MAX_DEPTH = 64

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Remove the folder `path` and all in it; fine where there is none. Blocks.

    Raises `FailedPrecondition` where something is mounted on it or below it, which it leaves alone,
    and where `path` is no folder; `Unavailable` names a file that could not be removed. A second
    call goes on where the first one failed.
    """
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _Removal(path).run(parent)
    except NotADirectoryError as error:
        raise errors.FailedPrecondition(f"{path}: is not a folder, so it is not ours to remove") from error
    except OSError as error:
        raise errors.Unavailable(f"{path}: cannot be removed: {error.strerror} ({error.filename})") from error
    finally:
        os.close(parent)


class _Removal:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._moved = itertools.count()
        self._top = -1

    def run(self, parent: int) -> None:
        self._remove(self._path.name, parent, 1)

    def _remove(self, name: str, parent: int, depth: int) -> None:
        """Remove one folder; what somebody else removes at the same time is fine."""
        with contextlib.suppress(FileNotFoundError):
            if _removed(name, parent, errno.EBUSY):
                return
            while True:
                self._empty(name, parent, depth)
                if _removed(name, parent):
                    return

    def _empty(self, name: str, parent: int, depth: int) -> None:
        fd = self._open(name, parent)
        try:
            if depth == 1:
                self._top = fd
            is_more = True
            while is_more:
                names, is_more = syscalls.folder_entries(fd)
                for entry, told in names:
                    is_folder = _is_folder(entry, fd) if told is None else told
                    self._remove_entry(entry, fd, depth, is_folder=is_folder)
        finally:
            os.close(fd)

    def _open(self, name: str, parent: int) -> int:
        try:
            return _open_same_mount(name, parent)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise errors.FailedPrecondition(f"{self._path}: {name!r} is a mount point: unmount it first") from error

    def _remove_entry(self, name: str, fd: int, depth: int, *, is_folder: bool) -> None:
        if not is_folder:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
        elif depth < MAX_DEPTH:
            self._remove(name, fd, depth + 1)
        else:
            self._move_up(name, fd)

    def _move_up(self, name: str, fd: int) -> None:
        """Give the deep folder a free name at the top, where the next round finds it."""
        while True:
            target = f".deep-{next(self._moved)}"
            try:
                os.stat(target, dir_fd=self._top, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(name, target, src_dir_fd=fd, dst_dir_fd=self._top)
                return


def _removed(name: str, parent: int, *also: int) -> bool:
    """Remove a folder without entries; False where it has some, or where the kernel says one of `also`."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, *also):
            return False
        raise
    return True


def _open_same_mount(name: str, parent: int) -> int:
    """Open a folder on the mount of its parent; `OSError` EXDEV where it is on another. openat2(2), Linux 5.6."""
    try:
        return syscalls.openat2(name, _FOLDER, resolve=syscalls.RESOLVE_NO_XDEV, folder_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # a kernel before it, or a filter of system calls
            raise
    return open_compared(name, parent)


def open_compared(name: str, parent: int) -> int:
    """The same by comparing the mounts of both."""
    fd = os.open(name, _FOLDER, dir_fd=parent)
    try:
        if mount_id(fd) != mount_id(parent):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def mount_id(fd: int) -> int:
    """The mount that an open file is on (proc(5), fdinfo); works for `O_PATH` too."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.partition(":")[2])
    raise errors.Unimplemented("this kernel does not tell the mount of an open file: needs Linux 3.15")


def _is_folder(name: str, parent: int) -> bool:
    """Asked where the file system does not say it with the name; one that is gone is none."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
