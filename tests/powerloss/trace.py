"""What a program does to the files below one folder, seen by strace(1) and kept as a `disk.Recording`.

The program tells facts by writing lines of JSON to the file it was given: `{"begin": {...}}`, `{"ack": {...}}`.
A system call that changes files in a way this module does not know is an error, never passed over.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.powerloss.disk import ROOT, Marked, Named, Node, Recording, Sized, State, blocks

MAPPED = "-shm"
"""SQLite's index of its log, written through memory: a start makes it anew."""
REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 120
MOST_BYTES = 16 << 20
"""Of one write; strace would cut what is longer."""

CALLS = (
    r"/^(open|openat2?|creat|p?write.*|f?truncate.*|fallocate|f(data)?sync|sync.*|rename.*|link.*|symlink.*|unlink.*"
    r"|mkdir.*|rmdir|mknod.*|f?chmod.*|[fl]?chown.*|[fl]?(set|remove)xattr|sendfile|copy_file_range|splice"
    r"|lseek|pivot_root|f?chdir|chroot)$"
)

_COMPLETE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(?:<([^>]*)>)?(.*)$")
_UNFINISHED = re.compile(r"^(\d+) +(\w+\(.*?) ?<unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")


def record(argv: list[str], root: Path, facts: Path, log: Path) -> Recording:
    """Run `python -m ARGV` and give back what it did below the empty folder `root`. Blocks; fails where it fails."""
    command = ["strace", "-f", "-y", "-xx", "-s", str(MOST_BYTES), "--seccomp-bpf", "-e", f"trace={CALLS}",
               "-e", "signal=none", "-o", str(log), sys.executable, "-m", *argv]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY / "src", REPOSITORY))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False)
    assert done.returncode == 0, f"{argv}: ended with {done.returncode}: {done.stderr[-3000:]}"
    reader = _Reader(os.fsencode(root), os.fsencode(facts))
    with log.open("rb") as lines:
        for line in lines:
            reader.line(line.decode("ascii").rstrip("\n"))
    reader.check(root)
    return reader.recording


@dataclass(slots=True)
class _Process:
    cwd: bytes = b"/"
    root: bytes = b""


@dataclass(slots=True, kw_only=True)
class _Call:
    pid: str
    name: str
    arguments: list[str]
    result: int
    opened: bytes
    begun: int


@dataclass(slots=True)
class _Folder:
    entries: dict[bytes, int] = field(default_factory=dict[bytes, int])


