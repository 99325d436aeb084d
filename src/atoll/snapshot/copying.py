"""A copy of an overlay's upper folder as it is on the disk: overlay's own marks, hard links and holes included.

Where the file system shares blocks between files (btrfs, xfs) no data is copied: FICLONE (ioctl_ficlone(2)). Elsewhere
data is, by the kernel, and holes stay holes. Nobody may write below the source meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

FICLONE = 0x40049409
CHUNK_BYTES = 64 << 20
_NO_CLONES = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ETXTBSY)


@dataclass(slots=True)
class Copied:
    """What a copy took: inodes, bytes of data that were copied, and bytes that are shared with the source."""

    inodes: int = 0
    copied_bytes: int = 0
    shared_bytes: int = 0


def copy_tree(source: Path, target: Path) -> Copied:
    """Make `target`, an empty folder, the same as `source`, root included; blocks. Raises `OSError`.

    No link is followed. The times of folders are set last, for each entry made in them changes them.
    """
    walk = _Copy()
    folders = [(str(source), str(target))]
    left = list(folders)
    while left:
        here, there = left.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                made = f"{there}/{entry.name}"
                if walk.add(entry, made):
                    left.append((entry.path, made))
                    folders.append((entry.path, made))
    for here, there in reversed(folders):
        dress(here, there, os.lstat(here))
    return walk.copied


class _Copy:
    """One walk: what is linked to what, and what was copied."""

    def __init__(self) -> None:
        self.copied = Copied()
        self._links: dict[tuple[int, int], str] = {}

    def add(self, entry: os.DirEntry[str], made: str) -> bool:
        """Copy one entry; whether it is a folder, which is still empty then."""
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(made, 0o700)
            self.copied.inodes += 1
            return True
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), made)
            if first != made:
                os.link(first, made, follow_symlinks=False)
                return False
        self.copied.inodes += 1
        if stat.S_ISREG(status.st_mode):
            self._add_file(entry.path, made, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(entry.path), made)
        else:
            os.mknod(made, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)
        dress(entry.path, made, status)
        return False

    def _add_file(self, source: str, made: str, status: os.stat_result) -> None:
        read = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME)
        try:
            write = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self._fill(read, write, status.st_size)
            finally:
                os.close(write)
        finally:
            os.close(read)

    def _fill(self, read: int, write: int, size: int) -> None:
        try:
            fcntl.ioctl(write, FICLONE, read)
        except OSError as error:
            if error.errno not in _NO_CLONES:
                raise
        else:
            self.copied.shared_bytes += size
            return
        os.ftruncate(write, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(read, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole to the end
                    return
                raise
            end = os.lseek(read, at, os.SEEK_HOLE)
            while at < end:
                done = os.copy_file_range(read, write, min(end - at, CHUNK_BYTES), at, at)
                if not done:
                    return  # the file became shorter: whoever wrote to it broke the promise
                at += done
                self.copied.copied_bytes += done


def dress(source: str, made: str, status: os.stat_result) -> None:
    """Give `made` the owner, mode, extended attributes and times of `source`; a link its own."""
    os.chown(made, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(made, stat.S_IMODE(status.st_mode))
    for key in os.listxattr(source, follow_symlinks=False):
        os.setxattr(made, key, os.getxattr(source, key, follow_symlinks=False), follow_symlinks=False)
    os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
