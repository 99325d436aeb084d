"""What an agent does for its client: one request, and its answer."""

from __future__ import annotations

import os
import select
import struct
import time

from atoll import errors
from atoll.files import wire
from atoll.files.receiving import Receiver, discard
from atoll.files.root import MAX_DEPTH, Root, explained, kind_of, reopen_folder, require_real
from atoll.files.sending import Sender, count
from atoll.linux import syscalls

PROGRESS_S = 0.05
MAX_WATCHES = 8192
_EVENT = struct.Struct("iIII")
_IN_ISDIR, _IN_Q_OVERFLOW, _IN_IGNORED = 0x40000000, 0x4000, 0x8000
_IN_CREATE, _IN_MOVED_TO = 0x100, 0x80
# What is told: IN_MODIFY, IN_ATTRIB, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF;
# and IN_EXCL_UNLINK
_MASK = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x04000000


def text(path: bytes) -> str:
    """A path of the wire; raises `InvalidArgument` for one that no file can have."""
    if b"\0" in path:
        raise errors.InvalidArgument("path: has a zero byte in it")
    return os.fsdecode(path)


class Answering:
    """Answers the one request of a connection. `OSError` where the client has gone."""

    def __init__(self, channel: wire.Channel) -> None:
        self._channel = channel

    def refuse(self, error: errors.AtollError) -> None:
        """Say why not, and let the client finish its sentence."""
        self._channel.send(wire.Failed(error.code, error.message))
        discard(self._channel)

    def answer(self, root: Root) -> None:
        found = self._channel.receive()
        if found is None:
            return
        request, fds = found
        for fd in fds:
            os.close(fd)
        match request:
            case wire.Upload():
                self._upload(root, request)
            case wire.Download():
                self._download(root, request)
            case wire.Write():
                self._write(root, request)
            case wire.Read():
                self._read(root, request)
            case wire.Watch():
                self._watch(root, request)
            case wire.List():
                self._list(root, request)
            case _:
                self._change(root, request)

    def _change(self, root: Root, request: wire.Any) -> None:
        match request:
            case wire.Stat(path, follow):
                with explained(text(path)):
                    self._channel.send(root.stat(text(path), follow=follow))
                return
            case wire.Mkdir(path, mode, True):
                with explained(text(path)):
                    root.make_folders(text(path), mode)
            case wire.Mkdir(path, mode):
                with explained(text(path)), root.place(text(path)) as (folder, name):
                    require_real(folder, text(path))
                    root.make_folder(folder, name, mode)
            case wire.Remove(path, recursive):
                with explained(text(path)):
                    root.remove(text(path), recursive=recursive)
            case wire.Rename(path, target):
                with explained(text(path)), root.place(text(path)) as one, root.place(text(target)) as other:
                    require_real(one[0], text(path))
                    os.rename(one[1], other[1], src_dir_fd=one[0], dst_dir_fd=other[0])
            case _:
                raise errors.InvalidArgument(f"files: {type(request).__name__.lower()} is no request")
        self._channel.send(wire.Done())

    def _list(self, root: Root, request: wire.List) -> None:
        entries: list[wire.Entry] = []
        with explained(text(request.path)):
            for entry in root.list(text(request.path)):
                entries.append(entry)
                if len(entries) == wire.BATCH_ITEMS:
                    self._channel.send(wire.Entries(entries, more=True))
                    entries = []
        self._channel.send(wire.Entries(entries))

    def _read(self, root: Root, request: wire.Read) -> None:
        path = text(request.path)
        with explained(path):
            fd = root.open_file(path)
        try:
            left, at = request.limit, request.offset
            while left > 0:
                with explained(path):
                    data = os.pread(fd, min(left, wire.BATCH_BYTES), at)
                if not data:
                    break
                self._channel.send(wire.Data(data))
                left -= len(data)
                at += len(data)
        finally:
            os.close(fd)
        self._channel.send(wire.Data(b"", more=False))

    def _write(self, root: Root, request: wire.Write) -> None:
        path, size = text(request.path), 0
        with explained(path):
            fd = root.open_for_writing(path, mode=request.mode, append=request.append)
        try:
            more = True
            while more:
                part = self._next()
                if not isinstance(part, wire.Data):
                    raise errors.InvalidArgument("files: a write needs data")
                with explained(path):
                    view = memoryview(part.data)
                    while view:
                        view = view[os.write(fd, view) :]
                size += len(part.data)
                more = part.more
        finally:
            os.close(fd)
        self._channel.send(wire.Done(1, size))

    def _next(self) -> wire.Any:
        """The next message, which has no descriptors."""
        found = self._channel.receive()
        if found is None:
            raise ConnectionResetError
        for fd in found[1]:
            os.close(fd)
        return found[0]

    # --- trees ---

    def _upload(self, root: Root, request: wire.Upload) -> None:
        receiver = Receiver(root, self._target(root, request))
        last = [0.0]

        def told() -> None:
            now = time.monotonic()
            if now - last[0] >= PROGRESS_S:
                last[0] = now
                self._channel.send(wire.Progress(receiver.files, receiver.size, receiver.last))

        receiver.told = told
        try:
            while (found := self._channel.receive()) is not None:
                message, fds = found
                match message:
                    case wire.Items(items):
                        receiver.take(items, fds)
                    case wire.Data():
                        receiver.data(message)
                    case wire.End(skipped):
                        receiver.finish()
                        self._channel.send(wire.Done(receiver.files, receiver.size, skipped))
                        return
                    case _:
                        raise errors.InvalidArgument("files: an upload needs items")
        finally:
            receiver.close()

    @staticmethod
    def _target(root: Root, request: wire.Upload) -> str:
        """Where the top comes to lie: a folder's content in `path`, a file at `path`, or in the folder that it is."""
        path = text(request.path)
        if request.is_folder:
            return path
        is_folder = path.endswith("/") or path in ("", ".")
        if not is_folder:
            try:
                with explained(path), root.held(path) as fd:
                    is_folder = kind_of(os.fstat(fd).st_mode) == wire.FOLDER
            except errors.NotFound:
                is_folder = False
        above = path if is_folder else path.rpartition("/")[0]
        with explained(above):
            root.make_folders(above)
        return os.path.join(path, text(request.name)) if is_folder else path

    def _download(self, root: Root, request: wire.Download) -> None:
        path = text(request.path)
        with explained(path), root.held(path) as held:
            kind = kind_of(os.fstat(held).st_mode)
            require_real(held, path)
            files, size = count(held) if request.count and kind in (wire.FILE, wire.FOLDER) else (0, 0)
            name = os.path.basename(path.rstrip("/"))
            self._channel.send(wire.Begun(os.fsencode(name), kind == wire.FOLDER, files, size))
            sender = Sender(self._channel, root.is_own_mount, lambda: None)
            sender.send(held, path)
        self._channel.send(wire.Done(sender.files, sender.size, sender.skipped))

    # --- changes ---

    def _watch(self, root: Root, request: wire.Watch) -> None:
        watching = _Watching(root, text(request.path), recursive=request.recursive)
        try:
            with explained(text(request.path)):
                watching.begin()
            self._channel.send(wire.Changes([]))
            poll = select.poll()
            poll.register(watching.fd, select.POLLIN)
            poll.register(self._channel.fileno(), select.POLLRDHUP)
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if self._channel.fileno() in ready:
                    return
                with explained(text(request.path)):
                    changes = watching.read()
                if changes:
                    self._channel.send(wire.Changes(changes))
        finally:
            watching.close()


