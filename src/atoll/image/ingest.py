"""From blobs to an image: unpack what is missing of its chain, then record all of it in one transaction.

The locks of chain IDs are taken from the lowest layer upwards, and chains form a forest, so two images
that share layers wait for each other without a deadlock, and a layer is unpacked once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from atoll import errors, faults
from atoll.concurrency import run_to_completion
from atoll.database import Connection, Database
from atoll.image import records
from atoll.image.content import Content
from atoll.image.debts import Debts
from atoll.image.implied import inherit
from atoll.image.model import ConfigDocument, Manifest, chain_ids
from atoll.image.progress import Phase, Report
from atoll.image.unpacker import Unpacked, Unpacker
from atoll.image.workers import Workers, first_error
from atoll.snapshot.records import Snapshot
from atoll.snapshot.snapshotter import Snapshotter, Staged

COMMIT_TIMEOUT_S = 120.0


class Leases:
    """What running operations need although no record names it yet; the collector passes it over."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self.gate = asyncio.Lock()
        """Held while something is chosen for deletion and deleted, and while something is leased."""

        self._imports = 0

    def __contains__(self, name: str) -> bool:
        return name in self._held

    @property
    def all_held(self) -> bool:
        """Whether an operation runs that cannot say beforehand which blobs it will need."""
        return self._imports > 0

    @asynccontextmanager
    async def hold_all(self) -> AsyncGenerator[None]:
        """Lease every blob that there is and will be."""
        async with self.gate:
            self._imports += 1
        try:
            yield
        finally:
            self._imports -= 1

    @asynccontextmanager
    async def hold(self, names: Iterable[str]) -> AsyncGenerator[None]:
        held = list(names)
        async with self.gate:
            self._held.update(held)
        try:
            yield
        finally:
            self._held.subtract(held)
            self._held = +self._held


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An image whose blobs are all in the content store."""

    manifest_digest: str
    manifest_bytes: int
    manifest: Manifest
    config: ConfigDocument
    names: tuple[str, ...]
    extra_blobs: dict[str, int]
    pinned: bool = False


class Ingester:
    """Makes images of sources."""

    def __init__(
        self,
        db: Database,
        snapshotter: Snapshotter,
        content: Content,
        unpacker: Unpacker,
        pool: Workers,
        *,
        leases: Leases,
        debts: Debts,
    ) -> None:
        self._db = db
        self._snapshotter = snapshotter
        self._content = content
        self._unpacker = unpacker
        self._pool = pool
        self._leases = leases
        self.debts = debts
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    async def ingest(
        self, source: Source, report: Report, settle: Callable[[records.Stored, Source], None]
    ) -> records.Stored:
        """Unpack and record `source`; durable, and `settle` called, when it returns. Nothing is left where it fails."""
        chain = chain_ids(source.config.rootfs.diff_ids)
        stored = _stored(source, chain)
        async with self._leases.hold([*chain, *stored.blobs]), AsyncExitStack() as stack:
            for name in chain:
                await stack.enter_async_context(self._locked(name))
            staged: dict[int, Staged] = {}
            try:
                missing = [index for index, name in enumerate(chain) if not self._snapshotter.has_folder(name)]
                for index in missing:
                    staged[index] = await self._snapshotter.stage()
                with faults.step("image/unpack"):
                    unpacked = await self._unpack(source, staged, report)
                planned = self._plan(chain, staged, unpacked)
                await run_to_completion(self._inherit(chain, staged, unpacked), within=COMMIT_TIMEOUT_S)
                with faults.step("image/record"):
                    await run_to_completion(self._commit(source, stored, planned, settle), within=COMMIT_TIMEOUT_S)
            except BaseException:
                lost = [one for index, one in staged.items() if not self._is_committed(chain[index], one)]
                await self.debts.undone(self._snapshotter.discard(lost), within=COMMIT_TIMEOUT_S)
                raise
        return stored

    @asynccontextmanager
    async def _locked(self, name: str) -> AsyncGenerator[None]:
        lock = self._locks.setdefault(name, asyncio.Lock())
        self._waiting[name] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name], self._locks[name]

    async def _unpack(self, source: Source, staged: dict[int, Staged], report: Report) -> dict[int, Unpacked]:
        results: dict[int, Unpacked] = {}

        async def one(index: int) -> None:
            layer = source.manifest.layers[index]
            what = f"layer {layer.digest}"
            path = self._content.path(layer.digest)
            report(layer.digest, Phase.UNPACKING, 0, layer.size)
            result = await self._unpacker.unpack(
                path, staged[index].fs, what, lambda done: report(layer.digest, Phase.UNPACKING, done, layer.size)
            )
            wanted = source.config.rootfs.diff_ids[index]
            if result.diff_id != wanted:
                raise errors.DataLoss(f"{what}: its tar has the digest {result.diff_id}, its image says {wanted}")
            results[index] = result
            report(layer.digest, Phase.DONE, layer.size, layer.size)

        try:
            async with asyncio.TaskGroup() as group:
                for index in staged:
                    name = f"image/{source.manifest.layers[index].digest}/unpack"
                    group.create_task(one(index), name=name)
        except ExceptionGroup as failed:
            raise first_error(failed) from None
        return results

    def _plan(self, chain: Sequence[str], staged: dict[int, Staged], unpacked: dict[int, Unpacked]) -> list[Snapshot]:
        return [
            self._snapshotter.plan_staged(
                staged[index], chain[index], chain[index - 1] if index else None, unpacked[index].usage
            )
            for index in sorted(staged)
        ]

    async def _inherit(self, chain: Sequence[str], staged: dict[int, Staged], unpacked: dict[int, Unpacked]) -> None:
        """Lowest first: a layer's implied folders may be implied in the one below, too."""
        folders = [staged[i].fs if i in staged else self._snapshotter.fs(name) for i, name in enumerate(chain)]
        for index in sorted(staged):
            if index and unpacked[index].implied:
                await self._pool.run(inherit, folders[index], unpacked[index].implied, folders[index - 1 :: -1])

    async def _commit(
        self,
        source: Source,
        stored: records.Stored,
        planned: list[Snapshot],
        settle: Callable[[records.Stored, Source], None],
    ) -> None:
        await self._snapshotter.sync()

        def change(connection: Connection) -> None:
            self._snapshotter.record_staged(connection, planned)
            records.save(connection, stored, source.names, pinned=source.pinned)

        await self._db.write(change)
        self._snapshotter.settle_staged(planned)
        settle(stored, source)

    def _is_committed(self, name: str, staged: Staged) -> bool:
        return self._snapshotter.has_folder(name) and self._snapshotter.stat(name).number == staged.number


def _stored(source: Source, chain: tuple[str, ...]) -> records.Stored:
    manifest = source.manifest
    blobs = {source.manifest_digest: source.manifest_bytes, manifest.config.digest: manifest.config.size}
    blobs |= {layer.digest: layer.size for layer in manifest.layers}
    return records.Stored(
        id=manifest.config.digest,
        manifest_digest=source.manifest_digest,
        blobs={**source.extra_blobs, **blobs},
        size=sum(blobs.values()),
        config=source.config.parsed(),
        chain_ids=chain,
        created=source.config.created or "",
    )
