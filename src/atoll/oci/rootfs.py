"""Files of an image read before its root file system is mounted.

The daemon asks an image's /etc/passwd who a user is while there are only layer folders: the lower
folders of an overlay, the topmost first (one folder for a plain root). `RootfsView` looks a path up as
the overlay would: upper entries hide lower ones, whiteouts delete, opaque folders cut off what is below;
symlinks are followed inside this view and can never lead out of it.
Source: Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

SYMLINK_LIMIT = 40
OPAQUE_ATTRIBUTES = ("trusted.overlay.opaque", "user.overlay.opaque")


class RootfsView:
    """A read-only view of stacked layer folders, topmost first; opens nothing until asked."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self._layers = tuple(layers)

    def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        """The file at `path` inside the view; None where there is none, where it is no regular file, or the way
        there is a loop. Raises `OSError` EFBIG beyond `limit_bytes`, and for a layer that cannot be read."""
        found = self._find(path)
        if found is None or not stat.S_ISREG(found.lstat().st_mode):
            return None
        # Nothing in an image can make this hang or follow: it is a regular file, and no link.
        fd = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:
            content = stream.read(limit_bytes + 1)
        if len(content) > limit_bytes:
            raise OSError(errno.EFBIG, f"is larger than {limit_bytes} bytes", path)
        return content

    def exists(self, path: str) -> bool:
        """Whether there is anything at `path` inside the view, its symlinks followed."""
        return self._find(path) is not None

    def _find(self, path: str) -> Path | None:
        """The real path of what `path` means, never a symlink itself."""
        pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        stack: list[tuple[Path, ...]] = [self._layers]
        links = 0
        while pending:
            name = pending.pop()
            if name == "..":
                stack = stack[:-1] or stack
                continue
            entries = _lookup(stack[-1], name)
            if not entries:
                return None
            mode = entries[0].lstat().st_mode
            if stat.S_ISLNK(mode):
                links += 1
                if links > SYMLINK_LIMIT:
                    return None
                target = os.readlink(entries[0])
                if target.startswith("/"):
                    stack = stack[:1]
                pending.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
            elif stat.S_ISDIR(mode):
                stack.append(entries)
            else:
                return entries[0] if not pending else None
        return stack[-1][0] if stack[-1] else None


def _lookup(folders: tuple[Path, ...], name: str) -> tuple[Path, ...]:
    """What `name` is in the merged folder: one file, or the folders that merge into one; empty where absent."""
    merged: list[Path] = []
    for folder in folders:
        entry = folder / name
        try:
            status = entry.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            break
        if not stat.S_ISDIR(status.st_mode):
            return tuple(merged) or (entry,)
        merged.append(entry)
        if _is_opaque(entry):
            break
    return tuple(merged)


def _is_opaque(folder: Path) -> bool:
    for attribute in OPAQUE_ATTRIBUTES:
        try:
            if os.getxattr(folder, attribute, follow_symlinks=False) == b"y":
                return True
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
                raise
    return False
