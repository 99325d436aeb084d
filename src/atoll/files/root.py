"""One folder as the root of all paths, and the few things that may be done below it.

Paths are resolved by openat2(2) with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS: `..`, absolute links and races end at
the root. A file is first held by O_PATH, which opens nothing, looked at, and only then opened as what it is: a FIFO
would wait, and the mere opening of a device may do something. What the kernel only pretends to have as files (procfs,
sysfs, cgroups) is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from atoll import errors
from atoll.files import wire
from atoll.linux import syscalls

RACES = 16
"""How often a resolution that lost against a rename is tried again (openat2(2), EAGAIN)."""
MAX_DEPTH = 512

# linux/magic.h, and cgroups
_PSEUDO = {
    0x9FA0: "procfs",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
    0x1CD1: "devpts",
    0x19800202: "mqueue",
    0xCAFE4A11: "bpf",
    0x0187: "autofs",
}
_OF_ERRNO: dict[int, type[errors.AtollError]] = {
    errno.ENOENT: errors.NotFound,
    errno.EEXIST: errors.AlreadyExists,
    errno.EACCES: errors.PermissionDenied,
    errno.EPERM: errors.PermissionDenied,
    errno.EROFS: errors.PermissionDenied,
    errno.ENOSPC: errors.ResourceExhausted,
    errno.EDQUOT: errors.ResourceExhausted,
    errno.ENOTEMPTY: errors.FailedPrecondition,
    errno.EBUSY: errors.FailedPrecondition,
    errno.ENOTDIR: errors.FailedPrecondition,
    errno.EISDIR: errors.FailedPrecondition,
    errno.ELOOP: errors.InvalidArgument,
    errno.EINVAL: errors.InvalidArgument,
    errno.ENAMETOOLONG: errors.InvalidArgument,
    errno.EXDEV: errors.FailedPrecondition,
    errno.EAGAIN: errors.Aborted,
}

_libc = ctypes.CDLL(None, use_errno=True)


def shown(path: str) -> str:
    """A path of the container in an error: absolute, printable."""
    return "/" + path.strip("/").encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def explained(path: str) -> Generator[None]:
    """Raise the kernel's refusals as ours, of the file `path`."""
    try:
        yield
    except OSError as error:
        kind = _OF_ERRNO.get(error.errno or 0, errors.Internal)
        raise kind(f"{shown(path)}: {(error.strerror or str(error)).lower()}") from error


@dataclass(frozen=True, slots=True)
class Ids:
    """How owners inside the container are called here: (inside, here, count) ranges; none for the same names."""

    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()

    def here(self, uid: int, gid: int) -> tuple[int, int]:
        """Raises `InvalidArgument` for an owner that the container has not."""
        return _mapped(self.uids, uid, back=False), _mapped(self.gids, gid, back=False)

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        return _mapped(self.uids, uid, back=True), _mapped(self.gids, gid, back=True)


def _mapped(ranges: tuple[tuple[int, int, int], ...], number: int, *, back: bool) -> int:
    if not ranges:
        return number
    for inside, here, count in ranges:
        first, other = (here, inside) if back else (inside, here)
        if first <= number < first + count:
            return other + number - first
    if back:
        return number  # of a layer, whose owners are the image's
    raise errors.InvalidArgument(f"owner {number}: is none of the container's user namespace")


