"""Snapshots of containers' files, and what a container rests on that is made upon one.

A snapshot is a committed one of the snapshotter, `branch.<hex>`, with its own entry in the ledger; what it is of is in
its labels. A container is made upon it by an annotation: its own layer is new, and the snapshot is below.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.engine.kinds import BRANCH
from atoll.engine.parts import Parts
from atoll.image.model import Image
from atoll.snapshot.records import Kind, Snapshot
from atoll.snapshot.snapshotter import Snapshotter

BASE = "io.atoll.branch/base"
"""Annotation on a container: the key of the snapshot that it is made upon."""
PREFIX = BRANCH
NAME, CONTAINER, CONTAINER_NAME, POD, IMAGE, IMAGE_ID, CONFIG = (
    "name", "container", "container-name", "pod", "image", "image-id", "config",
)  # fmt: skip
"""Labels."""


def taken(snapshotter: Snapshotter) -> Iterator[Snapshot]:
    """Every snapshot of a container's files, the oldest first."""
    return (one for one in snapshotter.walk(Kind.COMMITTED) if one.name.startswith(PREFIX))


def owners(snapshotter: Snapshotter) -> frozenset[str]:
    """Whose ledger entries are in order because their snapshot is there."""
    return frozenset(one.name for one in taken(snapshotter))


def parent(parts: Parts, config: ContainerConfig, image: Image) -> str | None:
    """What the layer of a container to be rests on: a snapshot where it asks for one, else its image.

    Raises `NotFound` for a snapshot that is not there, `InvalidArgument` for one of another image.
    """
    key = config.annotations.get(BASE)
    if key is None:
        return image.top
    found = next((one for one in taken(parts.snapshotter) if one.name == key), None)
    if found is None:
        raise errors.NotFound(f"annotation {BASE}: {key[:80]!r} is no snapshot; `atoll snapshot ls` lists them")
    if found.labels.get(IMAGE_ID) != image.id:
        raise errors.InvalidArgument(f"annotation {BASE}: snapshot {found.labels.get(NAME, key)} is of another image")
    return key


def layers(parts: Parts, key: str | None, image: Image) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The folders from the snapshot `key` down to its image, and those of the image; each topmost first."""
    uppers: list[Path] = []
    while key is not None and key != image.top:
        uppers.append(parts.snapshotter.fs(key))
        key = parts.snapshotter.stat(key).parent
    return tuple(uppers), tuple(parts.snapshotter.fs(chain) for chain in reversed(image.chain_ids))


def all_layers(parts: Parts, config: ContainerConfig, image: Image) -> tuple[Path, ...]:
    """The folders that a container to be finds its files in, topmost first."""
    uppers, lowers = layers(parts, parent(parts, config, image), image)
    return (*uppers, *lowers)
