"""Frames become a tree below a `Root`: what is there with the same name is replaced, never written through.

A file that is there is unlinked and made anew, or where it cannot be, being a mount, emptied and filled. The small
files of a frame are made by a few threads: the kernel takes longer to make a file than all else that is done for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec

from atoll import errors
from atoll.files import wire
from atoll.files.root import Root, explained, reopen, require_real

P = ParamSpec("P")

_SHORTER = "it became shorter while it was read; try again"
COPY_BYTES = 8 << 20
"""Of a passed descriptor at a time; behind each the other end is told."""
MAX_THREADS = 4
RUN_ITEMS = 32
"""Small files of one folder that one thread makes in a row."""
_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def _nothing() -> None:
    """Nobody is told."""


class Receiver:
    """Makes what `Item`s say, in their order, below the path `top` of `root`. `told` hears of every part."""

    def __init__(self, root: Root, top: str, told: Callable[[], None] = _nothing, *, modes: int = 0o7777) -> None:
        self._root = root
        self._top = top
        self.told = told
        self._modes = modes
        self._folder: tuple[bytes, int] | None = None
        self._times: list[tuple[bytes, int, int]] = []
        self._open: tuple[int, wire.Item] | None = None
        self._runs: list[tuple[int, list[tuple[str, wire.Item]]]] = []
        self._left: list[int] = []
        self._threads: ThreadPoolExecutor | None = None
        self.files = 0
        self.size = 0
        self.last = b""

    def take(self, items: list[wire.Item], fds: list[int]) -> None:
        """Make them. Every descriptor is closed."""
        left = iter(fds)
        try:
            try:
                for item in items:
                    self.last = item.path
                    with explained(os.path.join(self._top, os.fsdecode(item.path))):
                        if item.kind == wire.FILE and not item.fd and not item.more:
                            self._enter(item)
                        else:
                            self._make(item, next(left) if item.fd else -1)
            finally:
                self._make_runs()
        except StopIteration:
            raise errors.InvalidArgument("files: an item came without its descriptor") from None
        finally:
            for fd in (*fds, *self._left):
                os.close(fd)
            self._left, self._runs = [], []
        self.told()

    def _enter(self, item: wire.Item) -> None:
        """A small file, made behind the frame's last item: its folder is there."""
        folder, name = self._place(item.path)
        if not self._runs or self._runs[-1][0] != folder or len(self._runs[-1][1]) == RUN_ITEMS:
            self._runs.append((folder, []))
        self._runs[-1][1].append((name, item))

    def _make_runs(self) -> None:
        """All of them, whatever becomes of some: then nobody uses the folders any more. Raises the first error."""
        runs = self._runs
        failed: list[BaseException] = []
        if len(runs) == 1:
            self._make_run(*runs[0])
        elif runs:
            self._threads = self._threads or ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))), "files")
            making: list[Future[None]] = []
            for run in runs:
                try:
                    making.append(self._threads.submit(self._make_run, *run))
                except RuntimeError:  # the machine gives no thread: then as many as there are, or none
                    making.append(_done_now(self._make_run, *run))
            failed = [error for one in making if (error := one.exception()) is not None]
        for error in failed[:1]:
            raise error
        self.files += sum(len(items) for _, items in runs)
        self.size += sum(len(item.data) for _, items in runs for _, item in items)

    def _make_run(self, folder: int, items: list[tuple[str, wire.Item]]) -> None:
        for name, item in items:
            with explained(os.path.join(self._top, os.fsdecode(item.path))):
                fd = self._file(folder, name, item.mode & self._modes, item.path)
                try:
                    _write(fd, item.data)
                    os.utime(fd, ns=(item.mtime_ns, item.mtime_ns))
                finally:
                    os.close(fd)

    def data(self, part: wire.Data) -> None:
        """The next part of the file that was begun."""
        if self._open is None:
            raise errors.InvalidArgument("files: data without a file")
        fd, item = self._open
        with explained(os.path.join(self._top, os.fsdecode(item.path))):
            _write(fd, part.data)
            self.size += len(part.data)
            if not part.more:
                self._open = None
                self._finish(fd, item)
        self.told()

    def finish(self) -> None:
        """Behind the last item: the times and modes of folders, which their files have changed."""
        if self._open is not None:
            raise errors.InvalidArgument("files: the last file is not whole")
        for path, mode, mtime_ns in reversed(self._times):
            name = os.path.join(self._top, os.fsdecode(path))
            with explained(name), self._root.held(name, os.O_DIRECTORY) as fd:
                where = f"/proc/self/fd/{fd}"
                os.chmod(where, mode)
                os.utime(where, ns=(mtime_ns, mtime_ns))

    def close(self) -> None:
        """Idempotent."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        if self._open is not None:
            os.close(self._open[0])
            self._open = None
        if self._folder is not None:
            os.close(self._folder[1])
            self._folder = None

    def _make(self, item: wire.Item, source: int) -> None:
        if item.kind == wire.FOLDER:
            self._make_folder(item)
            return
        folder, name = self._place(item.path)
        self.files += 1
        if item.kind == wire.SYMLINK:
            self._replacing(folder, name, lambda: self._make_link(folder, name, item))
            return
        if item.kind != wire.FILE:
            raise errors.InvalidArgument(f"files: an item of kind {item.kind}, which is none")
        fd = self._file(folder, name, item.mode & self._modes, item.path)
        try:
            if item.more:
                self._open, fd = (fd, item), -1
                return
            self._copy(source, fd, item)
            whole, fd = fd, -1
            self._finish(whole, item)
        finally:
            if fd >= 0:
                os.close(fd)

    def _finish(self, fd: int, item: wire.Item) -> None:
        try:
            os.utime(fd, ns=(item.mtime_ns, item.mtime_ns))
        finally:
            os.close(fd)

    def _place(self, path: bytes) -> tuple[int, str]:
        """The held folder of `path`, remembered for its neighbours, and the name in it."""
        folder, _, name = path.rpartition(b"/")
        if name in (b".", b"..") or b"\0" in path:
            raise errors.InvalidArgument(f"files: {path[:200]!r} is no path of a file")
        if not name:  # the top itself is a file
            above, _, own = self._top.rstrip("/").rpartition("/")
            if not own or own in (".", ".."):
                raise errors.InvalidArgument(f"path {self._top[:200]!r}: ends in no name of a file")
            return self._held(b"..", above), own
        return self._held(folder, os.path.join(self._top, os.fsdecode(folder))), os.fsdecode(name)

    def _held(self, key: bytes, path: str) -> int:
        if self._folder is None or self._folder[0] != key:
            fd = self._root.hold(path, os.O_DIRECTORY)
            if self._folder is not None:
                self._left.append(self._folder[1])  # files are made in it yet
            self._folder = key, fd
            require_real(fd, path)
        return self._folder[1]

    def _make_folder(self, item: wire.Item) -> None:
        mode = item.mode & self._modes
        if not item.path:
            self._root.make_folders(self._top)
        else:
            folder, name = self._place(item.path)
            try:
                self._root.make_folder(folder, name, mode | 0o700)
            except FileExistsError:
                path = os.path.join(self._top, os.fsdecode(item.path))
                os.close(self._root.hold(path, os.O_DIRECTORY))  # a folder, or a link to one: what is in it stays
                return
            self._times.append((item.path, mode, item.mtime_ns))

    def _make_link(self, folder: int, name: str, item: wire.Item) -> None:
        os.symlink(os.fsdecode(item.data), name, dir_fd=folder)
        if self._root.owner is not None:
            os.chown(name, *self._root.owner, dir_fd=folder, follow_symlinks=False)
        os.utime(name, ns=(item.mtime_ns, item.mtime_ns), dir_fd=folder, follow_symlinks=False)

    def _replacing(self, folder: int, name: str, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            os.unlink(name, dir_fd=folder)
            make()

    def _file(self, folder: int, name: str, mode: int, path: bytes) -> int:
        try:
            return self._root.create(folder, name, mode)
        except FileExistsError:
            pass
        try:
            os.unlink(name, dir_fd=folder)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return self._root.create(folder, name, mode)
        held = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            return reopen(held, os.O_WRONLY | os.O_TRUNC, os.path.join(self._top, os.fsdecode(path)))
        finally:
            os.close(held)

    def _copy(self, source: int, target: int, item: wire.Item) -> None:
        """The content of a passed descriptor; its holes (lseek(2), SEEK_HOLE) take no room here either."""
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise errors.InvalidArgument("files: a descriptor of no regular file")
        at = 0
        while at < item.size:
            begin = _data_from(source, at, item.size)
            end = min(os.lseek(source, begin, os.SEEK_HOLE), item.size) if begin < item.size else begin
            self.size += begin - at
            os.lseek(source, begin, os.SEEK_SET)
            os.lseek(target, begin, os.SEEK_SET)
            self._copy_data(source, target, end - begin)
            at = end
        os.ftruncate(target, item.size)

    def _copy_data(self, source: int, target: int, left: int) -> None:
        by_range = True
        while left:
            done = 0
            if by_range:
                try:
                    done = os.copy_file_range(source, target, min(left, COPY_BYTES))
                except OSError as error:
                    if error.errno not in _NO_RANGE:
                        raise
                    by_range = False
                    continue
            else:
                done = os.sendfile(target, source, None, min(left, COPY_BYTES))
            if not done:
                if by_range:  # some file systems say so and mean that they cannot
                    by_range = False
                    continue
                raise errors.Aborted(_SHORTER)
            left -= done
            self.size += done
            self.told()


def _data_from(source: int, at: int, size: int) -> int:
    """Where the next data begins, `size` where none follows."""
    try:
        return min(os.lseek(source, at, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        if os.fstat(source).st_size < size:
            raise errors.Aborted(_SHORTER) from error
        return size


def _done_now(work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> Future[None]:
    future: Future[None] = Future()
    try:
        work(*args, **kwargs)
    except (OSError, errors.AtollError) as error:
        future.set_exception(error)
    else:
        future.set_result(None)
    return future


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def discard(channel: wire.Channel) -> None:
    """Take what comes until the other end closes, so that it can read why nobody wants it."""
    with contextlib.suppress(OSError, errors.AtollError):
        while (found := channel.receive()) is not None:
            for fd in found[1]:
                os.close(fd)
