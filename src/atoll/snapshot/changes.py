"""What the layers of a container have that others have not: as a list, and as a layer of an image.

Both sides are all layers of a root, topmost first; what lies in the same folders of the same layers is the same and is
not entered. What an OCI runtime made for a mount to stand on is no change of the container's, nor is a folder in which
nothing else is.

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
class Roots:
    """Two roots to compare, by their layers; `mounts` are where something is mounted in the first, absolute.

    `is_copied`: the second has copies of the first's files, so that equal size, time and attributes mean equal files.
    """

    above: Sequence[Path]
    below: Sequence[Path]
    mounts: Iterable[str] = ()
    is_copied: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    """A name, without a slash before it: what is there now, None where it is gone, and what was there."""

    name: str
    node: Node | None
    old: Node | None


def changes(roots: Roots) -> Generator[Changed]:
    """Every change, a folder before what is in it; blocks. Raises `OSError`."""
    for found in _kept(roots):
        change = Change.ADDED if found.old is None else Change.CHANGED
        yield Changed(Change.DELETED if found.node is None else change, f"/{found.name}")


def write_layer(roots: Roots, target: Path) -> None:
    """Write the changes to the new file `target` as a layer in the form of the image specification; blocks.

    Raises `OSError`. Sockets are left out, as they are in every layer.
    """
    with target.open("xb") as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as layer:
        for found in _kept(roots):
            if found.node is not None and not stat.S_ISSOCK(found.node.status.st_mode):
                archive.add(layer, Path(found.node.path), found.name)
            elif found.node is None and found.old is not None:
                folder, _, last = found.name.rpartition("/")
                archive.add_mark(layer, os.path.join(folder, f".wh.{last}"), found.old.status)


def _kept(roots: Roots) -> list[_Found]:
    """What is a change; from the last to the first, for a folder counts by what is in it."""
    points = frozenset(one.strip("/") for one in roots.mounts)
    stands = points | {point[:at] for point in points for at in range(len(point)) if point[at] == "/"}
    kept: list[_Found] = []
    full: set[str] = set()
    for found in reversed(list(_walk(roots))):
        if found.name in full or _counts(found, stands):
            kept.append(found)
            full.add(found.name.rpartition("/")[0])
    return kept[::-1]


def _counts(found: _Found, stands: frozenset[str]) -> bool:
    """Whether it is a change by itself."""
    node, old = found.node, found.old
    if node is None:
        return True
    if old is None:
        is_empty = node.is_folder or (stat.S_ISREG(node.status.st_mode) and not node.status.st_size)
        return not (is_empty and found.name in stands)
    return not (node.is_folder and old.is_folder) or _looks(node) != _looks(old)


def _looks(node: Node) -> tuple[int, int, int]:
    return node.status.st_mode, node.status.st_uid, node.status.st_gid


def _is_copy(node: Node, old: Node) -> bool:
    """Whether two that are no folders are the same, one being a copy of the other that kept its times."""
    now, then = node.status, old.status
    if _looks(node) != _looks(old) or (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
        return False
    if stat.S_ISLNK(now.st_mode) and os.readlink(node.path) != os.readlink(old.path):
        return False
    return now.st_rdev == then.st_rdev and _attributes(node.path) == _attributes(old.path)


def _attributes(path: str) -> dict[str, bytes]:
    names = (one for one in os.listxattr(path, follow_symlinks=False) if not one.startswith(archive.OVERLAY))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


@dataclass(frozen=True, slots=True)
class _Level:
    """One folder, by its parts in the layers of either side."""

    inside: str
    above: Sequence[str]
    below: Sequence[str]


def _walk(roots: Roots) -> Iterator[_Found]:
    """Each name that may differ, in the order of paths, a folder before what is in it."""
    open_folders = [_names(_Level("", [*map(str, roots.above)], [*map(str, roots.below)]), roots)]
    while open_folders:
        found, deeper = next(open_folders[-1], (None, None))
        if found is None:
            open_folders.pop()
            continue
        yield found
        if deeper is not None:
            open_folders.append(_names(deeper, roots))


def _names(level: _Level, roots: Roots) -> Iterator[tuple[_Found, _Level | None]]:
    there, here = visible(level.below), visible(level.above)
    for last in sorted({*here, *there}):
        node, old = here.get(last), there.get(last)
        name, deeper = f"{level.inside}{last}", None
        if node is not None and old is not None:
            if (node.path, node.folders) == (old.path, old.folders):
                continue
            if roots.is_copied and not node.is_folder and not old.is_folder and _is_copy(node, old):
                continue
        if node is not None and node.is_folder:
            deeper = _Level(f"{name}/", node.folders, old.folders if old is not None else [])
        yield _Found(name, node, old), deeper


def visible(folders: Sequence[str]) -> dict[str, Node]:
    """What one folder has that lies in several layers, top first."""
    return {name: node for name, node in children(folders).items() if not node.is_whiteout}


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
