"""The mount table, mounts from option strings, and unmounting that always gets there.

Source: proc_pid_mountinfo(5), mount(2), mount(8), mount_setattr(2).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.linux import syscalls
from atoll.linux.syscalls import (
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_DIRSYNC,
    MS_I_VERSION,
    MS_LAZYTIME,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SHARED,
    MS_SILENT,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MS_UNBINDABLE,
    UMOUNT_NOFOLLOW,
)

UNMOUNT_ROUNDS = 16
# The kernel copies one page of option text and cuts the rest off silently (mount(2)).
DATA_LIMIT_BYTES = 4095

_SET = {
    "bind": MS_BIND,
    "dirsync": MS_DIRSYNC,
    "iversion": MS_I_VERSION,
    "lazytime": MS_LAZYTIME,
    "mand": MS_MANDLOCK,
    "noatime": MS_NOATIME,
    "nodev": MS_NODEV,
    "nodiratime": MS_NODIRATIME,
    "noexec": MS_NOEXEC,
    "nosuid": MS_NOSUID,
    "nosymfollow": MS_NOSYMFOLLOW,
    "rbind": MS_BIND | MS_REC,
    "relatime": MS_RELATIME,
    "remount": MS_REMOUNT,
    "ro": MS_RDONLY,
    "silent": MS_SILENT,
    "strictatime": MS_STRICTATIME,
    "sync": MS_SYNCHRONOUS,
}
_CLEAR = {
    "async": MS_SYNCHRONOUS,
    "atime": MS_NOATIME,
    "dev": MS_NODEV,
    "diratime": MS_NODIRATIME,
    "exec": MS_NOEXEC,
    "loud": MS_SILENT,
    "noiversion": MS_I_VERSION,
    "nolazytime": MS_LAZYTIME,
    "nomand": MS_MANDLOCK,
    "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME,
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
    "symfollow": MS_NOSYMFOLLOW,
    "defaults": 0,
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "unbindable": MS_UNBINDABLE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
_RECURSIVE = {
    "rro": MOUNT_ATTR_RDONLY,
    "rnosuid": MOUNT_ATTR_NOSUID,
    "rnodev": MOUNT_ATTR_NODEV,
    "rnoexec": MOUNT_ATTR_NOEXEC,
}
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountInfo:
    """One line of mountinfo; `propagation` holds its optional fields, such as `shared:5`."""

    id: int
    parent: int
    major: int
    minor: int
    root: str
    mount_point: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    filesystem: str
    source: str
    super_options: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        return any(field.startswith("shared:") for field in self.propagation)

    @property
    def is_slave(self) -> bool:
        return any(field.startswith("master:") for field in self.propagation)


def parse_mountinfo(text: str) -> list[MountInfo]:
    """Parse a whole mountinfo file, in its order; raises `ValueError` naming the line that is none."""
    return [_parse_line(line) for line in text.split("\n") if line]


def _parse_line(line: str) -> MountInfo:
    head, found, tail = line.partition(" - ")
    fields, kind = head.split(" "), tail.split(" ")
    if not found or len(fields) < 6 or len(kind) < 3:
        raise ValueError(f"not a mountinfo line: {line[:200]!r}")
    major, _, minor = fields[2].partition(":")
    return MountInfo(
        id=int(fields[0]),
        parent=int(fields[1]),
        major=int(major),
        minor=int(minor),
        root=unescape(fields[3]),
        mount_point=unescape(fields[4]),
        options=tuple(fields[5].split(",")),
        propagation=tuple(fields[6:]),
        filesystem=unescape(kind[0]),
        source=unescape(kind[1]),
        super_options=tuple(kind[2].split(",")),
    )


def unescape(text: str) -> str:
    """Undo the kernel's octal escapes of space, tab, line break, backslash and `#`."""
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)


def read_mountinfo(pid: int | str = "self") -> list[MountInfo]:
    """The mounts that process `pid` sees; paths as `os.fsdecode` gives them."""
    return parse_mountinfo(os.fsdecode(Path(f"/proc/{pid}/mountinfo").read_bytes()))


