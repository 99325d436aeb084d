"""The image store: pull, import, look up, tag, remove, collect.

    blobs      <root>/content (`content`)           what was fetched, as it came
    snapshots  by chain ID (`atoll.snapshot`)       what containers are made upon
    records    `state.db` (`records`)               which images there are, and their names
    index      memory (`index`)                     answers every question

An image is there when its record is: blobs and snapshots without one are rubbish, which `collect`
deletes unless a running operation leases it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from atoll import errors, faults
from atoll.concurrency import Blocking, TaskOwner, run_to_completion
from atoll.database import Database
from atoll.image import builtin, records
from atoll.image.archive import Archive, Found
from atoll.image.committing import Commit, config_document, layer_descriptor, manifest_document
from atoll.image.config import Auth, ImageSettings
from atoll.image.content import Content, chunks_of
from atoll.image.debts import Debts
from atoll.image.index import ImageIndex, canonical_names
from atoll.image.ingest import Ingester, Leases, Source
from atoll.image.lost import LostFiles
from atoll.image.model import Image, Imported, digest_of, parse_config, parse_manifest
from atoll.image.outward import Outward
from atoll.image.progress import OnProgress, ignore
from atoll.image.pull import Puller
from atoll.image.reference import Reference, is_digest
from atoll.image.unpacker import Unpacker
from atoll.image.workers import Workers
from atoll.snapshot.records import NOTHING, Kind, Usage
from atoll.snapshot.snapshotter import Snapshotter

log = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 30.0
BUILTINS = f"{builtin.BUSYBOX} and {builtin.PAUSE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecovery:
    """What `recover` found: records that cannot be read (now in quarantine), and images whose snapshots are lost."""

    unreadable: tuple[str, ...]
    broken: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What `collect` deleted; `bytes` counts blobs and snapshots."""

    snapshots: tuple[str, ...]
    blobs: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUsage:
    """What images take: compressed blobs, and the committed snapshots made from them."""

    root: Path
    blobs: Usage
    snapshots: Usage