class _Reader:
    """Keeps the tree as the program sees it, so that a path or a descriptor's path leads to a node."""

    def __init__(self, root: bytes, facts: bytes) -> None:
        self.recording = Recording()
        self._root = root
        self._facts = facts
        self._said = b""
        self._folders: dict[int, _Folder] = {ROOT: _Folder()}
        self._sizes: dict[int, int] = {}
        self._processes: dict[str, _Process] = {}
        self._unfinished: dict[str, tuple[str, int]] = {}
        self._offsets: dict[tuple[str, int], int] = {}

    # --- lines ---

    def line(self, line: str) -> None:
        self.recording.now += 1
        begun = self.recording.now
        if (match := _UNFINISHED.match(line)) is not None:
            self._unfinished[match[1]] = (match[2], begun)
            return
        if (match := _RESUMED.match(line)) is not None:
            start, begun = self._unfinished.pop(match[1])
            line = f"{match[1]} {start}{match[2]}"
        if (match := _COMPLETE.match(line)) is None:
            assert re.match(r"^\d+ +(\+\+\+|---)", line) or "= ?" in line, f"strace said {line[:200]!r}"
            return
        if match[4].startswith("-") or match[4] == "?":
            return
        call = _Call(
            pid=match[1], name=match[2], arguments=_split(match[3]), result=int(match[4]),
            opened=_text(match[5] or ""), begun=begun,
        )  # fmt: skip
        self._do(call)

    def _do(self, call: _Call) -> None:
        name = re.sub(r"(at2?|64|2)$", "", call.name)
        aliases = {"creat": "open", "pwrite": "write", "lchown": "chown", "fchown": "chown", "fchmod": "chmod",
                   "fdatasync": "fsync", "lsetxattr": "setxattr", "fsetxattr": "setxattr", "ftruncate": "truncate",
                   "rmdir": "unlink", "fchdir": "chdir"}  # fmt: skip
        handler = getattr(self, f"_on_{aliases.get(name, name)}", None)
        assert handler is not None, f"{call.name}: the recording does not know this call"
        handler(call)

    # --- places ---

    def _process(self, pid: str) -> _Process:
        return self._processes.setdefault(pid, _Process())

    def _place(self, call: _Call, at: int) -> tuple[bytes | None, int]:
        """The path that an argument names, and the number of the next one; None outside the folder recorded."""
        process = self._process(call.pid)
        argument = call.arguments[at]
        if not argument.startswith('"'):
            base = self._under(process, _annotated(argument))
            if at + 1 == len(call.arguments) or not call.arguments[at + 1].startswith('"'):
                return self._inside(base), at + 1
            at += 1
            argument = call.arguments[at]
        else:
            base = self._under(process, process.cwd) if process.root else process.cwd
        path = _text(argument)
        path = process.root + path if path.startswith(b"/") else os.path.join(base, path)
        return self._inside(path), at + 1

    def _under(self, process: _Process, path: bytes) -> bytes:
        """The path of a descriptor; of a process with a root of its own it is told from there."""
        return path if path.startswith(self._root) or not process.root else os.path.join(process.root, path.strip(b"/"))

    def _inside(self, path: bytes) -> bytes | None:
        path = os.path.normpath(path)
        if path == self._root:
            return b""
        return path[len(self._root) + 1 :] if path.startswith(self._root + b"/") else None

    def _find(self, path: bytes) -> int | None:
        node = ROOT
        for part in filter(None, path.split(b"/")):
            folder = self._folders.get(node)
            if folder is None or part not in folder.entries:
                return None
            node = folder.entries[part]
        return node

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        head, _, tail = path.rpartition(b"/")
        parent = self._find(head)
        assert parent is not None, f"{path!r}: its folder was never made"
        return parent, tail

    def _node(self, call: _Call) -> int | None:
        """What the descriptor in the first argument leads to."""
        path = self._fd_path(call)
        return None if path is None else self._find(path)

    # --- names ---

    def _make(self, path: bytes, node: Node) -> int:
        node.serial = len(self.recording.nodes)
        self.recording.nodes[node.serial] = node
        if stat.S_ISDIR(node.mode):
            self._folders[node.serial] = _Folder()
        self._name((path, node.serial))
        return node.serial

    def _name(self, *names: tuple[bytes, int | None]) -> None:
        changed: list[tuple[int, str, int | None]] = []
        for path, node in names:
            folder, name = self._parent(path)
            changed.append((folder, os.fsdecode(name), node))
            if node is None:
                self._folders[folder].entries.pop(name, None)
            else:
                self._folders[folder].entries[name] = node
        self.recording.change(Named(names=tuple(changed)))

    def _on_open(self, call: _Call) -> None:
        path, after = self._place(call, 0)
        if path is None:
            return
        flags = call.arguments[after]
        node = self._find(path)
        if node is None and "O_CREAT" in flags:
            mode = int(call.arguments[after + 1], 8) if after + 1 < len(call.arguments) else 0o600
            node = self._make(path, Node(serial=0, mode=stat.S_IFREG | mode))
        if node is None:
            return
        if "O_TRUNC" in flags and self._sizes.get(node):
            self._resize(node, 0)
        assert "O_APPEND" not in flags or "O_WRONLY" not in flags, "appending is not recorded"
        self._offsets[str(call.result), node] = 0

    def _on_mkdir(self, call: _Call) -> None:
        path, after = self._place(call, 0)
        if path is not None:
            self._make(path, Node(serial=0, mode=stat.S_IFDIR | int(call.arguments[after], 8)))

    def _on_mknod(self, call: _Call) -> None:
        path, after = self._place(call, 0)
        if path is not None:
            kind, _, mode = call.arguments[after].partition("|")
            device = [
                int(number, 16)
                for number in re.findall(r"makedev\((\w+), (\w+)\)", " ".join(call.arguments))
                for number in number
            ]
            major, minor = device or (0, 0)
            self._make(
                path, Node(serial=0, mode=getattr(stat, kind) | int(mode or "0", 8), device=os.makedev(major, minor))
            )

    def _on_symlink(self, call: _Call) -> None:
        path, _ = self._place(call, 1)
        if path is not None:
            target = os.fsdecode(_text(call.arguments[0]))
            self._make(path, Node(serial=0, mode=stat.S_IFLNK | 0o777, target=target))

    def _on_link(self, call: _Call) -> None:
        old, after = self._place(call, 0)
        new, _ = self._place(call, after)
        if new is not None:
            assert old is not None, "a link from outside the folder recorded"
            self._name((new, self._find(old)))

    def _on_rename(self, call: _Call) -> None:
        old, after = self._place(call, 0)
        new, _ = self._place(call, after)
        assert (old is None) == (new is None), "a rename into or out of the folder recorded"
        assert not any("RENAME_EXCHANGE" in argument for argument in call.arguments)
        if old is not None and new is not None:
            node = self._find(old)
            assert node is not None, f"{old!r}: renamed but never made"
            self._name((new, node), (old, None))

    def _on_unlink(self, call: _Call) -> None:
        path, _ = self._place(call, 0)
        if path is not None:
            self._name((path, None))

    # --- contents ---

    def _on_write(self, call: _Call) -> None:
        if _annotated(call.arguments[0]) == self._facts:
            self._tell(_text(call.arguments[1]))
            return
        node = self._node(call)
        assert call.name in ("write", "pwrite64") or node is None, f"{call.name}: is not recorded"
        if node is None or not stat.S_ISREG(self.recording.nodes[node].mode):
            return
        data = _text(call.arguments[1])[: call.result]
        assert len(data) == call.result, "strace has cut a write"
        key = call.arguments[0].partition("<")[0], node
        offset = int(call.arguments[3]) if call.name == "pwrite64" else self._offsets.get(key, 0)
        if call.name == "write":
            self._offsets[key] = offset + len(data)
        if offset + len(data) > self._sizes.get(node, 0):
            self._resize(node, offset + len(data))
        for piece in blocks(node, offset, data):
            self.recording.change(piece)

    def _on_lseek(self, call: _Call) -> None:
        if (node := self._node(call)) is not None:
            self._offsets[call.arguments[0].partition("<")[0], node] = call.result

    def _on_truncate(self, call: _Call) -> None:
        path, after = self._place(call, 0)
        if path is not None and (node := self._find(path)) is not None:
            self._resize(node, int(call.arguments[after]))

    def _resize(self, node: int, size: int) -> None:
        self._sizes[node] = size
        self.recording.change(Sized(node=node, size=size))

    def _on_chmod(self, call: _Call) -> None:
        path, after = self._place(call, 0)
        if path is not None and (node := self._find(path)) is not None:
            self.recording.change(Marked(node=node, key="mode", value=b"%d" % int(call.arguments[after], 8)))

    def _on_chown(self, call: _Call) -> None:
        path, after = self._place(call, 0)
        if path is not None and (node := self._find(path)) is not None:
            owner = " ".join(call.arguments[after : after + 2])
            self.recording.change(Marked(node=node, key="owner", value=owner.encode()))

    def _on_setxattr(self, call: _Call) -> None:
        path, after = self._place(call, 0) if not call.arguments[0][0].isdigit() else (self._fd_path(call), 1)
        if path is not None and (node := self._find(path)) is not None:
            key, value = (_text(one) for one in call.arguments[after : after + 2])
            self.recording.change(Marked(node=node, key=os.fsdecode(key), value=value))

    def _fd_path(self, call: _Call) -> bytes | None:
        return self._inside(self._under(self._process(call.pid), _annotated(call.arguments[0])))

    # --- what makes it durable, where it is seen from, what is said ---

    def _on_fsync(self, call: _Call) -> None:
        if (node := self._node(call)) is not None:
            self.recording.sync(node, since=call.begun, data_only=call.name == "fdatasync")

    def _on_syncfs(self, call: _Call) -> None:
        if self._node(call) is not None:
            self.recording.sync(None, since=call.begun)

    def _on_chdir(self, call: _Call) -> None:
        process = self._process(call.pid)
        path = _text(call.arguments[0]) if call.arguments[0].startswith('"') else _annotated(call.arguments[0])
        process.cwd = os.path.join(process.cwd, path)

    def _on_pivot_root(self, call: _Call) -> None:
        process = self._process(call.pid)
        process.root, process.cwd = process.cwd, b"/"

    def _tell(self, data: bytes) -> None:
        self._said += data
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            ((verb, values),) = json.loads(line).items()
            self.recording.told(values, is_durable=verb == "ack")

    # --- the recording is the truth ---

    def check(self, root: Path) -> None:
        """What was recorded, all of it, is what is there now."""
        paths = {os.fsencode(path.relative_to(root)) for path in root.rglob("*")}
        assert paths == set(self._paths(ROOT, b"")), "the recording has other files than the disk"
        state = State(self.recording.nodes, (one.change for one in self.recording.changes))
        for name, node in state.walk():
            path = root / name
            if stat.S_ISREG(node.mode) and not name.endswith(MAPPED):
                there, kept = path.read_bytes(), bytes(state.contents.get(node.serial, b""))
                assert there == kept, f"{name}: was recorded otherwise: {there[:200]!r}, {kept[:200]!r}"

    def _paths(self, folder: int, path: bytes) -> list[bytes]:
        found: list[bytes] = []
        for name, node in self._folders[folder].entries.items():
            found.append(path + name)
            if node in self._folders:
                found += self._paths(node, path + name + b"/")
        return found


def _split(text: str) -> list[str]:
    """The arguments of a call; strings are in hex, so that only structures and calls have commas of their own."""
    parts: list[str] = []
    depth = start = 0
    for match in re.finditer(r", |[({\[]|[)}\]]", text):
        if match[0] in "({[":
            depth += 1
        elif match[0] in ")}]":
            depth -= 1
        elif not depth:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _text(argument: str) -> bytes:
    assert not argument.endswith("..."), "strace has cut a text"
    digits = argument.strip('"').replace("\\x", "")
    return bytes.fromhex(digits) if re.fullmatch("(?:[0-9a-f]{2})*", digits) else b""


def _annotated(argument: str) -> bytes:
    """The path that strace tells of a descriptor."""
    return _text(argument.partition("<")[2].partition(">")[0])
