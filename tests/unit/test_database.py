"""One writer thread, group commit, and what happens to a file that is not as it should be."""

# ruff: noqa: TID251  # the tests play callers that come and go

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from atoll import database, errors
from atoll.database import Connection, Database, Plan, Schema, is_blank, quarantine, quarantined

NOTES = Schema(component="notes", migrations=("CREATE TABLE notes (text TEXT PRIMARY KEY);",))


def insert(text: str) -> Callable[[Connection], str]:
    def change(connection: Connection) -> str:
        connection.execute("INSERT INTO notes VALUES (?)", (text,))
        return text

    return change


def texts(connection: Connection) -> list[str]:
    return [row["text"] for row in connection.execute("SELECT text FROM notes ORDER BY rowid")]


class Held:
    """The writer, stopped inside a change, so that what is submitted meanwhile waits together."""

    def __init__(self, db: Database) -> None:
        self.statements: list[str] = []
        self._entered = threading.Event()
        self._go_on = threading.Event()
        self._db = db

    def _hold(self, connection: Connection) -> None:
        connection.set_trace_callback(self.statements.append)
        self._entered.set()
        assert self._go_on.wait(30)

    async def hold(self) -> asyncio.Task[None]:
        held = asyncio.get_running_loop().create_task(self._db.write(self._hold))
        await asyncio.to_thread(self._entered.wait, 30)
        return held

    def go_on(self) -> None:
        self._go_on.set()

    @property
    def commits(self) -> int:
        return self.statements.count("COMMIT")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
async def db(path: Path) -> AsyncIterator[Database]:
    db = await Database.open(path, (NOTES,))
    yield db
    await db.close()


async def test_a_write_is_there_after_reopening(path: Path) -> None:
    db = await Database.open(path, (NOTES,))
    assert await db.write(insert("one")) == "one"
    await db.close()
    db = await Database.open(path, (NOTES,))
    assert await db.read(texts) == ["one"]
    await db.close()


async def test_the_file_is_for_its_owner_alone(db: Database, path: Path) -> None:
    await db.write(insert("one"))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_changes_that_wait_together_share_one_commit(db: Database) -> None:
    held = Held(db)
    first = await held.hold()
    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(db.write(insert(f"{number}")))
        await asyncio.sleep(0)
        held.go_on()
    await first
    assert held.commits == 2
    assert len(await db.read(texts)) == 100


@pytest.mark.parametrize(
    "statement", ["INSERT INTO notes VALUES ('even')", "INSERT INTO nowhere VALUES (1)", "this is not SQL"]
)
async def test_a_change_that_fails_does_not_disturb_its_group(db: Database, statement: str) -> None:
    await db.write(insert("even"))

    def fail(connection: Connection) -> None:
        connection.execute("INSERT INTO notes VALUES ('half')")
        connection.execute(statement)

    held = Held(db)
    first = await held.hold()
    writes = [asyncio.ensure_future(db.write(change)) for change in (insert("a"), fail, insert("b"))]
    await asyncio.sleep(0)
    held.go_on()
    results = await asyncio.gather(*writes, return_exceptions=True)
    await first
    assert results[0] == "a"
    assert isinstance(results[1], errors.Internal)
    assert results[2] == "b"
    assert await db.read(texts) == ["even", "a", "b"]


async def test_an_error_of_the_change_itself_reaches_its_caller_unchanged(db: Database) -> None:
    def fail(connection: Connection) -> None:
        insert("gone")(connection)
        raise errors.AlreadyExists("taken")

    with pytest.raises(errors.AlreadyExists, match="taken"):
        await db.write(fail)
    assert await db.read(texts) == []


async def test_a_cancelled_caller_s_change_is_committed_and_memory_follows(db: Database) -> None:
    held = Held(db)
    first = await held.hold()
    followed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    caller = asyncio.ensure_future(db.commit(Plan(insert("one"), followed.set_result)))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    held.go_on()
    assert await followed == "one"
    assert await db.read(texts) == ["one"]
    await first


async def test_plans_commit_together_and_memory_follows_in_order(db: Database) -> None:
    memory: list[str] = []
    assert await db.commit(Plan(insert("a"), memory.append), Plan(insert("b"), memory.append)) == "a"
    assert memory == ["a", "b"]


