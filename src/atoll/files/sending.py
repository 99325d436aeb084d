"""A file or a tree becomes frames: small files many to a frame, big ones as descriptors or in parts.

What it sends it opens safely: nothing but regular files, no link followed below the top. It goes folder by folder, so
that memory is one folder's names and one frame.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll import errors
from atoll.files import wire
from atoll.files.root import MAX_DEPTH, pseudo, reopen, reopen_folder

PART_BYTES = 1 << 20
MAX_SKIPPED = 100


@dataclass(slots=True)
class Sender:
    """Sends one tree over `channel`. `may_pass` says of an open file whether its descriptor may be given away."""

    channel: wire.Channel
    may_pass: Callable[[int], bool]
    check: Callable[[], None]
    """Called behind each frame; raises to stop."""
    files: int = 0
    size: int = 0
    skipped: list[bytes] = field(default_factory=list[bytes])
    last: bytes = b""
    _items: list[wire.Item] = field(default_factory=list[wire.Item])
    _bytes: int = 0
    _fds: list[int] = field(default_factory=list[int])

    def send(self, held: int, name: str) -> None:
        """What the O_PATH descriptor `held` is, as the top; the caller sends `End` or `Done` behind it."""
        found = os.fstat(held)
        try:
            if stat.S_ISDIR(found.st_mode):
                folder = reopen_folder(held, name)
                self._add(wire.Item(b"", wire.FOLDER, stat.S_IMODE(found.st_mode), found.st_mtime_ns))
                self._folder(folder, b"", name, found.st_dev, 0)
            else:
                self._file(reopen(held, os.O_RDONLY, name), b"")
            self._flush()
        finally:
            for fd in self._fds:
                os.close(fd)
            self._fds = []

    def _folder(self, fd: int, path: bytes, shown: str, device: int, depth: int) -> None:
        """Everything in an open folder, which is closed; folders on the kernel's own file systems are left out."""
        if depth > MAX_DEPTH:
            os.close(fd)
            raise errors.FailedPrecondition(f"{shown}: more than {MAX_DEPTH} folders deep")
        folders: list[str] = []
        try:
            with os.scandir(fd) as found:
                for one in found:
                    below = os.fsencode(one.name) if not path else b"%b/%b" % (path, os.fsencode(one.name))
                    with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                        if one.is_dir(follow_symlinks=False):
                            folders.append(one.name)
                        elif one.is_file(follow_symlinks=False):
                            self._child(fd, one.name, below)
                        elif one.is_symlink():
                            self._link(fd, one.name, below)
                        else:
                            self._skip(below)
            for name in folders:
                below = os.fsencode(name) if not path else b"%b/%b" % (path, os.fsencode(name))
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    child = os.open(name, flags, dir_fd=fd)
                    self._descend(child, below, f"{shown}/{name}", device, depth + 1)
        finally:
            os.close(fd)

    def _descend(self, child: int, path: bytes, shown: str, device: int, depth: int) -> None:
        found = os.fstat(child)
        if found.st_dev != device and pseudo(child) is not None:
            os.close(child)
            self._skip(path)
            return
        self._add(wire.Item(path, wire.FOLDER, stat.S_IMODE(found.st_mode), found.st_mtime_ns))
        self._folder(child, path, shown, found.st_dev, depth)

    def _child(self, folder: int, name: str, path: bytes) -> None:
        held = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(held).st_mode):
                self._skip(path)
                return
            fd = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(held)
        self._file(fd, path)

    def _file(self, fd: int, path: bytes) -> None:
        """Send an open file, which is closed."""
        keep = False
        try:
            found = os.fstat(fd)
            mode, mtime_ns, size = stat.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_size
            self.files += 1
            self.size += size
            if size <= wire.INLINE_BYTES:
                data = os.read(fd, wire.INLINE_BYTES + 1) if size else b""
                if len(data) <= wire.INLINE_BYTES:
                    self._add(wire.Item(path, wire.FILE, mode, mtime_ns, len(data), data))
                    return
                os.lseek(fd, 0, os.SEEK_SET)  # it grows
            if self.may_pass(fd):
                keep = True
                self._fds.append(fd)
                self._add(wire.Item(path, wire.FILE, mode, mtime_ns, size, fd=True))
            else:
                self._parts(fd, wire.Item(path, wire.FILE, mode, mtime_ns, size, more=True))
        finally:
            if not keep:
                os.close(fd)

    def _parts(self, fd: int, item: wire.Item) -> None:
        self._add(item)
        self._flush()
        left = item.size
        while left > 0 and (data := os.read(fd, min(PART_BYTES, left))):
            left -= len(data)
            self.channel.send(wire.Data(data))
            self.check()
        self.channel.send(wire.Data(b"", more=False))

    def _link(self, folder: int, name: str, path: bytes) -> None:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        target = os.fsencode(os.readlink(name, dir_fd=folder))
        self.files += 1
        self._add(wire.Item(path, wire.SYMLINK, 0, found.st_mtime_ns, 0, target))

    def _skip(self, path: bytes) -> None:
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(path)

    def _add(self, item: wire.Item) -> None:
        self._items.append(item)
        self._bytes += len(item.data) + len(item.path) + 64
        if self._bytes >= wire.BATCH_BYTES or len(self._items) >= wire.BATCH_ITEMS or len(self._fds) >= wire.MAX_FDS:
            self._flush()

    def _flush(self) -> None:
        items, fds = self._items, self._fds
        if not items:
            return
        self.channel.send(wire.Items(items), fds)
        self.last = items[-1].path
        self._items, self._fds, self._bytes = [], [], 0
        for fd in fds:
            os.close(fd)
        self.check()


def count(held: int) -> tuple[int, int]:
    """How many files and bytes a tree has, about: a look ahead for those who show how far it is."""
    if not stat.S_ISDIR(os.fstat(held).st_mode):
        return 1, os.fstat(held).st_size
    files = size = 0
    for _, folders, names, fd in os.fwalk(".", dir_fd=held, follow_symlinks=False):
        if pseudo(fd) is not None:
            folders.clear()
            continue
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
            files += 1
    return files, size
