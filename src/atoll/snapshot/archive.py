"""The writable layer of a container as an archive in the form of an image's layer.

Overlay's own marks become those of the image specification (layer.md): a device 0/0 is the file `.wh.<name>`, a folder
that is opaque has a file `.wh..wh..opq`. Nothing is followed: a symbolic link is stored as one.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
OVERLAY = ("trusted.overlay.", "user.overlay.")
PAX_XATTR = "SCHILY.xattr."
"""The key under which the programs that write archives keep an extended attribute."""


def write(folder: Path, target: Path) -> None:
    """Archive what is in `folder`, the upper folder of an overlay, to the new file `target`. Blocks; `OSError`."""
    with target.open("xb") as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        _add_children(archive, folder)


def _add_children(archive: tarfile.TarFile, top: Path) -> None:
    left = [(top, "")]
    while left:
        folder, inside = left.pop()
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{inside}{entry.name}"
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                add_mark(archive, f"{inside}.wh.{entry.name}", status)
            elif not stat.S_ISSOCK(status.st_mode):
                add(archive, Path(entry.path), name)
                if stat.S_ISDIR(status.st_mode):
                    if is_opaque(entry.path):
                        add_mark(archive, f"{name}/.wh..wh..opq", status)
                    left.append((Path(entry.path), f"{name}/"))


def add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add one file or folder, without what is in it; overlay's own attributes are left out."""
    info = archive.gettarinfo(path, arcname=name)
    for key in os.listxattr(path, follow_symlinks=False):
        if not key.startswith(OVERLAY):
            value = os.getxattr(path, key, follow_symlinks=False)
            info.pax_headers = {**info.pax_headers, PAX_XATTR + key: value.decode("utf-8", "surrogateescape")}
    if not info.isreg():
        archive.addfile(info)
        return
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        archive.addfile(info, file)


def add_mark(archive: tarfile.TarFile, name: str, like: os.stat_result) -> None:
    """Add an empty file whose name says something of others."""
    info = tarfile.TarInfo(name)
    info.uid, info.gid, info.mtime, info.mode = like.st_uid, like.st_gid, like.st_mtime, 0o600
    archive.addfile(info, io.BytesIO())


def is_opaque(folder: str) -> bool:
    """Whether a folder of a layer hides what is below it."""
    return any(name in os.listxattr(folder, follow_symlinks=False) for name in OPAQUE)
