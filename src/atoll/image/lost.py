"""What is in the content store that nobody needs and no operation writes: what a crash, or a hand, has left there."""

from __future__ import annotations

from atoll.database import Database, quarantined
from atoll.image.content import Content
from atoll.image.index import ImageIndex
from atoll.image.ingest import Leases
from atoll.image.workers import Workers

INGEST = "ingest/"
"""Begins the key of what is in the folder of things being written; other keys are digests."""


class LostFiles:
    """The store as fsck sees it."""

    def __init__(self, db: Database, content: Content, index: ImageIndex, leases: Leases, pool: Workers) -> None:
        self._db = db
        self._content = content
        self._index = index
        self._leases = leases
        self._pool = pool

    async def find(self) -> list[str]:
        """The keys of blobs that no image has, and of leftovers in the ingest folder.

        Where a record of an image could not be read every blob may be its own, so that none is told.
        """
        found = [INGEST + name for name in await self._pool.run(self._content.leftovers)]
        if not await self._db.read(lambda connection: quarantined(connection, "images")):
            found += [one for one in await self._pool.run(self._content.digests) if self._is_lost(one)]
        return sorted(found)

    async def exists(self, key: str) -> bool:
        return key in await self.find()

    async def remove(self, *keys: str) -> None:
        """Delete some of them, where nobody needs them by now; idempotent."""
        async with self._leases.gate:
            lost = set(await self.find()).intersection(keys)
            await self._pool.run(self._content.remove, [one for one in lost if not one.startswith(INGEST)])
            for name in (one.removeprefix(INGEST) for one in lost if one.startswith(INGEST)):
                await self._pool.run(self._content.drop_leftover, name)

    def _is_lost(self, digest: str) -> bool:
        if self._leases.all_held or digest in self._leases:
            return False
        return not any(digest in self._index.stored(image.id).blobs for image in self._index)
