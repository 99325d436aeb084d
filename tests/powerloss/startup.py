"""Start the stores from a disk that a power loss may have left, and say what is there."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.concurrency import Blocking, TaskOwner
from atoll.container.checkpoint import FILE
from atoll.container.store import ContainerStore
from atoll.daemon.compose import SCHEMAS
from atoll.database import Database, Schema
from atoll.engine.hosted import HostedStore
from atoll.engine.paths import Paths
from atoll.image.config import ImageSettings
from atoll.image.store import ImageStore
from atoll.ledger.kind import Entry, Found, Kind
from atoll.ledger.ledger import Ledger
from atoll.sandbox.store import SandboxStore
from atoll.snapshot.records import Kind as SnapshotKind
from atoll.snapshot.snapshotter import Snapshotter

UPGRADE = """
CREATE TABLE upgraded (id TEXT PRIMARY KEY);
INSERT INTO upgraded SELECT id FROM sandboxes;
UPDATE sandboxes SET updated_at = updated_at + 1;
"""
NEWER = tuple(
    dataclasses.replace(
        schema,
        migrations=(
            *schema.migrations,
            UPGRADE,
        ),
    )
    if schema.component == "sandbox"
    else schema
    for schema in SCHEMAS
)
"""The schemas of an Atoll that comes after this one."""


class Thing(Kind):
    """A resource that the ledger is asked about; there is none."""

    name = "thing"

    async def release(self, entry: Entry) -> None:
        raise AssertionError(f"{entry.key}: nothing is to be released here")

    async def exists(self, entry: Entry) -> bool:
        return True

    async def scan(self) -> list[Found]:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What a daemon opens at its start, in its order."""

    root: Path
    paths: Paths
    db: Database
    snapshots: Snapshotter
    images: ImageStore
    containers: ContainerStore
    ledger: Ledger
    sandboxes: SandboxStore
    hosted: HostedStore


@asynccontextmanager
async def started(root: Path, schemas: tuple[Schema, ...] = SCHEMAS) -> AsyncIterator[Stores]:
    """The stores below `root`, opened as the daemon opens them; closed when the block is left."""
    async with AsyncExitStack() as stack:
        paths = Paths.prepare(root, root.with_name("state"))
        blocking = Blocking(4)
        stack.callback(blocking.close)
        owner = await stack.enter_async_context(TaskOwner("powerloss"))
        db = await Database.open(paths.database, schemas)
        stack.push_async_callback(db.close)
        snapshots = Snapshotter(paths.images, db, blocking)
        stack.push_async_callback(snapshots.close)
        images = ImageStore(paths.images, db, snapshots, blocking, owner, ImageSettings())
        stack.push_async_callback(images.close)
        await snapshots.recover()
        await images.recover()
        yield Stores(
            root=root,
            paths=paths,
            db=db,
            snapshots=snapshots,
            images=images,
            containers=await ContainerStore.open(db, paths.root, blocking),
            ledger=await Ledger.open(db, {"thing": Thing()}, owner, boot_id="boot"),
            sandboxes=await SandboxStore.open(db),
            hosted=HostedStore(db),
        )


def seen(stores: Stores) -> dict[str, str]:
    """Every fact that the stores tell, in the words of the workload. Blocks."""
    facts = {"instance": stores.paths.instance}
    for sandbox in stores.sandboxes.list():
        facts[f"sandbox/{sandbox.id}"] = sandbox.labels.get("step", "")
    for entry in stores.ledger.entries():
        facts[f"ledger/{entry.key}"] = entry.data.get("step", "")
    for container in stores.containers.list():
        status = container.status.get()
        facts[f"container/{container.id}"] = f"{status.state} {status.pid} {status.exit_code}"
        facts[f"spec/{container.id}"] = container.record.spec.decode()
    for image in stores.images.list():
        for name in image.repo_tags:
            facts[f"image/{name}"] = image.id
    for snapshot in stores.snapshots.walk():
        whole = stores.snapshots.has(snapshot.name)
        if snapshot.kind is SnapshotKind.COMMITTED and whole:
            facts[f"layer/{snapshot.name}"] = listing(stores.snapshots.fs(snapshot.name))
        elif snapshot.kind is not SnapshotKind.COMMITTED:
            facts[f"snapshot/{snapshot.name}"] = f"{snapshot.kind} {snapshot.parent}"
    return facts


def listing(folder: Path) -> str:
    """A digest of every name, mode, owner, content, target and extended attribute below `folder`."""
    found = hashlib.sha256()
    for path in sorted([folder, *folder.rglob("*")]):
        info = path.lstat()
        marks = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
        line = (str(path.relative_to(folder)), info.st_mode, info.st_uid, info.st_gid, info.st_rdev, content, target)
        found.update(repr((line, sorted(marks.items()))).encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:16]


def broken(stores: Stores) -> list[str]:
    """What is believed although it is not whole. Blocks."""
    unread = stores.sandboxes.quarantined() + stores.containers.quarantined() + stores.ledger.quarantined()
    problems = [f"{one.source} {one.key} was written and cannot be read: {one.reason}" for one in unread]
    blobs = stores.paths.images / "content" / "blobs" / "sha256"
    problems += [
        f"blob {blob.name[:12]} is kept under its name with other bytes"
        for blob in blobs.iterdir()
        if hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name
    ]
    for image in stores.images.list():
        problems += [
            f"image {image.id[:19]} is served without the whole of layer {name[:19]}"
            for name in image.chain_ids
            if not stores.snapshots.has(name)
        ]
    for snapshot in stores.snapshots.walk(SnapshotKind.ACTIVE):
        if stores.snapshots.has(snapshot.name):
            fs = stores.paths.images / "snapshots" / str(snapshot.number) / "fs"
            found = set(os.listdir(fs)) if fs.is_dir() else set[str]()
            problems += [f"snapshot {snapshot.name}: has {found}"] if found - {snapshot.name} else []
    for folder in (stores.root / "containers").iterdir():
        if leftover := [path.name for path in folder.iterdir() if path.name != FILE] if folder.is_dir() else [folder]:
            known = folder.name in {one.id for one in stores.containers.list()}
            problems += [f"{folder.name}: has {leftover} beside its checkpoint"] if known else []
    return problems


async def works(stores: Stores) -> None:
    """The stores take changes again."""
    for container in stores.containers.list():
        await container.status.update_sync(lambda status: status)
    await stores.db.write(lambda connection: connection.execute("CREATE TABLE afterwards (x)").close())


async def look(
    root: Path, *, again: bool = False, schemas: tuple[Schema, ...] = SCHEMAS
) -> tuple[Mapping[str, str], list[str]]:
    """Start from `root`, twice: what is there, and what is wrong with it."""
    async with started(root, schemas) as stores:
        facts = await asyncio.to_thread(seen, stores)
        problems = await asyncio.to_thread(broken, stores)
        if not again:
            await works(stores)
    if not again:
        second, more = await look(root, again=True, schemas=schemas)
        problems += [one for one in more if one not in problems]
        if second != facts:
            problems.append(f"a second start sees something else: {_difference(facts, second)}")
    return facts, problems


def _difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    return ", ".join(f"{key}: {one.get(key)} and then {other.get(key)}" for key in keys)