async def test_one_failing_plan_undoes_all_and_memory_stays(db: Database) -> None:
    memory: list[str] = []

    def fail(_connection: Connection) -> str:
        raise errors.NotFound("nothing there")

    with pytest.raises(errors.NotFound):
        await db.commit(Plan(insert("a"), memory.append), Plan(fail, memory.append))
    assert memory == []
    assert await db.read(texts) == []


async def test_memory_follows_in_the_order_of_the_commits(db: Database) -> None:
    memory: list[str] = []
    await asyncio.gather(*(db.commit(Plan(insert(f"{n}"), memory.append)) for n in range(50)))
    assert memory == await db.read(texts)


async def test_a_cancelled_read_does_not_stop_the_reader(db: Database) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(_connection: Connection) -> None:
        entered.set()
        assert go_on.wait(30)

    running = asyncio.ensure_future(db.read(slow))
    await asyncio.to_thread(entered.wait, 30)
    waiting = [asyncio.ensure_future(db.read(texts)) for _ in range(3)]
    await asyncio.sleep(0)
    for read in (running, *waiting):
        read.cancel()
    go_on.set()
    await asyncio.gather(running, *waiting, return_exceptions=True)
    assert await db.read(texts) == []


async def test_readers_do_not_wait_for_the_writer(db: Database) -> None:
    await db.write(insert("committed"))
    held = Held(db)
    first = await held.hold()
    assert await db.read(texts) == ["committed"]
    held.go_on()
    await first


async def test_the_reader_changes_nothing(db: Database) -> None:
    with pytest.raises(errors.FailedPrecondition):
        await db.read(insert("sneaky"))
    assert await db.read(texts) == []


