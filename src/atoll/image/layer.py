"""Writing the entries of one layer as the files of one overlay snapshot.

Works in the current folder, which the confined process has made its root; names never lead out of
it, here and by the kernel. Every file below was made by this writer, so what a name leads to is known
without asking the kernel.

Rules (OCI image-spec "Layer Filesystem Changeset"; overlayfs documentation):
  .wh.NAME        hides NAME of the layers below: a character device 0/0
  .wh..wh..opq    hides all that the layers below have in the folder: xattr trusted.overlay.opaque
  .wh..wh.*       other marks of aufs: ignored
  ..              refused; a leading `/` is the layer's root
  through a link  only where the link leads, inside this layer, to a folder of this layer
  hard link       only to a file of this layer
  device          made as asked, never opened (the mount has nodev); 0/0 would be a whiteout: refused
A folder that is needed but has no entry is implied: its owner and mode are those of the layers below,
so the caller is told which they are.
"""

from __future__ import annotations

import errno
import os
import stat

from atoll import errors
from atoll.image.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    FIFO,
    FOLDER,
    HARD_LINK,
    SYMLINK,
    Entry,
    TarReader,
)

OPAQUE_XATTR = "trusted.overlay.opaque"
WHITEOUT_PREFIX = ".wh."
OPAQUE_NAME = ".wh..wh..opq"
_XATTRS = ("user.", "security.capability", "system.posix_acl_access", "system.posix_acl_default")
_MAX_LINKS = 40
_CHUNK = 1 << 20
_DISK_BLOCK = 4096
_MADE, _LINK, _WHITEOUT, _FOLDER = "file", "link", "whiteout", "folder"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class LayerWriter:
    """Writes one layer into the current folder; call `write` for each entry, then `finish`.

    A `plain` archive is no layer: it has no whiteouts and may have no devices.
    """

    def __init__(self, *, max_entries: int, plain: bool = False) -> None:
        self._plain = plain
        self.bytes = 0
        self.inodes = 1
        self._max_entries = max_entries
        self._entries = 0
        self._nodes: dict[str, str] = {"": _FOLDER}
        self._targets: dict[str, str] = {}
        self._folders: dict[str, Entry | None] = {"": None}

    def write(self, entry: Entry, archive: TarReader) -> None:
        """Make what `entry` says; raises `InvalidArgument` naming it where it is hostile or impossible."""
        self._entries += 1
        if self._entries > self._max_entries:
            raise errors.InvalidArgument(f"more than {self._max_entries} entries; raise max_layer_entries to allow it")
        try:
            self._write(entry, archive)
        except OSError as error:
            raise _refusal(entry.name, error) from error

    def _write(self, entry: Entry, archive: TarReader) -> None:
        path = clean(entry.name)
        if not path:
            if entry.type != FOLDER:
                raise errors.InvalidArgument(f"{entry.name!r}: the root of the layer must be a folder")
            self._folders[""] = entry
            return
        parent, _, base = path.rpartition("/")
        if self._nodes.get(parent) != _FOLDER:
            parent = self._enter(parent)
        path = f"{parent}/{base}" if parent else base
        if base.startswith(WHITEOUT_PREFIX) and not self._plain:
            self._hide(parent, base)
        elif entry.type == FOLDER:
            self._folder(path, entry)
        else:
            self._make_way(path)
            self._make(path, entry, archive)
            self.inodes += entry.type != HARD_LINK

    def _make(self, path: str, entry: Entry, archive: TarReader) -> None:
        if entry.type == SYMLINK:
            if not entry.link:
                raise errors.InvalidArgument(f"{entry.name}: a symlink to nothing")
            os.symlink(entry.link, path)
            self._nodes[path], self._targets[path] = _LINK, entry.link
        elif entry.type == HARD_LINK:
            self._hard_link(path, entry)
            return
        elif entry.type in (CHARACTER, BLOCK_DEVICE, FIFO):
            self._special(path, entry)
            self._nodes[path] = _MADE
        else:
            self._file(path, entry, archive)
            self._nodes[path] = _MADE
            return
        if entry.uid or entry.gid:
            os.lchown(path, entry.uid, entry.gid)
        if entry.type != SYMLINK:
            os.chmod(path, entry.mode)
        _set_xattrs(path, entry)
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)

    def _file(self, path: str, entry: Entry, archive: TarReader) -> None:
        descriptor = os.open(path, _CREATE, entry.mode)
        try:
            if entry.sparse is None:
                while part := archive.data(_CHUNK):
                    _write_all(descriptor, part)
            else:
                for offset, size in entry.sparse:
                    os.lseek(descriptor, offset, os.SEEK_SET)
                    while size and (part := archive.data(min(size, _CHUNK))):
                        _write_all(descriptor, part)
                        size -= len(part)
                os.ftruncate(descriptor, entry.real_size)
            if entry.uid or entry.gid:
                os.fchown(descriptor, entry.uid, entry.gid)
            if entry.uid or entry.gid or entry.mode & 0o7000:
                os.fchmod(descriptor, entry.mode)  # writing and chown clear set-ID bits
            if entry.xattrs:
                _set_xattrs(path, entry)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(descriptor)
        self.bytes += -(-entry.size // _DISK_BLOCK) * _DISK_BLOCK

    def _special(self, path: str, entry: Entry) -> None:
        if self._plain:
            raise errors.InvalidArgument(
                f"{entry.name}: a device or a pipe, which has no place in an archive of images"
            )
        if entry.type == FIFO:
            os.mkfifo(path, entry.mode)
            return
        if entry.type == CHARACTER and entry.major == 0 and entry.minor == 0:
            raise errors.InvalidArgument(f"{entry.name}: a character device 0/0, which would pass for a whiteout")
        if entry.major >= 1 << 12 or entry.minor >= 1 << 20:
            raise errors.InvalidArgument(f"{entry.name}: a device number out of range")
        kind = stat.S_IFCHR if entry.type == CHARACTER else stat.S_IFBLK
        os.mknod(path, kind | entry.mode, os.makedev(entry.major, entry.minor))

    def _hard_link(self, path: str, entry: Entry) -> None:
        target = clean(entry.link)
        parent, _, base = target.rpartition("/")
        parent = self._resolve(parent, entry.name)
        target = f"{parent}/{base}" if parent else base
        kind = self._nodes.get(target)
        if kind not in (_MADE, _LINK) or target == path:
            raise errors.InvalidArgument(f"{entry.name}: a hard link to {entry.link!r}, which is no file of this layer")
        os.link(target, path, follow_symlinks=False)
        self._nodes[path] = kind
        if kind == _LINK:
            self._targets[path] = self._targets[target]

    def _folder(self, path: str, entry: Entry | None) -> None:
        kind = self._nodes.get(path)
        if kind != _FOLDER:
            self._make_way(path)
            os.mkdir(path, 0o755)
            self._nodes[path] = _FOLDER
            self.inodes += 1
            self.bytes += _DISK_BLOCK
            if kind == _WHITEOUT:  # hidden below, and made anew here
                os.setxattr(path, OPAQUE_XATTR, b"y")
        if entry is not None or path not in self._folders:
            self._folders[path] = entry

    def _hide(self, parent: str, base: str) -> None:
        if base == OPAQUE_NAME:
            os.setxattr(parent or ".", OPAQUE_XATTR, b"y")
            return
        hidden = base.removeprefix(WHITEOUT_PREFIX)
        if hidden in ("", ".", ".."):
            raise errors.InvalidArgument(f"{base}: a whiteout of nothing")
        if hidden.startswith(WHITEOUT_PREFIX):
            return
        path = f"{parent}/{hidden}" if parent else hidden
        kind = self._nodes.get(path)
        if kind is None:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
            self._nodes[path] = _WHITEOUT
            self.inodes += 1
        elif kind == _FOLDER:
            os.setxattr(path, OPAQUE_XATTR, b"y")

    def _make_way(self, path: str) -> None:
        """Delete what an earlier entry, or a whiteout, left at `path`."""
        kind = self._nodes.get(path)
        if kind is None:
            return
        if kind == _FOLDER:
            os.rmdir(path)
            self._folders.pop(path, None)
        else:
            os.unlink(path)
            self._targets.pop(path, None)
        del self._nodes[path]
        self.inodes -= 1

    def _enter(self, path: str) -> str:
        """The folder `path`, with links of this layer followed and what is missing made."""
        here = ""
        for name in path.split("/"):
            below = f"{here}/{name}" if here else name
            kind = self._nodes.get(below)
            if kind == _LINK:
                here = self._resolve(below, path)
            elif kind == _MADE:
                raise errors.InvalidArgument(f"{path}: {below} is a file of this layer, not a folder")
            else:
                if kind != _FOLDER:
                    self._folder(below, None)
                here = below
        return here

    def _resolve(self, path: str, wanted: str) -> str:
        """The real folder that `path` leads to inside this layer; refused where there is none."""
        pending = path.split("/")[::-1] if path else []
        here = ""
        links = 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if not here:
                    raise errors.InvalidArgument(f"{wanted}: leads out of the layer through the link {path!r}")
                here = here.rpartition("/")[0]
                continue
            below = f"{here}/{name}" if here else name
            kind = self._nodes.get(below)
            if kind == _LINK:
                links += 1
                target = self._targets[below]
                if links > _MAX_LINKS:
                    raise errors.InvalidArgument(f"{wanted}: too many links")
                if target.startswith("/"):
                    here = ""
                pending.extend(target.split("/")[::-1])
            elif kind == _FOLDER:
                here = below
            else:
                raise errors.InvalidArgument(f"{wanted}: {path!r} does not lead to a folder of this layer")
        return here

    def finish(self) -> list[str]:
        """Set what the folders' entries say, last because filling a folder changes it; the implied folders."""
        implied: list[str] = []
        for path, entry in self._folders.items():
            if entry is None:
                implied.append(path)
                continue
            place = path or "."
            try:
                if entry.uid or entry.gid:
                    os.chown(place, entry.uid, entry.gid, follow_symlinks=False)
                os.chmod(place, entry.mode)
                _set_xattrs(place, entry)
                os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
            except OSError as error:
                raise _refusal(entry.name, error) from error
        return implied


def clean(name: str) -> str:
    """`name` below the root, without `.` and empty parts; raises `InvalidArgument` for `..`."""
    name = name.removeprefix("./")
    if "//" in name or "/." in name or name[:1] in (".", "/") or name[-1:] == "/":
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise errors.InvalidArgument(f"{name!r}: a name that leads out of the layer")
        return "/".join(parts)
    return name


def _set_xattrs(path: str, entry: Entry) -> None:
    for name, value in entry.xattrs.items():
        if name.startswith(_XATTRS) and not name.startswith("user.overlay."):
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError as error:
                # user.* is refused on symlinks and devices: xattr(7); a file system may have no xattrs at all.
                if error.errno not in (errno.EPERM, errno.ENOTSUP) or not name.startswith("user."):
                    raise


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _refusal(name: str, error: OSError) -> errors.AtollError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.ResourceExhausted(f"{name}: no space left for the layer; free some or remove images")
    if error.errno == errno.EFBIG:
        return errors.ResourceExhausted(f"{name}: larger than max_layer_bytes allows")
    return errors.InvalidArgument(f"{name!r}: cannot be made: {error.strerror}")
