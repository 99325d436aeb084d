"""Pulling: callers who want the same image share one flight; the flight ends with its last caller."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from atoll import errors, faults
from atoll.concurrency import TaskOwner, run_to_completion
from atoll.image import records
from atoll.image.config import Auth, ImageSettings
from atoll.image.content import Content
from atoll.image.index import canonical_names
from atoll.image.ingest import Ingester, Leases, Source
from atoll.image.model import (
    Descriptor,
    Index,
    Manifest,
    choose,
    decode,
    digest_of,
    is_index,
    parse_config,
    parse_manifest,
    valid,
)
from atoll.image.progress import OnProgress, Phase, Progress
from atoll.image.reference import Reference
from atoll.image.skopeo import Skopeo
from atoll.image.workers import Workers, first_error

log = logging.getLogger(__name__)

CLEAN_UP_TIMEOUT_S = 60.0
Settle = Callable[[records.Stored, Source], None]
Drop = Callable[[set[str]], Awaitable[None]]


class _Flight:
    """One pull and those who wait for it."""

    def __init__(self) -> None:
        self.future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.task: asyncio.Task[None] | None = None
        self.waiters = 0
        self.listeners: list[OnProgress] = []
        self.states: dict[str, Progress] = {}

    def listen(self, on_progress: OnProgress) -> None:
        self.listeners.append(on_progress)
        for progress in self.states.values():
            on_progress(progress)

    def report(self, digest: str, phase: Phase, done: int, total: int) -> None:
        progress = Progress(digest=digest, phase=phase, done=done, total=total)
        self.states[digest] = progress
        for listener in self.listeners:
            listener(progress)


class Puller:
    """Pulls images into `content` and has them ingested.

    `settle` makes a recorded image known; `drop` deletes those of a failed pull's blobs that nothing needs.
    """

    def __init__(
        self,
        *,
        content: Content,
        ingester: Ingester,
        leases: Leases,
        pool: Workers,
        owner: TaskOwner,
        settings: ImageSettings,
        settle: Settle,
        drop: Drop,
    ) -> None:
        self._content = content
        self._ingester = ingester
        self._leases = leases
        self._pool = pool
        self._owner = owner
        self._settings = settings
        self._downloads = asyncio.Semaphore(settings.limits.downloads)
        self._flights: dict[tuple[str, Auth | None], _Flight] = {}
        self._settle = settle
        self._drop = drop
        self._debts = ingester.debts

    def configure(self, settings: ImageSettings) -> None:
        """Registries and limits for the pulls that begin from now on."""
        self._settings = settings

    async def pull(self, reference: Reference, auth: Auth | None, on_progress: OnProgress | None) -> str:
        """Join or start the pull of `reference`; the ID of the image."""
        key = (str(reference), auth)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            work = self._fly(key, flight, reference, auth)
            try:
                flight.task = self._owner.spawn(work, name=f"image/{reference}/pull")
            except errors.AtollError:
                del self._flights[key]
                raise
        if on_progress is not None:
            flight.listen(on_progress)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.future)
        finally:
            flight.waiters -= 1
            if on_progress is not None:
                flight.listeners.remove(on_progress)
            if not flight.waiters and not flight.future.done():
                self._forget(key, flight)
                await run_to_completion(_end(flight), within=CLEAN_UP_TIMEOUT_S)

    async def close(self) -> None:
        """End what runs; its callers get `Unavailable`."""
        for flight in list(self._flights.values()):
            await run_to_completion(_end(flight), within=CLEAN_UP_TIMEOUT_S)

    def _forget(self, key: tuple[str, Auth | None], flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _fly(
        self, key: tuple[str, Auth | None], flight: _Flight, reference: Reference, auth: Auth | None
    ) -> None:
        try:
            result = await self._pull(reference, auth, flight)
        except asyncio.CancelledError:
            if not flight.future.done():
                flight.future.set_exception(errors.Unavailable(f"{reference}: the pull was ended"))
            raise
        except Exception as error:  # noqa: BLE001 - settled into the future: every caller gets it
            flight.future.set_exception(first_error(error))
        else:
            flight.future.set_result(result)
        finally:
            self._forget(key, flight)

    async def _pull(self, reference: Reference, auth: Auth | None, flight: _Flight) -> str:
        """skopeo goes on to the next mirror where one fails; where one keeps silent, the first of them is left out."""
        mirrors = self._settings.registry(reference.domain).mirrors
        for first in range(len(mirrors)):
            try:
                return await self._pull_by(mirrors[first:], reference, auth, flight)
            except Exception as error:
                if not isinstance(first_error(error), errors.DeadlineExceeded):
                    raise
                log.warning("%s; tried again without the mirror %s", first_error(error), mirrors[first])
        return await self._pull_by((), reference, auth, flight)

    async def _pull_by(self, mirrors: Sequence[str], reference: Reference, auth: Auth | None, flight: _Flight) -> str:
        async with self._skopeo(mirrors, reference, auth) as skopeo:
            with faults.step("pull/manifest"):
                documents = await self._documents(skopeo, reference)
            data = documents[-1]
            limits = self._settings.limits
            manifest = parse_manifest(
                data,
                str(reference),
                max_layers=limits.max_layers,
                max_layer=limits.max_layer_bytes,
                max_config=limits.max_config_bytes,
            )
            for layer in manifest.layers:
                flight.report(layer.digest, Phase.WAITING, 0, layer.size)
            blobs = {blob.digest: blob for blob in (manifest.config, *manifest.layers)}
            names = {*blobs, *(digest_of(document) for document in documents)}
            try:
                async with self._leases.hold(names):
                    with faults.step("pull/fetch"):
                        await self._fetch(skopeo, reference.with_digest(digest_of(data)), blobs, flight)
                    return await self._ingest(reference, documents, manifest, flight)
            except BaseException:
                await self._debts.undone(self._clean_up(names), within=CLEAN_UP_TIMEOUT_S)
                raise

    async def _clean_up(self, names: set[str]) -> None:
        faults.reached("pull/undo")
        await self._drop(names)

    async def _documents(self, skopeo: Skopeo, reference: Reference) -> list[bytes]:
        """The manifest that fits this machine, after the indexes that lead to it."""
        documents: list[bytes] = []
        wanted = reference
        for _ in range(3):
            data = await skopeo.manifest(self._pool, wanted)
            if len(data) > self._settings.limits.max_manifest_bytes:
                raise errors.InvalidArgument(f"{wanted}: a manifest of {len(data)} bytes")
            if wanted.digest is not None and digest_of(data) != wanted.digest:
                raise errors.DataLoss(f"{wanted}: the registry sent a manifest with the digest {digest_of(data)}")
            documents.append(data)
            if not is_index(data, str(wanted)):
                return documents
            index = decode(data, Index, str(wanted))
            chosen = choose(
                index, str(wanted), architecture=self._settings.architecture, variant=self._settings.variant
            )
            wanted = reference.with_digest(valid(chosen, str(wanted), self._settings.limits.max_manifest_bytes).digest)
        raise errors.InvalidArgument(f"{reference}: indexes of indexes, more than 3 deep")

    async def _fetch(self, skopeo: Skopeo, reference: Reference, blobs: dict[str, Descriptor], flight: _Flight) -> None:
        present = await self._pool.run(self._present, blobs)
        for digest in present:
            flight.report(digest, Phase.PRESENT, blobs[digest].size, blobs[digest].size)
        missing = [blob for digest, blob in blobs.items() if digest not in present]
        if not missing:
            return
        waiting = deque(sorted(missing, key=lambda blob: -blob.size))
        async with asyncio.TaskGroup() as group:
            for number in range(min(self._settings.limits.downloads, len(missing))):
                work = self._fetch_some(skopeo, reference, waiting, flight)
                group.create_task(work, name=f"image/{reference}/fetch/{number}")

    async def _fetch_some(
        self, skopeo: Skopeo, reference: Reference, waiting: deque[Descriptor], flight: _Flight
    ) -> None:
        """One of a pull's downloads: takes blobs off `waiting`, the largest first."""
        async with self._downloads:
            if not waiting:
                return
            async with skopeo.blobs(self._pool, reference) as source:
                while waiting:
                    blob = waiting.popleft()
                    flight.report(blob.digest, Phase.DOWNLOADING, 0, blob.size)
                    await source.fetch(blob, self._content, partial(self._downloading, flight, blob))
                    flight.report(blob.digest, Phase.DOWNLOADED, blob.size, blob.size)

    def _downloading(self, flight: _Flight, blob: Descriptor, done: int) -> None:
        if flight.states[blob.digest].phase == Phase.DOWNLOADING:  # a late word from the thread says nothing new
            flight.report(blob.digest, Phase.DOWNLOADING, done, blob.size)

    def _present(self, blobs: dict[str, Descriptor]) -> set[str]:
        return {digest for digest, blob in blobs.items() if self._content.has(digest, blob.size)}

    async def _ingest(self, reference: Reference, documents: list[bytes], manifest: Manifest, flight: _Flight) -> str:
        config = await self._pool.run(
            self._content.read, manifest.config.digest, self._settings.limits.max_config_bytes
        )
        parsed = parse_config(config, manifest)
        for document in documents:
            await self._pool.run(self._content.put, document)
        source = Source(
            manifest_digest=digest_of(documents[-1]),
            manifest_bytes=len(documents[-1]),
            manifest=manifest,
            config=parsed,
            names=canonical_names(reference, digest_of(documents[0])),
            extra_blobs={digest_of(document): len(document) for document in documents},
        )
        return (await self._ingester.ingest(source, flight.report, self._settle)).id

    @asynccontextmanager
    async def _skopeo(self, mirrors: Sequence[str], reference: Reference, auth: Auth | None) -> AsyncGenerator[Skopeo]:
        folder = await self._pool.run(self._content.folder)
        try:
            skopeo = Skopeo(folder, mirrors, reference, auth, self._settings)
            await skopeo.prepare(self._pool)
            yield skopeo
        finally:
            cleanup = self._pool.run(lambda: shutil.rmtree(folder, ignore_errors=True))
            await run_to_completion(cleanup, within=CLEAN_UP_TIMEOUT_S)


async def _end(flight: _Flight) -> None:
    if flight.task is not None:
        flight.task.cancel()
        await asyncio.wait({flight.task})
