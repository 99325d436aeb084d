"""The folders below a snapshotter's root; blocking calls, to be run off the loop.

    <root>/snapshots/<number>/fs      the files
    <root>/snapshots/<number>/work    overlay's work folder, of an active snapshot only
    <root>/snapshots/.trash/<n>       renamed aside, being deleted

A container may have made its tree as deep and as odd as it likes: deletion follows no symlink, crosses no
mount and needs a bounded number of open files. Where the kernel refuses to delete something, as an immutable
file, all else goes, by a way that does not recurse and never builds a path longer than two names.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from atoll import errors
from atoll.ledger.tree import remove_tree
from atoll.linux.files import sync_folder
from atoll.linux.spreading import spread
from atoll.linux.userns import IDMap

DEFAULT_ROOT_MODE = 0o755
_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """The folders of one snapshotter."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "snapshots"
        self._trash = self.folder / ".trash"
        self._names = itertools.count()

    def make(self) -> None:
        """Make the folders that hold all others; idempotent."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._trash.mkdir(exist_ok=True, mode=0o700)
        spread(self.folder)

    def settle(self) -> None:
        """Make the names in these folders durable."""
        sync_folder(self._trash)
        sync_folder(self.folder)

    def fs(self, number: int) -> Path:
        return self.folder / str(number) / "fs"

    def work(self, number: int) -> Path:
        return self.folder / str(number) / "work"

    def numbers(self) -> set[int]:
        """The numbers of the snapshot folders on the disk."""
        return {int(name) for name in os.listdir(self.folder) if name.isdecimal()}

    def create(self, number: int, *, like: int | None, work: bool, users: IDMap | None = None) -> None:
        """Make the folder `number`; its root has the owner and mode of `like`'s, as overlay shows the upper's.

        With `users` the owner is the one that stands for that owner in their user namespace, root where none does.
        Nothing is left where it fails.
        """
        folder = self.folder / str(number)
        os.mkdir(folder, 0o711)
        try:
            fs = self.fs(number)
            os.mkdir(fs, DEFAULT_ROOT_MODE)
            model = os.stat(self.fs(like)) if like is not None else None
            uid, gid = (model.st_uid, model.st_gid) if model is not None else (0, 0)
            if users is not None:
                uid, gid = users.on_host(uid, gid)
            if uid or gid:
                os.chown(fs, uid, gid)
            os.chmod(fs, stat.S_IMODE(model.st_mode) if model is not None else DEFAULT_ROOT_MODE)
            if work:
                os.mkdir(self.work(number), 0o711)
        except OSError:
            self.delete(number)
            raise

    def forget_volatile(self, number: int) -> None:
        """Drop the mark that forbids a second mount of a `volatile` overlay; nothing where there is none.

        The mark says that a crash may have lost data (Documentation/filesystems/overlayfs, "Volatile
        mount"); the caller mounts again because the machine has not crashed since.
        """
        try:
            os.rename(self.work(number) / "work" / "incompat", self._aside())
        except FileNotFoundError:
            return
        self.empty_trash()

    def drop_work(self, number: int) -> None:
        """Delete the work folder, of a snapshot that has become immutable."""
        work = self.work(number)
        if work.is_dir():
            os.rename(work, self._aside())
            self.empty_trash()

    def discard(self, number: int) -> bool:
        """Rename the folder aside, so that no name leads to it; False where there is none."""
        try:
            os.rename(self.folder / str(number), self._aside())
        except FileNotFoundError:
            return False
        except OSError:  # a read-only disk says so before it looks whether the folder is there
            if os.path.lexists(self.folder / str(number)):
                raise
            return False
        return True

    def delete(self, number: int) -> None:
        """Discard the folder and delete it now; idempotent."""
        if self.discard(number):
            self.empty_trash()

    def sweep(self, numbers: Iterable[int]) -> None:
        """Delete the folders `numbers` and what was renamed aside before; idempotent."""
        for number in numbers:
            self.discard(number)
        self.empty_trash()

    def empty_trash(self) -> None:
        """Delete what was renamed aside; safe to run twice at a time; what the kernel refuses stays."""
        for entry in list(os.scandir(self._trash)):
            if _unlink(entry):
                continue
            try:
                remove_tree(Path(entry.path))
            except errors.AtollError:
                self._flatten(Path(entry.path))

    def _flatten(self, top: Path) -> None:
        """Delete the tree `top` in the trash, renaming each sub-folder that is not empty to the trash first."""
        pending = [top]
        while pending:
            folder = pending.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in list(entries):
                    if not _unlink(entry):
                        aside = self._aside()
                        with contextlib.suppress(OSError):  # immutable, or the other sweeper was quicker
                            os.rename(entry.path, aside)
                            pending.append(aside)
            with contextlib.suppress(OSError):  # as above; the next sweep tries again
                os.rmdir(folder)

    def _aside(self) -> Path:
        while True:
            path = self._trash / f"{os.getpid()}-{next(self._names)}"
            if not os.path.lexists(path):
                return path


def _unlink(entry: os.DirEntry[str]) -> bool:
    """Delete a file or an empty folder; False where it is a folder with entries."""
    if not entry.is_dir(follow_symlinks=False):
        with contextlib.suppress(OSError):
            os.unlink(entry.path)
        return True
    try:
        os.rmdir(entry.path)
    except OSError as error:
        return error.errno not in (errno.ENOTEMPTY, errno.EEXIST)
    return True


def sync(folder: Path) -> None:
    """Write all that is dirty in the file system of `folder` to the disk: syncfs(2)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
