"""One thin function a system call that the standard library lacks.

Each returns what the kernel returns and raises `OSError` with the kernel's errno and the path or
object it was about. None keeps state, none interprets. The C functions release the interpreter lock
while they run. A call that changes the calling thread (unshare, setns, prctl) says so: never make it
on the daemon's loop thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 1 << 15
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4

CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_GET_SECCOMP = 21
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37

IN_MODIFY = 0x2
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400
IN_CLOEXEC = os.O_CLOEXEC
IN_NONBLOCK = os.O_NONBLOCK

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_ENTRY = struct.Struct("=QqHB")
"""The head of a linux_dirent64: inode, offset, length, type; then its name, to a zero byte."""
_ENTRIES_BYTES = 32 << 10
_LONGEST_ENTRY = 280
_DT_UNKNOWN, _DT_DIR = 0, 4
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277}

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _fail(subject: str | os.PathLike[str] | None) -> OSError:
    code = ctypes.get_errno()
    if subject is None:
        return OSError(code, os.strerror(code))
    return OSError(code, os.strerror(code), os.fspath(subject))


def _bytes(text: str | os.PathLike[str] | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def mount(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    filesystem: str | None = None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """mount(2); the error names `target`."""
    result: int = _libc.mount(_bytes(source), _bytes(target), _bytes(filesystem), ctypes.c_ulong(flags), _bytes(data))
    if result != 0:
        raise _fail(target)


def umount2(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(_bytes(target), ctypes.c_int(flags)) != 0:
        raise _fail(target)


def pivot_root(new_root: str | os.PathLike[str], put_old: str | os.PathLike[str]) -> None:
    """pivot_root(2)."""
    if _libc.pivot_root(_bytes(new_root), _bytes(put_old)) != 0:
        raise _fail(new_root)


def open_tree(path: str | os.PathLike[str], flags: int, *, folder_fd: int = AT_FDCWD) -> int:
    """open_tree(2) (Linux 5.2): a descriptor of the mount at `path`, close-on-exec; the caller closes it."""
    fd: int = _libc.syscall(
        _SYS_OPEN_TREE, ctypes.c_int(folder_fd), _bytes(path), ctypes.c_uint(flags | OPEN_TREE_CLOEXEC)
    )
    if fd < 0:
        raise _fail(path)
    return fd


def move_mount(tree_fd: int, target: str | os.PathLike[str]) -> None:
    """move_mount(2) (Linux 5.2) of the detached tree `tree_fd` to `target`."""
    if _libc.syscall(_SYS_MOVE_MOUNT, tree_fd, b"", AT_FDCWD, _bytes(target), MOVE_MOUNT_F_EMPTY_PATH) != 0:
        raise _fail(target)


def mount_setattr(
    path: str | os.PathLike[str],
    *,
    attr_set: int = 0,
    attr_clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    folder_fd: int = AT_FDCWD,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2) (Linux 5.12); `recursive` reaches every mount below. `userns_fd` goes with MOUNT_ATTR_IDMAP."""
    attributes = _MountAttr(attr_set, attr_clear, propagation, userns_fd)
    flags = (AT_RECURSIVE if recursive else 0) | (0 if os.fspath(path) else AT_EMPTY_PATH)
    if (
        _libc.syscall(
            _SYS_MOUNT_SETATTR,
            ctypes.c_int(folder_fd),
            _bytes(path),
            ctypes.c_uint(flags),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )
        != 0
    ):
        raise _fail(path)