class ImageStore:
    """The images below `root`. Call `recover` (after the snapshotter's) before anything else, `close` at the end.

    Lookups never touch the disk. Operations are safe for concurrent use from one event loop, and either
    happen whole or leave nothing.
    """

    def __init__(
        self,
        root: Path,
        db: Database,
        snapshotter: Snapshotter,
        blocking: Blocking,
        owner: TaskOwner,
        settings: ImageSettings,
    ) -> None:
        self._root = root.absolute()
        self._db = db
        self._snapshotter = snapshotter
        self._blocking = blocking
        self._settings = settings
        self._content = Content(self._root)
        self._index = ImageIndex()
        self._leases = Leases()
        self._installing = asyncio.Lock()
        limits = settings.limits
        self._pool = Workers(limits.downloads + limits.unpacks + 3)  # downloads occupy their thread for long
        self._unpacker = Unpacker(limits, self._pool)
        self.debts = Debts(owner, self._reclaim)
        self._ingester = Ingester(
            db, snapshotter, self._content, self._unpacker, self._pool, leases=self._leases, debts=self.debts
        )
        self._puller = Puller(
            content=self._content,
            ingester=self._ingester,
            leases=self._leases,
            pool=self._pool,
            owner=owner,
            settings=settings,
            settle=self._settle,
            drop=self._drop,
        )

        self.configure(settings)

    def configure(self, settings: ImageSettings) -> None:
        """Registries, credentials, limits and pinned names from now on; how many work at a time stays as it began."""
        self._settings = settings
        self._puller.configure(settings)
        self._unpacker.limits = settings.limits
        self._index.pin_names(frozenset(_canonical(name) for name in settings.pinned))

    async def recover(self) -> ImageRecovery:
        """Read the records; an image whose snapshots are lost is reported and not served until pulled again.

        Blobs that no record names are of a pull that never ended. Nothing made them durable, so that a loss of power
        may have left a name with other bytes, or none: they are deleted, not believed.
        """
        await self._blocking.run(self._content.make)
        rows, unreadable = await self._db.write(records.load)
        recorded = {digest for row in rows for digest in row.stored.blobs}
        await self._blocking.run(self._content.keep_only, recorded)
        broken: list[str] = []
        for row in rows:
            if all(self._snapshotter.has(name) for name in row.stored.chain_ids):
                self._index.put(row.stored, row.names, pinned=row.pinned)
            else:
                broken.append(row.stored.id)
        for image_id in (*unreadable, *broken):
            log.error("image %s: its record or its snapshots are lost; pull it again", image_id)
        return ImageRecovery(unreadable=tuple(unreadable), broken=tuple(broken))

    async def close(self) -> None:
        """End running pulls and the threads; idempotent."""
        await self._puller.close()
        await self._blocking.run(self._pool.close)

    # --- lookups, from memory ---

    def get(self, ref_or_id: str) -> Image:
        """The image by reference, ID, prefix of an ID, or digest; `NotFound`, or `InvalidArgument` (malformed)."""
        found = self._index.find(ref_or_id)
        if found is None:
            raise errors.NotFound(f"image {ref_or_id}: is not there; pull it first")
        return found[0]

    def find(self, ref_or_id: str) -> Image | None:
        """As `get`, with None for an image that is not there."""
        found = self._index.find(ref_or_id)
        return found[0] if found is not None else None

    def list(self, ref_or_id: str = "") -> tuple[Image, ...]:
        """Every image, or the one that `ref_or_id` names."""
        if not ref_or_id:
            return tuple(self._index)
        found = self._index.find(ref_or_id)
        return (found[0],) if found is not None else ()

    def usage(self) -> ImageUsage:
        """What the store takes, from the records."""
        committed = (one.usage for one in self._snapshotter.walk(Kind.COMMITTED))
        content = {digest: size for image in self._index for digest, size in self._index.stored(image.id).blobs.items()}
        blobs = Usage(bytes=sum(content.values()), inodes=len(content))
        return ImageUsage(root=self._root, blobs=blobs, snapshots=sum(committed, start=NOTHING))

    async def document(self, image: Image) -> bytes:
        """The image's config as its registry has it; raises `DataLoss` where the disk has lost it."""
        try:
            return await self._pool.run(self._content.read, image.id, self._settings.limits.max_config_bytes)
        except errors.NotFound as error:
            raise errors.DataLoss(f"image {image.id}: its config is lost; pull it again") from error

    @property
    def outward(self) -> Outward:
        """What sends images away reads them by this."""
        return Outward(self._content, self._index, self._leases, self._pool, self._settings)

    @property
    def lost(self) -> LostFiles:
        """What fsck looks for in the content store."""
        return LostFiles(self._db, self._content, self._index, self._leases, self._pool)

    # --- ways in ---

    async def pull(self, ref: str, auth: Auth | None = None, on_progress: OnProgress | None = None) -> Image:
        """Fetch the image `ref` from its registry; durable and usable when it returns.

        Callers of one reference with equal credentials share one pull, and each is told its progress; it
        ends when the last of them is cancelled, and leaves nothing. A built-in image is never fetched; one that
        was removed is made again.
        Raises `NotFound`, `Unauthenticated`, `PermissionDenied`, `Unavailable` (the registry),
        `InvalidArgument` (the image), `DataLoss` (wrong digest), `DeadlineExceeded` (no progress).
        """
        reference = Reference.parse(ref)
        if reference.repository.startswith(builtin.REPOSITORY_PREFIX):
            return await self._builtin(str(reference))
        image_id = await self._puller.pull(reference, auth, on_progress)
        return self.get(image_id)

    async def import_archive(self, path: Path, ref: str | None = None) -> list[Imported]:
        """Take the images of an OCI layout (a folder) or of an OCI or docker archive (a file, perhaps compressed).

        They get the names that the archive gives them, or `ref` where it has one image. All or none.
        Raises `NotFound` (`path`), `InvalidArgument`, `DataLoss`.
        """
        name = Reference.parse(ref) if ref is not None else None
        if name is not None and name.digest is not None:
            raise errors.InvalidArgument(f"{ref}: an imported image is named by a tag; its digest is what it is")
        try:
            mode = (await self._blocking.run(os.stat, path)).st_mode
        except OSError as error:
            raise errors.NotFound(f"{path}: cannot be read: {error.strerror}") from error
        is_folder = stat.S_ISDIR(mode)
        if not is_folder and not stat.S_ISREG(mode):  # whoever opened a pipe would wait for its writer
            raise errors.InvalidArgument(f"{path}: is neither a file nor a folder")
        scratch = await self._blocking.run(self._content.folder)
        try:
            if is_folder:
                return await self._import_folder(path, name, path)
            with faults.step("import/unpack"):
                await self._unpacker.unpack(path, scratch, str(path), lambda _: None, plain=True)
            return await self._import_folder(scratch, name, path)
        finally:
            cleanup = self._pool.run(lambda: shutil.rmtree(scratch, ignore_errors=True))
            await run_to_completion(cleanup, within=WRITE_TIMEOUT_S)

    async def _import_folder(self, folder: Path, name: Reference | None, told: Path) -> list[Imported]:
        before: dict[str, int] = {}
        try:
            async with self._leases.hold_all():
                before = await self._pool.run(self._content.digests)
                archive = Archive(folder, self._content, self._settings, str(told))
                with faults.step("import/take"):
                    found = await self._pool.finish(archive.take, stop=archive.stop)
                if name is not None and len(found) != 1:
                    raise errors.InvalidArgument(f"{told}: has {len(found)} images; one name cannot be all of them")
                return [await self._import(one, name) for one in found]
        except BaseException:
            await self.debts.undone(self._drop_new(before), within=WRITE_TIMEOUT_S)
            raise

    async def _import(self, found: Found, name: Reference | None) -> Imported:
        names = found.names if name is None else (name,)
        source = self._source(found.manifest, found.config, names, found.digest)
        stored = await self._ingester.ingest(source, ignore, self._settle)
        return Imported(image=self.get(stored.id), names=tuple(str(one) for one in names))

    async def scratch(self) -> Path:
        """A private folder beside the blobs, which the caller removes, or the next daemon."""
        return await self._blocking.run(self._content.folder)

    async def commit(self, base: Image, layer: Path, name: str, commit: Commit) -> Image:
        """The image of `base` and one more layer, the tar `layer`, under `name` if that is not empty; durable.

        Raises `InvalidArgument` for a name or a change that is none, `DataLoss` where the disk has lost the base.
        """
        reference = Reference.parse(name) if name else None
        if reference is not None and (reference.digest is not None or reference.tagged is None):
            raise errors.InvalidArgument(f"{name}: a digest cannot be given to an image; name a tag")
        most = self._settings.limits.max_manifest_bytes
        before: dict[str, int] = {}
        try:
            async with self._leases.hold_all():
                before = await self._pool.run(self._content.digests)
                manifest = await self._pool.run(self._content.read, base.manifest_digest, most)
                diff_id, size = await self._pool.run(self._put_file, layer)
                config = config_document(await self.document(base), diff_id, commit)
                made = manifest_document(manifest, config, layer_descriptor(diff_id, size))
                for data in (config, made):
                    await self._pool.run(self._content.put, data)
                source = self._source(made, config, () if reference is None else (reference,), digest_of(made))
                stored = await self._ingester.ingest(source, ignore, self._settle)
        except BaseException:
            await self.debts.undone(self._drop_new(before), within=WRITE_TIMEOUT_S)
            raise
        return self.get(stored.id)

    def _put_file(self, path: Path) -> tuple[str, int]:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            return self._content.write(chunks_of(descriptor), None, size), size
        finally:
            os.close(descriptor)

    async def install_builtins(self) -> tuple[Image, ...]:
        """Make sure that `atoll/busybox` and `atoll/pause` are there, of this host's busybox; idempotent.

        Raises `FailedPrecondition` where the host has no static busybox.
        """
        busybox = await self._blocking.run(builtin.find_busybox)
        images: list[Image] = []
        async with self._installing:
            for one in await self._blocking.run(builtin.build, busybox):
                image = self.find(one.name)
                if image is None or image.id != digest_of(one.config):
                    image = await self._install(one)
                images.append(image)
        return tuple(images)

    async def _builtin(self, name: str) -> Image:
        if (image := self.find(name)) is not None:
            return image
        for image in await self.install_builtins() if name in (builtin.BUSYBOX, builtin.PAUSE) else ():
            if name in image.repo_tags:
                return image
        raise errors.NotFound(f"{name}: built-in images are never fetched; there are {BUILTINS}")

    async def _install(self, one: builtin.Builtin) -> Image:
        source = self._source(
            one.manifest, one.config, (Reference.parse(one.name),), digest_of(one.manifest), one.pinned
        )
        async with self._leases.hold([digest_of(data) for data in (one.layer, one.config, one.manifest)]):
            for data in (one.layer, one.config, one.manifest):
                await self._blocking.run(self._content.put, data)
            stored = await self._ingester.ingest(source, ignore, self._settle)
        return self.get(stored.id)

    def _source(
        self, manifest: bytes, config: bytes, names: Iterable[Reference], digest: str, pinned: bool = False
    ) -> Source:
        limits = self._settings.limits
        parsed = parse_manifest(
            manifest,
            digest,
            max_layers=limits.max_layers,
            max_layer=limits.max_layer_bytes,
            max_config=limits.max_config_bytes,
        )
        return Source(
            manifest_digest=digest_of(manifest),
            manifest_bytes=len(manifest),
            manifest=parsed,
            config=parse_config(config, parsed),
            names=tuple(name for one in names for name in canonical_names(one, digest)),
            extra_blobs={},
            pinned=pinned,
        )

    def _settle(self, stored: records.Stored, source: Source) -> None:
        self._index.put(stored, source.names, pinned=source.pinned)

    # --- changes ---

    async def tag(self, ref_or_id: str, tag: str) -> Image:
        """Give the image `ref_or_id` the name `tag`, taking it from whichever had it; durable when it returns."""
        image = self.get(ref_or_id)
        reference = Reference.parse(tag)
        if reference.digest is not None or reference.tagged is None:
            raise errors.InvalidArgument(f"{tag}: a digest cannot be given to an image; name a tag")
        return await run_to_completion(self._name(image.id, reference.tagged), within=WRITE_TIMEOUT_S)

    async def _name(self, image_id: str, name: str) -> Image:
        await self._db.write(lambda connection: records.name(connection, image_id, [name]))
        return self._index.name(image_id, [name])

    async def pin(self, ref_or_id: str, pinned: bool = True) -> Image:
        """Say whether automatic removal must leave the image alone; durable when it returns."""
        image = self.get(ref_or_id)
        await self._db.write(lambda connection: records.pin(connection, image.id, pinned))
        self._index.pin(image.id, pinned)
        return self.get(image.id)

    async def remove(self, ref_or_id: str) -> str | None:
        """Remove a name, or by ID the image with all its names; idempotent; durable when it returns.

        Removing the last tag removes the image; the ID of an image that is gone is returned. What its
        containers rest on stays; disk space comes back with `collect`.
        """
        found = self._index.find(ref_or_id)
        if found is None:
            return None
        image, name = found
        going = _going(image, name)
        left = {*image.repo_tags, *image.repo_digests} - going
        return await run_to_completion(self._remove(image.id, going, whole=not left), within=WRITE_TIMEOUT_S)

    async def _remove(self, image_id: str, names: AbstractSet[str], *, whole: bool) -> str | None:
        if whole:
            with faults.step("remove image/record"):
                await self._db.write(lambda connection: records.forget(connection, image_id))
            self._index.forget(image_id)
            return image_id
        await self._db.write(lambda connection: records.forget_names(connection, names))
        self._index.forget_names(names)
        return None

    async def collect(self, in_use: AbstractSet[str] = frozenset()) -> Collected:
        """Delete committed snapshots and blobs that no image needs.

        Kept: what an image's record names, what a snapshot rests on, what a running operation leases, and the
        chain IDs in `in_use`.
        """
        kept = set(in_use)
        for image in self._index:
            kept.update(image.chain_ids)
        freed = 0
        snapshots: list[str] = []
        while candidates := self._candidates(kept, snapshots):
            for name in candidates:
                size = await self._collect_snapshot(name)
                snapshots.append(name)  # also where it was refused: it is not asked again
                freed += size
        blobs = await self._collect_blobs()
        return Collected(
            snapshots=tuple(name for name in snapshots if not self._snapshotter.has(name)),
            blobs=tuple(blobs),
            bytes=freed + sum(blobs.values()),
        )

    async def _reclaim(self) -> None:
        """`collect`, and all that is on the disk without a record."""
        await self.collect()
        for number in await self._snapshotter.lost():
            await self._snapshotter.sweep(number)
        await self.lost.remove(*await self.lost.find())

    def _candidates(self, kept: AbstractSet[str], seen: Iterable[str]) -> list[str]:
        passed = kept | set(seen)
        return [
            one.name
            for one in self._snapshotter.walk(Kind.COMMITTED)
            if is_digest(one.name) and one.name not in passed and not self._snapshotter.has_children(one.name)
        ]

    async def _collect_snapshot(self, name: str) -> int:
        async with self._leases.gate:
            if name in self._leases or any(name in image.chain_ids for image in self._index):
                return 0
            size = self._snapshotter.stat(name).usage.bytes
            try:
                with faults.step("remove image/snapshot"):
                    await self._snapshotter.remove(name)
            except errors.FailedPrecondition:  # a container was made upon it meanwhile
                return 0
            return size

    async def _collect_blobs(self) -> dict[str, int]:
        async with self._leases.gate:
            present = await self._pool.run(self._content.digests)
            return await self._delete_blobs(present)

    async def _drop(self, digests: AbstractSet[str]) -> None:
        """Delete what a failed pull brought, unless something else needs it by now."""
        async with self._leases.gate:
            await self._delete_blobs(dict.fromkeys(digests, 0))

    async def _drop_new(self, before: Mapping[str, int]) -> None:
        """Delete what a failed import brought, unless something else needs it by now."""
        faults.reached("import/undo")
        async with self._leases.gate:
            present = await self._pool.run(self._content.digests)
            await self._delete_blobs({digest: size for digest, size in present.items() if digest not in before})

    async def _delete_blobs(self, present: Mapping[str, int]) -> dict[str, int]:
        if self._leases.all_held:  # an import is on its way, whose blobs nobody knows yet
            return {}
        needed = {digest for image in self._index for digest in self._index.stored(image.id).blobs}
        rubbish = {d: size for d, size in present.items() if d not in needed and d not in self._leases}
        with faults.step("remove image/blobs"):
            await self._pool.run(self._content.remove, list(rubbish))
        return rubbish


def _canonical(name: str) -> str:
    reference = Reference.parse(name)
    return str(reference if reference.digest is None else reference.with_digest(reference.digest))


def _going(image: Image, name: str | None) -> set[str]:
    """The names that go with `name`: a repository's digests go with its last tag."""
    if name is None:
        return {*image.repo_tags, *image.repo_digests}
    going = {name}
    if "@" not in name:
        repository = name.rpartition(":")[0]
        if not any(tag.rpartition(":")[0] == repository for tag in image.repo_tags if tag != name):
            going.update(digest for digest in image.repo_digests if digest.startswith(repository + "@"))
    return going
