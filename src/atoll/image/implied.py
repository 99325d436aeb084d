"""Folders that a layer needs but does not describe take owner, mode, times and xattrs from the layers below.

In an overlay the uppermost folder's attributes are the ones seen. A layer that has only `a/b/file` must
not change `a` and `a/b`, so once all layers are unpacked each such folder is made like the one that it
covers. Symlinks are not followed. Blocking calls, to be run off the loop.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atoll.image.layer import OPAQUE_XATTR

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def inherit(folder: Path, implied: Sequence[str], lowers: Sequence[Path]) -> None:
    """Make each of the `implied` folders below `folder` like the same one of `lowers`, which are top first."""
    for path in implied:
        with contextlib.ExitStack() as descriptors:
            target = _walk(folder, path, descriptors)
            if target is None or target.covered:
                continue  # gone again, or in an opaque folder, which covers what is below
            source = _find(lowers, path, descriptors)
            if source is not None:
                _copy(source, target.descriptor)


def _find(lowers: Sequence[Path], path: str, descriptors: contextlib.ExitStack) -> int | None:
    for lower in lowers:
        try:
            found = _walk(lower, path, descriptors)
        except NotADirectoryError:  # a whiteout, a file or a link covers what is below
            return None
        if found is not None:
            return found.descriptor
        if _covers(lower, path, descriptors):
            return None
    return None


class _Folder(NamedTuple):
    descriptor: int
    covered: bool  # a folder above it is opaque
    opaque: bool


def _walk(root: Path, path: str, descriptors: contextlib.ExitStack) -> _Folder | None:
    """The open folder `path` below `root`; None where it is missing."""
    here = os.open(root, _OPEN)
    descriptors.callback(os.close, here)
    covered, opaque = False, _is_opaque(here)
    for name in path.split("/") if path else ():
        try:
            here = os.open(name, _OPEN, dir_fd=here)
        except FileNotFoundError:
            return None
        descriptors.callback(os.close, here)
        covered, opaque = covered or opaque, _is_opaque(here)
    return _Folder(here, covered, opaque)


def _covers(lower: Path, path: str, descriptors: contextlib.ExitStack) -> bool:
    """Whether an opaque folder above the missing `path` hides it in the layers further below."""
    while path:
        path = path.rpartition("/")[0]
        found = _walk(lower, path, descriptors)
        if found is not None:
            return found.covered or found.opaque
    return False


def _is_opaque(descriptor: int) -> bool:
    try:
        return os.getxattr(descriptor, OPAQUE_XATTR) == b"y"
    except OSError:
        return False


def _copy(source: int, target: int) -> None:
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(("trusted.overlay.", "security.selinux")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