def openat2(path: str, flags: int, *, resolve: int, folder_fd: int = AT_FDCWD, mode: int = 0) -> int:
    """openat2(2) (Linux 5.6) with `resolve`, close-on-exec; the caller closes the descriptor."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    fd: int = _libc.syscall(
        _SYS_OPENAT2, ctypes.c_int(folder_fd), _bytes(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    )
    if fd < 0:
        raise _fail(path)
    return fd


def folder_entries(fd: int) -> tuple[list[tuple[str, bool | None]], bool]:
    """The next names in an open folder, each with whether it is a folder (None: unsaid), and whether there may be more.

    getdents64(2): one call where `os.scandir` makes eight. `.` and `..` are left out.
    """
    buffer = ctypes.create_string_buffer(_ENTRIES_BYTES)
    used: int = _libc.getdents64(ctypes.c_int(fd), buffer, ctypes.c_size_t(_ENTRIES_BYTES))
    if used < 0:
        raise _fail(f"/proc/self/fd/{fd}")
    data, at = buffer.raw[:used], 0
    found: list[tuple[str, bool | None]] = []
    while at < used:
        _, _, length, kind = _ENTRY.unpack_from(data, at)
        name = data[at + _ENTRY.size : data.index(0, at + _ENTRY.size)]
        if name not in (b".", b".."):
            found.append((os.fsdecode(name), None if kind == _DT_UNKNOWN else kind == _DT_DIR))
        at += length
    return found, used > _ENTRIES_BYTES - _LONGEST_ENTRY


def unshare(flags: int) -> None:
    """unshare(2); acts on the calling thread."""
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        raise _fail(None)


def setns(fd: int, kind: int = 0) -> None:
    """setns(2); acts on the calling thread. `kind` is a CLONE_NEW* flag, 0 for any."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)) != 0:
        raise _fail(f"/proc/self/fd/{fd}")


def sethostname(name: str) -> None:
    """sethostname(2) in the UTS namespace of the calling thread."""
    encoded = name.encode()
    if _libc.sethostname(encoded, ctypes.c_size_t(len(encoded))) != 0:
        raise _fail(name)


def _prctl(option: int, argument: int | ctypes.Array[ctypes.c_char]) -> None:
    value = ctypes.c_ulong(argument) if isinstance(argument, int) else argument
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), value, zero, zero, zero) != 0:
        raise _fail(None)


def set_child_subreaper(on: bool) -> None:
    """Make this process the parent of its orphaned descendants (PR_SET_CHILD_SUBREAPER)."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(on))


def is_child_subreaper() -> bool:
    """Whether this process adopts its orphaned descendants."""
    value = ctypes.c_int(0)
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(PR_GET_CHILD_SUBREAPER), ctypes.byref(value), zero, zero, zero) != 0:
        raise _fail(None)
    return bool(value.value)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the space of a part of a file back, which then reads as zeros; its size stays (fallocate(2))."""
    if _libc.fallocate(ctypes.c_int(fd), ctypes.c_int(3), ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        raise _fail(f"/proc/self/fd/{fd}")


def set_death_signal(number: int) -> None:
    """Send this process the signal `number` when its parent ends; a change of credentials clears it (prctl(2))."""
    _prctl(PR_SET_PDEATHSIG, number)


def set_name(name: str) -> None:
    """Name the calling thread as `ps` shows it; the kernel keeps 15 bytes (PR_SET_NAME)."""
    _prctl(PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))


def inotify_init(flags: int = IN_CLOEXEC | IN_NONBLOCK) -> int:
    """inotify_init1(2); the caller closes the descriptor."""
    fd: int = _libc.inotify_init1(ctypes.c_int(flags))
    if fd < 0:
        raise _fail("inotify")
    return fd


def inotify_add_watch(fd: int, path: str | os.PathLike[str], mask: int) -> int:
    """inotify_add_watch(2); returns the watch descriptor."""
    watch: int = _libc.inotify_add_watch(ctypes.c_int(fd), _bytes(path), ctypes.c_uint32(mask))
    if watch < 0:
        raise _fail(path)
    return watch


def seccomp_action_available(action: int) -> bool:
    """Whether the kernel knows the seccomp return action `action` (SECCOMP_GET_ACTION_AVAIL)."""
    number = _SYS_SECCOMP.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "seccomp")
    value = ctypes.c_uint32(action)
    return _libc.syscall(ctypes.c_long(number), ctypes.c_uint(2), ctypes.c_uint(0), ctypes.byref(value)) == 0
