"""A disk as a power loss may find it: the changes recorded, when each is durable, and the states between.

The model promises less than any file system in use does, so that what survives it survives them all:

* a name (made, renamed, removed) is durable once its folder is synced, contents and sizes and modes once their file is;
  a synced file may have lost its name. syncfs(2) makes everything durable;
* of what is not durable any part may be there, in any order: a later write without an earlier one, a size without the
  bytes (which then are zeros), a rename without the file's contents, some sectors of a block and others not;
* a rename happens whole or not at all, a sector of 512 bytes is old or new, and what was synced stays.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 4096
SECTOR = 512
ROOT = 0

SINGLES = 10
"""Changes of one moment that are lost alone, and kept alone; the last ones and some others."""
SUBSETS = 6
"""Random parts of what is not durable, a moment."""
FEW = 6
"""So few changes that are not durable are lost in every combination."""


@dataclass(slots=True, kw_only=True)
class Node:
    """A file, folder, link or device; `target` of a link, `device` of a device."""

    serial: int
    mode: int
    target: str = ""
    device: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Names that change together: (folder, name, node or None where the name goes)."""

    names: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Bytes of one block of a file."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    node: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A mode, an owner or an extended attribute."""

    node: int
    key: str
    value: bytes


Change = Named | Written | Sized | Marked


@dataclass(slots=True, kw_only=True)
class Recorded:
    """A change, the moment it was made and the moment since which it is durable."""

    change: Change
    made: int
    durable: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What the program said at a moment: that values are about to change, or that they have."""

    at: int
    values: dict[str, str | None]
    is_durable: bool


@dataclass(slots=True)
class Recording:
    """Everything that happened, in order; moments are counted by `now`."""

    nodes: dict[int, Node] = field(default_factory=lambda: {ROOT: Node(serial=ROOT, mode=stat.S_IFDIR | 0o755)})
    changes: list[Recorded] = field(default_factory=list[Recorded])
    facts: list[Fact] = field(default_factory=list[Fact])
    moments: list[int] = field(default_factory=list[int])
    now: int = 0

    def change(self, change: Change) -> None:
        self.changes.append(Recorded(change=change, made=self.now))

    def sync(self, node: int | None, *, since: int, data_only: bool = False) -> None:
        """What was made of `node` (None: of all) up to the moment `since` is durable from now on."""
        self.moments.append(self.now - 1)
        for one in self.changes:
            if one.durable is None and one.made <= since and _is_of(one.change, node, data_only):
                one.durable = self.now

    def told(self, values: dict[str, str | None], *, is_durable: bool) -> None:
        self.facts.append(Fact(at=self.now, values=values, is_durable=is_durable))
        if is_durable:
            self.moments.append(self.now)


def _is_of(change: Change, node: int | None, data_only: bool) -> bool:
    if node is None:
        return True
    if isinstance(change, Named):
        return change.names[0][0] == node  # of a rename: the folder that it leads into
    return change.node == node and not (data_only and isinstance(change, Marked))


class State:
    """One disk: `changes`, applied in the order they were made."""

    def __init__(self, nodes: dict[int, Node], changes: Iterable[Change]) -> None:
        self._nodes = nodes
        self.folders: dict[int, dict[str, int]] = {ROOT: {}}
        self.contents: dict[int, bytearray] = {}
        self.marks: dict[int, dict[str, bytes]] = {}
        for change in changes:
            self._apply(change)

    def _apply(self, change: Change) -> None:
        match change:
            case Named(names=names):
                for folder, name, node in names:
                    entries = self.folders.setdefault(folder, {})
                    if node is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = node
            case Sized(node=node, size=size):
                content = self.contents.setdefault(node, bytearray())
                if size < len(content):
                    del content[size:]
                else:
                    content.extend(bytes(size - len(content)))
            case Written(node=node, offset=offset, data=data):
                content = self.contents.setdefault(node, bytearray())
                room = max(0, len(content) - offset)
                content[offset : offset + min(room, len(data))] = data[:room]
            case Marked(node=node, key=key, value=value):
                self.marks.setdefault(node, {})[key] = value

    def walk(self, folder: int = ROOT, path: str = "") -> Iterator[tuple[str, Node]]:
        """Everything that has a name, folders before what is in them."""
        for name, serial in sorted(self.folders.get(folder, {}).items()):
            node = self._nodes[serial]
            yield f"{path}{name}", node
            if stat.S_ISDIR(node.mode):
                yield from self.walk(serial, f"{path}{name}/")

    def digest(self) -> str:
        """The same for disks that look the same."""
        found = hashlib.sha256()
        for path, node in self.walk():
            content = hashlib.sha256(self.contents.get(node.serial, b"")).digest()
            marks = sorted(self.marks.get(node.serial, {}).items())
            found.update(repr((path, node.mode, node.target, content, marks)).encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def write(self, target: Path) -> None:
        """Make the disk in the empty folder `target`."""
        made: dict[int, Path] = {}
        for name, node in self.walk():
            path = target / name
            if stat.S_ISDIR(node.mode):
                path.mkdir()
            elif node.serial in made:
                os.link(made[node.serial], path, follow_symlinks=False)
            elif stat.S_ISLNK(node.mode):
                path.symlink_to(node.target)
            elif stat.S_ISREG(node.mode):
                path.write_bytes(self.contents.get(node.serial, b""))
            else:
                os.mknod(path, node.mode, node.device)
            made.setdefault(node.serial, path)
            self._mark(path, node)

    def _mark(self, path: Path, node: Node) -> None:
        marks = self.marks.get(node.serial, {})
        if "owner" in marks:
            uid, gid = map(int, marks["owner"].split())
            os.chown(path, uid, gid, follow_symlinks=False)
        if not stat.S_ISLNK(node.mode):
            os.chmod(path, int(marks.get("mode", b"%d" % stat.S_IMODE(node.mode))))
        for key, value in marks.items():
            if key not in ("owner", "mode"):
                os.setxattr(path, key, value, follow_symlinks=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A disk that a loss of power at the moment `at` may leave, and in words how it came about."""

    at: int
    how: str
    changes: tuple[Change, ...]