async def test_close_finishes_what_was_submitted_and_takes_nothing_more(path: Path) -> None:
    db = await Database.open(path, (NOTES,))
    writes = [asyncio.ensure_future(db.write(insert(f"{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await db.close()
    await db.close()
    assert await asyncio.gather(*writes) == [f"{n}" for n in range(20)]
    with pytest.raises(errors.Unavailable, match="closed"):
        await db.write(insert("late"))
    assert sorted(file.name for file in path.parent.iterdir()) == ["state.db"]


async def test_migrations_go_forward_and_keep_the_rows(path: Path) -> None:
    db = await Database.open(path, (NOTES,))
    await db.write(insert("old"))
    await db.close()
    grown = Schema(
        component="notes",
        migrations=(*NOTES.migrations, "ALTER TABLE notes ADD COLUMN stars INTEGER NOT NULL DEFAULT 3;"),
    )
    db = await Database.open(path, (grown,))
    assert await db.read(lambda c: tuple(c.execute("SELECT text, stars FROM notes").fetchone())) == ("old", 3)
    await db.close()


async def test_a_failing_migration_changes_nothing(path: Path) -> None:
    await (await Database.open(path, (NOTES,))).close()
    broken = Schema(component="notes", migrations=(*NOTES.migrations, "CREATE TABLE more (a); CREATE TABLE more (a);"))
    with pytest.raises(errors.Internal):
        await Database.open(path, (broken,))
    db = await Database.open(path, (NOTES,))
    assert not await db.read(lambda c: c.execute("SELECT 1 FROM sqlite_master WHERE name = 'more'").fetchall())
    await db.close()


async def test_a_newer_file_is_refused_and_left_as_it_is(path: Path) -> None:
    newer = Schema(component="notes", migrations=(*NOTES.migrations, "CREATE TABLE tomorrow (a);"))
    await (await Database.open(path, (newer,))).close()
    before = path.read_bytes()
    with pytest.raises(errors.FailedPrecondition, match="newer atoll"):
        await Database.open(path, (NOTES,))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"these are not the bytes you look for\n" * 100)
    before = path.read_bytes()
    with pytest.raises(errors.DataLoss, match=r"state\.db"):
        await Database.open(path, (NOTES,))
    assert path.read_bytes() == before


async def test_a_damaged_page_is_told_and_the_rest_is_read(path: Path) -> None:
    db = await Database.open(path, (NOTES,))
    await db.write(lambda c: c.execute("CREATE TABLE other (a)").close())
    for number in range(200):
        await db.write(insert(f"{number:0100}"))
    page = await db.read(
        lambda c: c.execute("SELECT rootpage FROM sqlite_master WHERE name = 'notes'").fetchone()["rootpage"]
    )
    await db.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    db = await Database.open(path, (NOTES,))
    with pytest.raises(errors.DataLoss):
        await db.read(texts)
    with pytest.raises(errors.DataLoss):
        await db.write(lambda c: c.execute("DELETE FROM notes").close())
    assert await db.read(lambda c: c.execute("SELECT * FROM other").fetchall()) == []
    await db.close()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.FailedPrecondition, match=r"nowhere/state\.db"):
        await Database.open(tmp_path / "nowhere" / "state.db", (NOTES,))


async def test_a_locked_file_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await Database.open(path, (NOTES,))).close()
    monkeypatch.setattr(database, "LOCK_LIMIT_S", 0.01)
    other = sqlite3.connect(path, isolation_level=None)
    db = await Database.open(path, ())
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(errors.Unavailable, match="locked"):
            await db.write(insert("one"))
    finally:
        other.close()
    assert await db.write(insert("one")) == "one"
    await db.close()


async def test_changes_that_wait_for_a_lock_are_refused_at_once_and_not_one_by_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_LIMIT_S", 1.0)
    db = await Database.open(path, (NOTES,))
    held = Held(db)
    first = await held.hold()
    changes = [asyncio.ensure_future(db.write(insert(str(number)))) for number in range(20)]
    await asyncio.sleep(0)
    held.go_on()
    await first
    await asyncio.gather(*changes)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        begun = asyncio.get_running_loop().time()
        changes = [asyncio.ensure_future(db.write(insert(f"late {number}"))) for number in range(20)]
        refused = await asyncio.gather(*changes, return_exceptions=True)
        took = asyncio.get_running_loop().time() - begun
    finally:
        other.close()
    assert [type(one) for one in refused] == [errors.Unavailable] * 20
    assert took < 10.0, "two groups at most wait, each once"
    await db.close()


async def test_text_that_is_no_utf8_is_bytes_to_whoever_reads_it(db: Database) -> None:
    await db.write(lambda c: c.execute("INSERT INTO notes VALUES (CAST(x'61ff' AS TEXT))").close())
    await db.write(insert("whole"))
    assert await db.read(texts) == [b"a\xff", "whole"]

    def put_aside(connection: Connection) -> None:
        row = connection.execute("SELECT * FROM notes ORDER BY rowid").fetchone()
        quarantine(connection, "notes", database.legible_key(row["text"]), row, "damaged")

    await db.write(put_aside)
    (kept,) = await db.read(quarantined)
    assert kept.key == "a\\xff"


async def test_a_row_in_quarantine_is_kept_whole(db: Database) -> None:
    def move(connection: Connection) -> None:
        connection.execute("INSERT INTO notes VALUES (CAST(x'ff41' AS TEXT))")
        row = connection.execute("SELECT *, x'00ff' AS raw FROM notes").fetchone()
        quarantine(connection, "notes", "1", row, "not text")

    await db.write(move)
    (kept,) = await db.read(lambda c: quarantined(c, "notes"))
    assert (kept.source, kept.key, kept.reason) == ("notes", "1", "not text")
    content = await db.read(lambda c: c.execute("SELECT content FROM quarantine").fetchone()["content"])
    assert content == '{"text": {"base64": "/0E="}, "raw": {"base64": "AP8="}}'


def test_a_migration_that_ends_inside_a_statement_is_our_bug(path: Path) -> None:
    with pytest.raises(AssertionError, match="ends inside"):
        asyncio.run(
            Database.open(path, (Schema(component="notes", migrations=("CREATE TABLE a (b TEXT DEFAULT 'x",)),))
        )


async def test_a_database_is_blank_until_something_is_committed(path: Path) -> None:
    assert is_blank(path)
    assert not path.exists(), "a look makes nothing"
    path.touch()
    assert is_blank(path)
    db = await Database.open(path, (NOTES,))
    kept = {one: one.read_bytes() for one in path.parent.iterdir() if not one.name.endswith("-shm")}
    await db.close()
    for one, text in kept.items():  # as SIGKILL leaves it: all of it is in the log
        one.write_bytes(text)
    assert not is_blank(path)
    path.write_bytes(b"no database" * 100)
    assert not is_blank(path), "that is for opening it to say"