class _Watching:
    """inotify(7) on a file or folder, and on the folders below where asked."""

    def __init__(self, root: Root, path: str, *, recursive: bool) -> None:
        self._root = root
        self._top = path
        self._recursive = recursive
        self._paths: dict[int, str] = {}
        self.fd = syscalls.inotify_init()

    def begin(self) -> None:
        with self._root.held(self._top) as held:
            require_real(held, self._top)
            self._add(held, "", 0)

    def _add(self, held: int, path: str, depth: int) -> list[wire.Change]:
        """Watch what is held, and where asked the folders in it; what was in it already, for one that is new."""
        if len(self._paths) >= MAX_WATCHES or depth > MAX_DEPTH:
            raise errors.ResourceExhausted(f"watch {self._top!r}: more than {MAX_WATCHES} folders; watch fewer")
        where = f"/proc/self/fd/{held}"
        number = syscalls.inotify_add_watch(self.fd, where, _MASK)
        self._paths[number] = path
        found: list[wire.Change] = []
        if self._recursive and kind_of(os.fstat(held).st_mode) == wire.FOLDER:
            folder = reopen_folder(held, path)
            try:
                with os.scandir(folder) as inside:
                    names = [(one.name, one.is_dir(follow_symlinks=False)) for one in inside]
                for name, is_folder in names:
                    below = f"{path}/{name}" if path else name
                    bits = _IN_CREATE | (_IN_ISDIR if is_folder else 0)
                    found.append(wire.Change(os.fsencode(below), bits))
                    if is_folder:
                        found += self._descend(folder, name, below, depth)
            finally:
                os.close(folder)
        return found

    def _descend(self, folder: int, name: str, path: str, depth: int) -> list[wire.Change]:
        try:
            child = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return self._add(child, path, depth + 1)
        finally:
            os.close(child)

    def read(self) -> list[wire.Change]:
        try:
            data = os.read(self.fd, 64 << 10)
        except BlockingIOError:
            return []
        changes: list[wire.Change] = []
        at = 0
        while at < len(data):
            number, bits, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            if bits & _IN_Q_OVERFLOW:
                raise errors.ResourceExhausted(f"watch {self._top!r}: changes came too fast and were lost; list again")
            if bits & _IN_IGNORED:
                self._paths.pop(number, None)
                continue
            if (folder := self._paths.get(number)) is None:
                continue
            path = os.path.join(folder, os.fsdecode(name)) if name else folder
            changes.append(wire.Change(os.fsencode(path), bits))
            if self._recursive and bits & _IN_ISDIR and bits & (_IN_CREATE | _IN_MOVED_TO):
                changes += self._appeared(path)
        return changes

    def _appeared(self, path: str) -> list[wire.Change]:
        try:
            with self._root.held(os.path.join(self._top, path), os.O_NOFOLLOW | os.O_DIRECTORY) as held:
                return self._add(held, path, path.count("/") + 1)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def close(self) -> None:
        os.close(self.fd)