def losses(recording: Recording, seed: int = 0) -> Iterator[Loss]:
    """The disks that a loss of power may leave, at each moment after which more is durable or more is promised.

    What is lost at an earlier moment is a part of what is not durable at the next such moment, so that is enough.
    Where the parts are too many, some are drawn, the same ones for the same recording and seed.
    """
    drawn = random.Random(seed)
    for at in sorted({*recording.moments, recording.now}):
        made = [one for one in recording.changes if one.made <= at]
        pending = [place for place, one in enumerate(made) if one.durable is None or one.durable > at]
        for how, kept in _parts(pending, drawn):
            lost = set(pending).difference(kept)
            yield Loss(at=at, how=how, changes=tuple(one.change for n, one in enumerate(made) if n not in lost))
        torn = [place for place in pending if isinstance(made[place].change, Written)]
        for place in drawn.sample(torn, min(2, len(torn))):
            changes = [one.change for one in made]
            changes[place : place + 1] = _torn(changes[place], drawn)
            yield Loss(at=at, how=f"a torn write ({place})", changes=tuple(changes))


def _parts(pending: Sequence[int], drawn: random.Random) -> Iterator[tuple[str, Sequence[int]]]:
    """Parts of what is not durable: every one where it is little, otherwise those likely to hurt and some more."""
    if len(pending) <= FEW:
        for size in range(len(pending) + 1):
            for kept in itertools.combinations(pending, size):
                yield f"of {len(pending)} changes kept: {kept}", kept
        return
    yield "everything kept", pending
    yield "nothing kept that was not synced", ()
    last = len(pending) - SINGLES // 2
    for place in [*sorted(drawn.sample(range(last), min(SINGLES // 2, last))), *range(last, len(pending))]:
        yield f"only change {pending[place]} lost", [*pending[:place], *pending[place + 1 :]]
        yield f"only change {pending[place]} kept", [pending[place]]
        yield f"all from change {pending[place]} on lost", pending[:place]
    for number in range(SUBSETS):
        kept = [place for place in pending if drawn.random() < (0.5, 0.9, 0.2)[number % 3]]
        yield f"some kept ({len(kept)} of {len(pending)})", kept


def _torn(change: Change, drawn: random.Random) -> list[Change]:
    """Some sectors of a block."""
    assert isinstance(change, Written)
    pieces: list[Change] = []
    start = 0
    while start < len(change.data):
        end = start + SECTOR - (change.offset + start) % SECTOR
        if drawn.random() < 0.5:
            pieces.append(Written(node=change.node, offset=change.offset + start, data=change.data[start:end]))
        start = end
    return pieces


def blocks(node: int, offset: int, data: bytes) -> Iterator[Written]:
    """A write as the blocks that the disk takes it in."""
    start = 0
    while start < len(data):
        end = start + BLOCK - (offset + start) % BLOCK
        yield Written(node=node, offset=offset + start, data=data[start:end])
        start = end


def expected(recording: Recording, at: int) -> dict[str, tuple[str | None, ...]]:
    """The values that each key may have after a loss at `at`: the last one told durable, and those begun since."""
    allowed: dict[str, tuple[str | None, ...]] = {}
    for fact in recording.facts:
        if fact.at > at:
            break
        for key, value in fact.values.items():
            allowed[key] = (value,) if fact.is_durable else (*allowed.get(key, (None,)), value)
    return allowed


def groups(recording: Recording, at: int) -> list[dict[str, str | None]]:
    """What was begun together and not told durable by `at`: of each all is there or nothing."""
    begun: list[dict[str, str | None]] = []
    for fact in recording.facts:
        if fact.at > at:
            break
        if fact.is_durable:
            begun = [one for one in begun if one.keys() != fact.values.keys()]
        elif len(fact.values) > 1:
            begun.append(fact.values)
    return begun
