"""A disk that is really full: the state database and the checkpoints refuse, lose nothing, and go on later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking, TaskOwner
from atoll.container.status import Status, decode_status
from atoll.container.storage import store_status
from atoll.database import Connection, Database, Schema
from atoll.ledger import records
from atoll.ledger.kind import Intent
from atoll.ledger.ledger import Ledger
from atoll.ledger.paths import DirectoryKind
from atoll.linux.syscalls import MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REMOUNT, mount, umount2
from tests.integration.conftest import Roots

NOTES = Schema(component="notes", migrations=("CREATE TABLE notes (text BLOB NOT NULL);",))


@pytest.fixture
def disk(roots: Roots) -> Iterator[Path]:
    """A disk of 1 MiB."""
    point = roots.base / "disk"
    point.mkdir()
    mount("tmpfs", point, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m")
    yield point
    umount2(point)


@pytest.fixture
async def db(disk: Path) -> AsyncIterator[Database]:
    db = await Database.open(disk / "state.db", (NOTES, records.SCHEMA))
    yield db
    await db.close()


def fill(disk: Path) -> Path:
    """Take all that is left of the disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return ballast


async def write(db: Database, size: int) -> None:
    def change(connection: Connection) -> None:
        connection.execute("INSERT INTO notes VALUES (zeroblob(?))", (size,))

    await db.write(change)


async def count(db: Database) -> int:
    return await db.read(lambda connection: connection.execute("SELECT count(*) AS n FROM notes").fetchone()["n"])


async def test_a_full_disk_refuses_a_change_and_keeps_the_others(db: Database, disk: Path) -> None:
    await write(db, 10)
    ballast = fill(disk)
    with pytest.raises(errors.ResourceExhausted, match=r"state\.db: cannot grow, the disk is full: free some space"):
        await write(db, 100_000)
    assert await count(db) == 1
    ballast.unlink()
    await write(db, 10)
    assert await count(db) == 2


async def test_one_change_too_large_does_not_take_its_group_along(db: Database) -> None:
    async with TaskOwner("test") as owner:
        small = [owner.spawn(write(db, 10), name=f"small-{n}") for n in range(5)]
        with pytest.raises(errors.ResourceExhausted):
            await write(db, 5_000_000)
        for task in small:
            await task
    assert await count(db) == 5


async def test_a_full_disk_keeps_memory_and_the_ledger_in_step(db: Database, disk: Path) -> None:
    blocking = Blocking(2)
    async with TaskOwner("test") as owner:
        kind = DirectoryKind("dir", disk, blocking)
        ledger = await Ledger.open(db, {"dir": kind}, owner, first_retry_s=3600)
        ballast = fill(disk)
        intents = [Intent(owner="box", kind="dir", key=f"box-{n}", data={"pad": "x" * 500}) for n in range(300)]
        with pytest.raises(errors.ResourceExhausted):
            await ledger.enter(*intents)
        assert ledger.entries() == ()
        ballast.unlink()
        assert len(await ledger.enter(*intents[:3])) == 3
        assert await ledger.release_all("box", within=30) == []
    blocking.close()


async def test_a_new_database_on_a_full_disk_is_refused(disk: Path) -> None:
    fill(disk)
    with pytest.raises(errors.ResourceExhausted, match="the disk is full"):
        await Database.open(disk / "state.db", (NOTES,))


async def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(disk: Path) -> None:
    blocking = Blocking(1)
    storage = await store_status(disk, "c1", Status(created_at=1), blocking)
    ballast = fill(disk)
    with pytest.raises(errors.ResourceExhausted, match="containers/c1/status: not written, the disk is full"):
        await storage.update_sync(lambda status: status.started(pid=7, at=2))
    assert storage.get() == decode_status(storage.path.read_bytes()) == Status(created_at=1)
    assert [file.name for file in storage.path.parent.iterdir()] == ["status"]
    ballast.unlink()
    assert (await storage.update_sync(lambda status: status.started(pid=7, at=2))).pid == 7
    blocking.close()


async def test_a_read_only_disk_says_so(db: Database, disk: Path) -> None:
    await db.close()
    mount("tmpfs", disk, "tmpfs", MS_REMOUNT | MS_RDONLY, "")
    with pytest.raises(errors.FailedPrecondition, match=r"state\.db"):
        await Database.open(disk / "state.db", (NOTES,))
