"""What leaves the store is read through here: images whose blobs stay for as long as somebody sends them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from atoll import errors
from atoll.image.config import ImageSettings
from atoll.image.content import Content
from atoll.image.index import ImageIndex
from atoll.image.ingest import Leases
from atoll.image.model import Image, Manifest, parse_manifest
from atoll.image.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An image that leaves: its manifest as it came, and parsed."""

    image: Image
    document: bytes
    manifest: Manifest
    name: str
    """The canonical name that it was asked by; empty for an ID."""


class Outward:
    """The store as seen by `push` and `export`."""

    def __init__(
        self, content: Content, index: ImageIndex, leases: Leases, pool: Workers, settings: ImageSettings
    ) -> None:
        self.content = content
        self.pool = pool
        self.settings = settings
        self._index = index
        self._leases = leases

    @asynccontextmanager
    async def held(self, ref_or_id: str) -> AsyncGenerator[Held]:
        """The image by reference or ID, whole while the block lasts.

        Raises `NotFound`, `InvalidArgument` (malformed), `DataLoss` where the disk has lost some of it.
        """
        found = self._index.find(ref_or_id)
        if found is None:
            raise errors.NotFound(f"image {ref_or_id!r}: is not here; `atoll images` shows what is")
        image, name = found
        limits = self.settings.limits
        async with self._leases.hold(self._index.stored(image.id).blobs):
            try:
                document = await self.pool.run(self.content.read, image.manifest_digest, limits.max_manifest_bytes)
                manifest = parse_manifest(
                    document,
                    image.manifest_digest,
                    max_layers=limits.max_layers,
                    max_layer=limits.max_layer_bytes,
                    max_config=limits.max_config_bytes,
                )
                missing = await self.pool.run(self._missing, manifest)
            except errors.NotFound as error:
                raise errors.DataLoss(f"image {ref_or_id}: {error}; pull it again") from error
            if missing:
                raise errors.DataLoss(f"image {ref_or_id}: blob {missing[0]} is lost; pull it again")
            yield Held(image=image, document=document, manifest=manifest, name=name or "")

    def _missing(self, manifest: Manifest) -> list[str]:
        blobs = (manifest.config, *manifest.layers)
        return [blob.digest for blob in blobs if not self.content.has(blob.digest, blob.size)]
