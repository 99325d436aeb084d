"""What the upper layers of a container have that those below have not: as a list, and as a layer of an image.

Several uppers count as one, top first: those of a container that was made upon a snapshot. What an OCI runtime made for
a mount to stand on is no change of the container's, nor is a folder in which nothing else is.

Overlay's marks are a device 0/0 in the place of what was deleted, and an attribute on a folder that hides all below it
(Documentation/filesystems/overlayfs). Nothing is followed.
"""

from __future__ import annotations

import enum
import os
import stat
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atoll.snapshot import archive


class Change(enum.StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Changed:
    """One path that differs, absolute in the container; a folder is changed too where something in it is."""

    change: Change
    path: str


@dataclass(slots=True)
class Node:
    """One name in some layers that are one: what it is in the topmost, and of a folder its parts, top first."""

    path: str
    status: os.stat_result
    folders: list[str] = field(default_factory=list[str])
    hides: bool = False
    """Whether nothing of this name that lies below these layers is seen."""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_whiteout(self) -> bool:
        return stat.S_ISCHR(self.status.st_mode) and self.status.st_rdev == 0


@dataclass(frozen=True, slots=True)
class _Found:
    """A name, without a slash before it. `node` is what the uppers have, None where a mark hides the lowers'."""

    name: str
    node: Node | None
    below: Node | None

    @property
    def is_deleted(self) -> bool:
        return self.node is None or self.node.is_whiteout


def changes(uppers: Sequence[Path], lowers: Sequence[Path], mounts: Iterable[str] = ()) -> Generator[Changed]:
    """Every change of `uppers` to `lowers`, a folder before what is in it; blocks. Raises `OSError`.

    `mounts` are where something is mounted in the container, absolute.
    """
    for found in _kept(uppers, lowers, mounts):
        change = Change.ADDED if found.below is None else Change.CHANGED
        yield Changed(Change.DELETED if found.is_deleted else change, f"/{found.name}")


def write_layer(uppers: Sequence[Path], lowers: Sequence[Path], target: Path, mounts: Iterable[str] = ()) -> None:
    """Write the changes to the new file `target` as a layer in the form of the image specification; blocks.

    Raises `OSError`. Sockets are left out, as they are in every layer.
    """
    with target.open("xb") as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as layer:
        for found in _kept(uppers, lowers, mounts):
            folder, _, last = found.name.rpartition("/")
            if found.node is None:
                continue  # the mark of its folder hides it
            if found.node.is_whiteout:
                archive.add_mark(layer, os.path.join(folder, f".wh.{last}"), found.node.status)
            elif not stat.S_ISSOCK(found.node.status.st_mode):
                archive.add(layer, Path(found.node.path), found.name)
                if found.node.is_folder and found.node.hides and found.below is not None and found.below.is_folder:
                    archive.add_mark(layer, f"{found.name}/.wh..wh..opq", found.node.status)


def _kept(uppers: Sequence[Path], lowers: Sequence[Path], mounts: Iterable[str]) -> list[_Found]:
    """What is a change; from the last to the first, for a folder counts by what is in it."""
    points = frozenset(one.strip("/") for one in mounts)
    stands = points | {point[:at] for point in points for at in range(len(point)) if point[at] == "/"}
    kept: list[_Found] = []
    full: set[str] = set()
    for found in reversed(list(_walk(uppers, lowers))):
        if _counts(found, stands, is_full=found.name in full):
            kept.append(found)
            full.add(found.name.rpartition("/")[0])
    return kept[::-1]


def _counts(found: _Found, stands: frozenset[str], *, is_full: bool) -> bool:
    node, below = found.node, found.below
    if node is None or node.is_whiteout:
        return below is not None
    if is_full:
        return True
    if below is None:
        is_empty = node.is_folder or (stat.S_ISREG(node.status.st_mode) and not node.status.st_size)
        return not (is_empty and found.name in stands)
    return not node.is_folder or not below.is_folder or node.hides or _looks(node) != _looks(below)


def _looks(node: Node) -> tuple[int, int, int]:
    return node.status.st_mode, node.status.st_uid, node.status.st_gid


@dataclass(frozen=True, slots=True)
class _Level:
    """One folder: its parts in the uppers and the lowers; `is_hidden` where the uppers hide the lowers' altogether."""

    inside: str
    above: list[str]
    below: list[str]
    is_hidden: bool = False


def _walk(uppers: Sequence[Path], lowers: Sequence[Path]) -> Iterator[_Found]:
    """Each name in the uppers and what the lowers have there, in the order of paths, a folder before what is in it."""
    top = _Level("", [str(one) for one in uppers], [str(one) for one in lowers])
    open_folders = [_names(top)]
    while open_folders:
        found, deeper = next(open_folders[-1], (None, None))
        if found is None:
            open_folders.pop()
            continue
        yield found
        if deeper is not None:
            open_folders.append(_names(deeper))


def _names(level: _Level) -> Iterator[tuple[_Found, _Level | None]]:
    there = {name: node for name, node in children(level.below).items() if not node.is_whiteout}
    here = children(level.above)
    for last in sorted({*here, *there} if level.is_hidden else here):
        node, old = here.get(last), there.get(last)
        name = f"{level.inside}{last}"
        deeper = None
        if node is not None and node.is_folder:
            below = old.folders if old is not None else []
            deeper = _Level(f"{name}/", node.folders, below, level.is_hidden or node.hides)
        yield _Found(name, node, old), deeper


def children(folders: Sequence[str]) -> dict[str, Node]:
    """What one folder has that lies in several layers, top first; whiteouts of names that nothing covers too."""
    found: dict[str, Node] = {}
    closed: set[str] = set()
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in closed:
                    continue
                status = entry.stat(follow_symlinks=False)
                node = found.get(entry.name)
                is_folder = stat.S_ISDIR(status.st_mode)
                if node is None:
                    node = found[entry.name] = Node(entry.path, status)
                    node.hides = not is_folder
                elif not is_folder:
                    node.hides = True
                if is_folder:
                    node.folders.append(entry.path)
                    node.hides = archive.is_opaque(entry.path)
                if node.hides:
                    closed.add(entry.name)
    return found
