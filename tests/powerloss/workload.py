"""Programs that change the stores and tell what was acknowledged: `python -m tests.powerloss.workload NAME ROOT FACTS`.

Before a change they tell the values that are about to be there, afterwards that they are durable, because the store
said so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from atoll.container.config import ContainerConfig
from atoll.container.metadata import Metadata
from atoll.container.status import Status
from atoll.container.store import ContainerRecord
from atoll.daemon.compose import SCHEMAS
from atoll.database import Database
from atoll.ledger.kind import Intent
from atoll.sandbox.controller import Runtime, Sandbox
from tests.integration.images import folder, hard_link, image, layer, member, symlink, write_layout
from tests.powerloss.startup import NEWER, Stores, listing, started

CREATED = Status(created_at=1)
SMALL_LOG_PAGES = 8
"""SQLite's log is folded into its file this often, so that this happens in the middle, too."""


class Teller:
    """Writes the facts where the recording sees them."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acknowledged(self, values: dict[str, str | None]) -> None:
        self._tell("ack", values)

    async def change(self, values: dict[str, str | None], work: Awaitable[object]) -> None:
        """`work`, told before and after."""
        self._tell("begin", values)
        await work
        self._tell("ack", values)

    def _tell(self, verb: str, values: dict[str, str | None]) -> None:
        os.write(self._fd, json.dumps({verb: values}).encode() + b"\n")


def box(number: int, step: str) -> Sandbox:
    return Sandbox(id=f"box{number}", sandboxer="shim", runtime=Runtime(name="r"), labels={"step": step})


async def _fold_often(db: Database) -> None:
    await db.write(lambda connection: connection.execute(f"PRAGMA wal_autocheckpoint = {SMALL_LOG_PAGES}").close())


async def records(root: Path, tell: Teller) -> None:
    """Sandboxes and ledger entries: alone, together in one transaction, many at a time, over a restart."""
    for life in range(2):
        async with started(root) as stores:
            tell.acknowledged({"instance": stores.paths.instance})
            await _fold_often(stores.db)
            for number in range(6 * life, 6 * life + 6):
                await _make_box(stores, tell, number)
            async with asyncio.TaskGroup() as group:
                for number in range(6 * life, 6 * life + 4):
                    group.create_task(_change_box(stores, tell, number))
            await _drop_box(stores, tell, 6 * life + 1)


async def upgrade(root: Path, tell: Teller) -> None:
    """Records of this Atoll, which a newer one migrates and adds to."""
    for number, schemas in enumerate((SCHEMAS, NEWER)):
        async with started(root, schemas) as stores:
            tell.acknowledged({"instance": stores.paths.instance})
            for one in range(3 * number, 3 * number + 3):
                await _make_box(stores, tell, one)


async def _make_box(stores: Stores, tell: Teller, number: int) -> None:
    """A sandbox and its entry are one transaction."""
    values: dict[str, str | None] = {f"sandbox/box{number}": "made", f"ledger/box{number}": "made"}
    intent = Intent(owner=f"box{number}", kind="thing", key=f"box{number}", data={"step": "made"})
    plan = stores.sandboxes.plan_create(box(number, "made"), name=f"name{number}")
    await tell.change(values, stores.db.commit(plan, stores.ledger.plan_enter(intent)))


async def _change_box(stores: Stores, tell: Teller, number: int) -> None:
    (entry,) = stores.ledger.entries(f"box{number}")
    filler = "x" * 3000 * number  # more than a page, so that pages are written that others are in
    data = {"step": "changed", "filler": filler}
    await tell.change({f"ledger/box{number}": "changed"}, stores.ledger.update(entry, data))


async def _drop_box(stores: Stores, tell: Teller, number: int) -> None:
    values: dict[str, str | None] = {f"sandbox/box{number}": None, f"ledger/box{number}": None}
    plan = stores.sandboxes.plan_delete(f"box{number}")
    await tell.change(values, stores.db.commit(plan, stores.ledger.plan_strike(*stores.ledger.entries(f"box{number}"))))


async def containers(root: Path, tell: Teller) -> None:
    """Containers through their lives, one after another and two at a time, over a restart."""
    for life in range(2):
        async with started(root) as stores:
            tell.acknowledged({"instance": stores.paths.instance})
            async with asyncio.TaskGroup() as group:
                for number in range(2):
                    group.create_task(_container_life(stores, tell, f"c{life}{number}", deleted=number == 1))


async def _container_life(stores: Stores, tell: Teller, name: str, *, deleted: bool) -> None:
    record = ContainerRecord(
        metadata=Metadata(id=name, name=f"name-{name}", sandbox_id="box", config=ContainerConfig(command=("true",))),
        created_at=1,
        spec=b"first",
    )
    key, spec = f"container/{name}", f"spec/{name}"
    await tell.change({key: "CONTAINER_CREATED 0 0", spec: "first"}, stores.containers.add(record, CREATED))
    one = stores.containers.get(name)
    await tell.change(
        {key: "CONTAINER_RUNNING 7 0"}, one.status.update_sync(lambda status: status.started(pid=7, at=2))
    )
    await tell.change({spec: "second"}, stores.containers.update(name, spec=b"second"))
    message = "m" * 6000
    await tell.change(
        {key: "CONTAINER_EXITED 0 3"},
        one.status.update_sync(lambda status: status.exited(code=3, at=9, message=message)),
    )
    await tell.change(
        {key: "CONTAINER_EXITED 0 3"}, one.status.update_sync(lambda s: dataclasses.replace(s, reason="x"))
    )
    if deleted:
        await tell.change({key: None, spec: None}, stores.containers.delete(name))


async def careless(root: Path, tell: Teller) -> None:
    """`containers` by a store that syncs no file: what the test must find wrong."""
    setattr(os, "fsync", lambda _fd: None)  # noqa: B010 - for all of this program, which is none of ours
    await containers(root, tell)


BASE = layer(
    folder("etc"),
    member("etc/motd", b"hello " * 3000),
    member("etc/small", b"1", mode=0o4755, uid=7, gid=8),
    hard_link("etc/same", "etc/motd"),
    symlink("motd", "etc/motd"),
    folder("gone"),
    member("gone/file", b"2"),
)
TOP = layer(member("etc/small", b"22"), member(".wh.gone"), folder("deep/er"), member("deep/er/file", bytes(9000)))
OTHER = layer(member("etc/motd", b"bye"), member("etc/.wh..wh..opq"))
NAMES = ("example.org/app:1", "example.org/app:2")


async def images(root: Path, tell: Teller) -> None:
    """Imports that share a layer, tags, snapshots upon them, removal, collection, the same import again."""
    with tempfile.TemporaryDirectory(prefix="atoll-powerloss-", dir="/var/tmp") as scratch:
        await _images(root, tell, Path(scratch))


async def _images(root: Path, tell: Teller, scratch: Path) -> None:
    files = image([BASE, TOP]), image([BASE, OTHER])
    archives = [write_layout(scratch / f"archive{n}", (one, NAMES[n])) for n, one in enumerate(files)]
    first, second = await _rehearse(scratch / "rehearsal", archives)
    second = {key: value for key, value in second.items() if key not in first}
    async with started(root) as stores:
        tell.acknowledged({"instance": stores.paths.instance})
        await tell.change(first, stores.images.import_archive(archives[0]))
        await tell.change(second, stores.images.import_archive(archives[1]))
        await tell.change({"image/example.org/tag:1": files[0].id}, stores.images.tag(NAMES[0], "example.org/tag:1"))
        parent = stores.images.get(NAMES[0]).chain_ids[-1]
        for key in ("active", "other"):
            await tell.change({f"snapshot/{key}": f"active {parent}"}, stores.snapshots.prepare(key, parent))
        for key in ("active", "other"):
            (stores.snapshots.fs(key) / key).write_bytes(b"work" * 2000)
        await tell.change({"snapshot/other": None}, stores.snapshots.remove("other"))
    async with started(root) as stores:
        await tell.change({"snapshot/next": f"active {parent}"}, stores.snapshots.prepare("next", parent))
        (stores.snapshots.fs("next") / "next").write_bytes(b"more" * 2000)
        await tell.change({"snapshot/view": f"view {parent}"}, stores.snapshots.view("view", parent))
        await tell.change({f"image/{NAMES[1]}": None}, stores.images.remove(NAMES[1]))
        gone: dict[str, str | None] = dict.fromkeys((key for key in second if key.startswith("layer/")), None)
        await tell.change(gone, stores.images.collect())
        await tell.change(second, stores.images.import_archive(archives[1]))
        await tell.change({"snapshot/active": None}, stores.snapshots.remove("active"))


async def _rehearse(root: Path, archives: list[Path]) -> list[dict[str, str | None]]:
    """What is there when each archive was imported, from a store that is not recorded."""
    root.mkdir()
    found: list[dict[str, str | None]] = []
    async with started(root) as stores:
        for name, archive in zip(NAMES, archives, strict=True):
            await stores.images.import_archive(archive)
            one = stores.images.get(name)
            layers = {f"layer/{chain}": listing(stores.snapshots.fs(chain)) for chain in one.chain_ids}
            found.append({f"image/{name}": one.id, **layers})
    return found


def main() -> None:
    """Run one of the programs below an empty folder."""
    name, root, facts = sys.argv[1:]
    programs: dict[str, Callable[[Path, Teller], Awaitable[None]]] = {
        "records": records, "containers": containers, "images": images,
        "upgrade": upgrade, "careless": careless,
    }  # fmt: skip
    os.chdir("/")

    async def run() -> None:
        await programs[name](Path(root), Teller(Path(facts)))

    asyncio.run(run())


if __name__ == "__main__":
    main()
