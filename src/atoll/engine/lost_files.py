"""Files below the daemon's root that no record names; `fsck` looks for them, as for the strays of `strays`.

    folder    of a snapshot, by its number
    blob      of no image, by its digest; and what is left of a write, as `ingest/<name>`

None is ever entered by an operation: one that is cut short is undone, or swept by the next start.
"""

from __future__ import annotations

from atoll import errors
from atoll.image.store import ImageStore
from atoll.ledger.kind import Entry, Found, Kind
from atoll.snapshot.snapshotter import Snapshotter


class LostFolderKind(Kind):
    """Folders of snapshots that have no record."""

    name = "folder"
    limit_s: float = 60.0

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    async def scan(self) -> list[Found]:
        return [Found(kind=self.name, key=str(number)) for number in await self._snapshotter.lost()]

    async def release(self, entry: Entry) -> None:
        await self._snapshotter.sweep(_number(entry))

    async def exists(self, entry: Entry) -> bool:
        return _number(entry) in await self._snapshotter.lost()


class LostBlobKind(Kind):
    """Blobs of no image, and leftovers of writes."""

    name = "blob"
    limit_s: float = 60.0

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    async def scan(self) -> list[Found]:
        return [Found(kind=self.name, key=key) for key in await self._images.lost.find()]

    async def release(self, entry: Entry) -> None:
        await self._images.lost.remove(entry.key)

    async def exists(self, entry: Entry) -> bool:
        return await self._images.lost.exists(entry.key)


def make(snapshotter: Snapshotter, images: ImageStore) -> dict[str, Kind]:
    """Both, by name."""
    kinds: tuple[Kind, ...] = (LostFolderKind(snapshotter), LostBlobKind(images))
    return {kind.name: kind for kind in kinds}


def _number(entry: Entry) -> int:
    if not entry.key.isdecimal():
        raise errors.InvalidArgument(f"folder {entry.key!r}: is none of a snapshot")
    return int(entry.key)
