"""What a tree takes on the disk, counted whole or, where it was counted before, anew only where it may have changed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.snapshot.records import Usage

BLOCK_BYTES = 512
"""Of st_blocks (stat(2)), whatever the file system's own."""
TICK_NS = 20_000_000
"""A folder may change again within a tick of the file system's clock, and keep its time."""
MAX_KNOWN = 256


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder without files, which looks as it did for as long as it has this time and inode."""

    inode: int
    changed_ns: int
    folders: tuple[str, ...]


class Tree:
    """One tree, counted as often as one likes.

    A folder in which nothing but folders were is read again only after its time has changed; files may grow without a
    sign, so theirs are read each time. A container that writes nothing has no files of its own.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._known: dict[str, _Folder] = {}

    def count(self) -> Usage:
        """A file with several links counts once; what vanishes meanwhile does not, nor what no path is long enough for.

        Raises `NotFound` where the tree itself is not there.
        """
        before, self._known = self._known, {}
        pass_ = _Pass(before=before, after=self._known, settled_ns=time.time_ns() - TICK_NS)
        try:
            pass_.enter(self._root)
        except FileNotFoundError as error:
            raise errors.NotFound(f"{self._root}: is not there") from error
        while pass_.pending:
            try:
                pass_.enter(pass_.pending.pop())
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                    raise
        return Usage(bytes=pass_.blocks * BLOCK_BYTES, inodes=pass_.inodes)


class _Pass:
    """One walk through the tree."""

    def __init__(self, before: dict[str, _Folder], after: dict[str, _Folder], settled_ns: int) -> None:
        self.pending: list[str] = []
        self.blocks = 0
        self.inodes = 0
        self._before = before
        self._after = after
        self._settled_ns = settled_ns
        self._linked: set[int] = set()

    def enter(self, path: str) -> None:
        """Count a folder and its files; its folders are left to be entered."""
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            raise NotADirectoryError(path)
        known = self._before.get(path)
        if known is None or (known.inode, known.changed_ns) != (info.st_ino, info.st_mtime_ns):
            known = self._read(path, info)
        else:
            self._after[path] = known
            self.pending += known.folders
        self.blocks += info.st_blocks
        self.inodes += 1

    def _read(self, path: str, info: os.stat_result) -> None:
        folders: list[str] = []
        has_files = False
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                has_files = True
                with contextlib.suppress(FileNotFoundError):
                    self._add(entry.stat(follow_symlinks=False))
        self.pending += folders
        if not has_files and info.st_mtime_ns < self._settled_ns and len(self._after) < MAX_KNOWN:
            self._after[path] = _Folder(info.st_ino, info.st_mtime_ns, tuple(folders))

    def _add(self, info: os.stat_result) -> None:
        if info.st_nlink > 1:
            if info.st_ino in self._linked:
                return
            self._linked.add(info.st_ino)
        self.blocks += info.st_blocks
        self.inodes += 1


def measure(root: Path) -> Usage:
    """`Tree.count`, once."""
    return Tree(root).count()