def mount_of(path: Path, table: Sequence[MountInfo]) -> MountInfo:
    """The mount that `path`, absolute and without symlinks, lies on: the deepest, and of a stack the topmost."""
    best: MountInfo | None = None
    for entry in table:
        if _is_at_or_below(str(path), entry.mount_point) and (
            best is None or len(entry.mount_point) >= len(best.mount_point)
        ):
            best = entry
    if best is None:
        raise FileNotFoundError(errno.ENOENT, "no mount holds this path", str(path))
    return best


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted exactly at `path`, bind mounts of the same file system too."""
    real = os.path.realpath(path)
    return any(entry.mount_point == real for entry in read_mountinfo())


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """Option strings sorted into what the kernel takes: flags, propagation, recursive attributes, text."""

    flags: int = 0
    propagation: tuple[int, ...] = ()
    recursive_attributes: int = 0
    data: str = ""


def parse_options(options: Iterable[str]) -> MountOptions:
    """Sort options as fstab and the runtime spec write them; what is no flag is the file system's."""
    flags, attributes = 0, 0
    propagation: list[int] = []
    data: list[str] = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option in _RECURSIVE:
            attributes |= _RECURSIVE[option]
        elif option:
            data.append(option)
    return MountOptions(
        flags=flags, propagation=tuple(propagation), recursive_attributes=attributes, data=",".join(data)
    )


def mount(filesystem: str, source: str, target: Path, options: Iterable[str] = ()) -> None:
    """Mount `source` at the existing `target`; the options may ask for several steps, all done or undone.

    A bind mount takes flags such as `ro` by a second step. Raises `InvalidArgument` for options longer than the
    kernel's page, `OSError` naming the target.
    """
    parsed = parse_options(options)
    if len(os.fsencode(parsed.data)) > DATA_LIMIT_BYTES:
        raise errors.InvalidArgument(
            f"{target}: mount options are longer than {DATA_LIMIT_BYTES} bytes; use fewer or shorter layer paths"
        )
    is_bind = bool(parsed.flags & MS_BIND)
    first = parsed.flags & (MS_BIND | MS_REC) if is_bind and not parsed.flags & MS_REMOUNT else parsed.flags
    syscalls.mount(source or None, target, filesystem or None, first, parsed.data or None)
    try:
        extra = parsed.flags & ~(MS_BIND | MS_REC | MS_REMOUNT)
        if is_bind and extra and not parsed.flags & MS_REMOUNT:
            syscalls.mount(None, target, None, MS_BIND | MS_REMOUNT | extra)
        for flag in parsed.propagation:
            syscalls.mount(None, target, None, flag)
        if parsed.recursive_attributes:
            syscalls.mount_setattr(target, attr_set=parsed.recursive_attributes, recursive=True)
    except OSError:
        if not parsed.flags & MS_REMOUNT:
            syscalls.umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW)
        raise


def unmount(target: Path) -> None:
    """Unmount what is mounted at `target`, lazily where it is busy; idempotent, missing paths are fine."""
    try:
        syscalls.umount2(target, UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.EBUSY:
            syscalls.umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW)
        elif error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            raise


def unmount_tree(path: Path) -> None:
    """Unmount everything at and below `path`, the newest first, stacked mounts too; idempotent.

    Bounded: after `UNMOUNT_ROUNDS` readings of the mount table that still show mounts, raises `OSError` EBUSY
    naming one.
    """
    real = os.path.realpath(path)
    for _ in range(UNMOUNT_ROUNDS):
        below = [entry for entry in read_mountinfo() if _is_at_or_below(entry.mount_point, real)]
        if not below:
            return
        for entry in reversed(below):
            unmount(Path(entry.mount_point))
    raise OSError(errno.EBUSY, "new mounts keep appearing below this path", str(path))


def _is_at_or_below(path: str, folder: str) -> bool:
    return folder in ("/", path) or path.startswith(folder + "/")
