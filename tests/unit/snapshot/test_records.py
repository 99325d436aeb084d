"""The snapshot records in a real database, and the promise that its schema is documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll import errors
from atoll.database import Connection, Database, quarantined
from atoll.image import records as image_records
from atoll.snapshot import records
from atoll.snapshot.records import Kind, Usage


@pytest.mark.parametrize("module", [records, image_records], ids=["snapshot", "image"])
async def test_every_column_is_in_the_docstring(tmp_path: Path, module: object) -> None:
    db = await Database.open(tmp_path / "state.db", (module.SCHEMA,))  # type: ignore[attr-defined]
    own = ("schema", "quarantine")
    try:
        tables = await db.read(
            lambda connection: [
                (table["name"], column["name"])
                for table in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                if table["name"] not in own
                for column in connection.execute(f"PRAGMA table_info({table['name']})")
            ]
        )
    finally:
        await db.close()
    text = (module.__doc__ or "").split()
    assert tables
    assert not [name for pair in tables for name in pair if name not in text]


async def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "state.db", (records.SCHEMA,))
    base = records.new("base", 1, Kind.COMMITTED, None, {"k": "ü"}, Usage(bytes=5, inodes=6))
    top = records.new("top", 2, Kind.ACTIVE, "base", {}, records.NOTHING)
    try:
        await db.write(lambda connection: (records.insert(connection, base), records.insert(connection, top)))
        assert (await db.write(records.load)).snapshots == [base, top]
        with pytest.raises(errors.FailedPrecondition):
            await db.write(lambda connection: records.delete(connection, "base"))
        with pytest.raises(errors.AlreadyExists):
            await db.write(lambda connection: records.insert(connection, top))
        for parent in ("top", "none"):
            child = records.new("child", 3, Kind.ACTIVE, parent, {}, records.NOTHING)
            with pytest.raises(errors.NotFound):
                await db.write(lambda connection, child=child: records.insert(connection, child))
    finally:
        await db.close()


async def test_a_damaged_record_is_told_once_and_stays(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "state.db", (records.SCHEMA,))
    base = records.new("base", 1, Kind.COMMITTED, None, {}, records.NOTHING)
    top = records.new("top", 2, Kind.ACTIVE, "base", {}, records.NOTHING)

    def damage(connection: Connection) -> None:
        records.insert(connection, base)
        records.insert(connection, top)
        connection.execute("UPDATE snapshots SET labels = CAST(x'ff' AS TEXT) WHERE name = 'base'")
        connection.execute("UPDATE snapshots SET parent = NULL, name = CAST(x'ff' AS TEXT) WHERE name = 'top'")

    try:
        await db.write(damage)
        for _ in range(2):
            found = await db.write(records.load)
            assert found.snapshots == [base], "labels that cannot be read are none"
            assert found.is_damaged
        (kept,) = await db.read(quarantined)
        assert (kept.source, kept.key) == ("snapshots", "\\xff")
    finally:
        await db.close()