class Root:
    """A folder by its descriptor, which stays the caller's. `owner` is whose the new files are, as named inside."""

    def __init__(self, fd: int, *, owner: tuple[int, int] | None = None, ids: Ids | None = None) -> None:
        self.fd = fd
        self.ids = ids or Ids()
        self.owner = self.ids.here(*owner) if owner is not None else None
        """As it is called here; None to leave it to the kernel."""
        self._mount = mount_id(fd)

    def is_own_mount(self, fd: int) -> bool:
        """Whether a file lies on the root's own mount, and not on one that the container may have made."""
        return mount_id(fd) == self._mount

    def hold(self, path: str, flags: int = 0) -> int:
        """A descriptor (O_PATH) of what is at `path`, links followed unless `flags` has O_NOFOLLOW; to be closed."""
        return self._open(path, os.O_PATH | flags)

    def _open(self, path: str, flags: int) -> int:
        for left in range(RACES, -1, -1):
            try:
                return syscalls.openat2(
                    path.strip("/") or ".",
                    flags,
                    resolve=syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS,
                    folder_fd=self.fd,
                )
            except OSError as error:
                if error.errno != errno.EAGAIN or not left:
                    raise
        raise AssertionError

    @contextlib.contextmanager
    def held(self, path: str, flags: int = 0) -> Generator[int]:
        fd = self.hold(path, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def place(self, path: str) -> Generator[tuple[int, str]]:
        """The folder that `path` is in, held, and its name there; raises `InvalidArgument` for the root itself."""
        folder, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise errors.InvalidArgument(f"path {path[:200]!r}: ends in no name of a file")
        with self.held(folder, os.O_DIRECTORY) as fd:
            yield fd, name

    def open_file(self, path: str) -> int:
        """A regular file, open for reading; raises `FailedPrecondition` for anything else."""
        with self.held(path) as held:
            return reopen(held, os.O_RDONLY, path)

    def open_for_writing(self, path: str, *, mode: int, append: bool) -> int:
        """A regular file, open for writing: the one that is there, emptied unless `append`, or a new one."""
        flags = os.O_APPEND if append else os.O_TRUNC
        for _ in range(RACES):
            try:
                with self.held(path) as held:
                    fd = reopen(held, os.O_WRONLY | flags, path)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError), self.place(path) as (folder, name):
                    require_real(folder, path)
                    return self.create(folder, name, 0o644 if mode < 0 else mode)
            else:
                if mode >= 0:
                    os.fchmod(fd, mode)
                return fd
        raise errors.Aborted(f"{shown(path)}: is made and removed all the time; or it is a link to nothing")

    def create(self, folder: int, name: str, mode: int) -> int:
        """A new file in a held folder, open for writing; raises `FileExistsError`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, mode & 0o777, dir_fd=folder)
        if self.owner is not None:
            found = os.fstat(fd)
            if (found.st_uid, found.st_gid) != self.owner:
                os.fchown(fd, *self.owner)
        if mode & 0o7000:
            os.fchmod(fd, mode)  # behind fchown(2), which clears these bits
        return fd

    def make_folder(self, folder: int, name: str, mode: int) -> None:
        """A new folder in a held one; raises `FileExistsError`."""
        os.mkdir(name, mode & 0o777, dir_fd=folder)
        if self.owner is not None:
            os.chown(name, *self.owner, dir_fd=folder, follow_symlinks=False)

    def make_folders(self, path: str, mode: int = 0o755) -> None:
        """The folder and those above it that are missing; fine where it is there."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if len(parts) > MAX_DEPTH:
            raise errors.InvalidArgument(f"path {path[:200]!r}: more than {MAX_DEPTH} folders deep")
        there = len(parts)
        while there:
            try:
                os.close(self.hold("/".join(parts[:there]), os.O_DIRECTORY))
            except FileNotFoundError:
                there -= 1
            else:
                break
        for end in range(there + 1, len(parts) + 1):
            with contextlib.suppress(FileExistsError), self.place("/".join(parts[:end])) as (folder, name):
                require_real(folder, path)
                self.make_folder(folder, name, mode)

    # --- answers ---

    def stat(self, path: str, *, follow: bool) -> wire.Entry:
        with self.held(path, 0 if follow else os.O_NOFOLLOW) as fd:
            return self.entry(os.path.basename(path.rstrip("/")) or "/", os.fstat(fd), fd)

    def entry(self, name: str, found: os.stat_result, fd: int | None = None, folder: int | None = None) -> wire.Entry:
        """What stat(2) found, and where a link leads."""
        link = ""
        if stat.S_ISLNK(found.st_mode):
            with contextlib.suppress(OSError):
                link = os.readlink("", dir_fd=fd) if fd is not None else os.readlink(name, dir_fd=folder)
        uid, gid = self.ids.inside(found.st_uid, found.st_gid)
        return wire.Entry(
            name=os.fsencode(name),
            kind=kind_of(found.st_mode),
            mode=stat.S_IMODE(found.st_mode),
            size=found.st_size,
            uid=uid,
            gid=gid,
            mtime_ns=found.st_mtime_ns,
            link=os.fsencode(link),
        )

    def list(self, path: str) -> Iterator[wire.Entry]:
        """What is in a folder, in no order; what goes meanwhile is left out."""
        with self.held(path) as held:
            folder = reopen_folder(held, path)
        try:
            with os.scandir(folder) as found:
                for one in found:
                    with contextlib.suppress(FileNotFoundError):
                        yield self.entry(one.name, one.stat(follow_symlinks=False), folder=folder)
        finally:
            os.close(folder)

    def remove(self, path: str, *, recursive: bool) -> None:
        with self.place(path) as (folder, name):
            require_real(folder, path)
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=folder)
            elif recursive:
                remove_tree(folder, name, path)
            else:
                os.rmdir(name, dir_fd=folder)


def kind_of(mode: int) -> int:
    if stat.S_ISREG(mode):
        return wire.FILE
    if stat.S_ISDIR(mode):
        return wire.FOLDER
    return wire.SYMLINK if stat.S_ISLNK(mode) else wire.OTHER


def reopen(held: int, flags: int, path: str) -> int:
    """The regular file of an O_PATH descriptor, really open; raises `FailedPrecondition` for anything else."""
    mode = os.fstat(held).st_mode
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file, and is not opened"
        raise errors.FailedPrecondition(f"{shown(path)}: is {what}")
    require_real(held, path)
    return os.open(f"/proc/self/fd/{held}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def reopen_folder(held: int, path: str) -> int:
    """The same for a folder, to be listed."""
    if not stat.S_ISDIR(os.fstat(held).st_mode):
        raise errors.FailedPrecondition(f"{shown(path)}: is no folder")
    require_real(held, path)
    return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def require_real(fd: int, path: str) -> None:
    """Raise `FailedPrecondition` for a file that only the kernel pretends to have."""
    if (name := pseudo(fd)) is not None:
        raise errors.FailedPrecondition(f"{shown(path)}: is on {name}, whose files are no files; use exec")


def pseudo(fd: int) -> str | None:
    """The name of the file system of `fd` where it is one of the kernel's own views."""
    found = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, found) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return _PSEUDO.get(int.from_bytes(found.raw[:8], "little"))


def mount_id(fd: int) -> int:
    """Which mount a descriptor is on (proc(5), fdinfo)."""
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 4096)
    finally:
        os.close(info)
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(b"mnt_id:"))


def remove_tree(folder: int, name: str, path: str, depth: int = 0) -> None:
    """Remove a folder and all in it without leaving its mount or following a link."""
    if depth > MAX_DEPTH:
        raise errors.FailedPrecondition(f"{shown(path)}: more than {MAX_DEPTH} folders deep")
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if os.fstat(fd).st_dev != os.fstat(folder).st_dev and depth:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        with os.scandir(fd) as found:
            inside = [(one.name, one.is_dir(follow_symlinks=False)) for one in found]
        for child, is_folder in inside:
            if is_folder:
                remove_tree(fd, child, f"{path}/{child}", depth + 1)
            else:
                os.unlink(child, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=folder)
