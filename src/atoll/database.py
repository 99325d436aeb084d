"""The durable state: one SQLite file, one writer thread, group commit.

Every package that keeps records declares a `Schema` (its tables, grown by appended migrations) and
speaks SQL only inside the functions it hands to `Database.write`, `commit` and `read`.

Guarantees: `write` and `commit` return after the change is on disk (WAL, synchronous=FULL); changes
that wait together are committed together; a change that fails changes nothing and does not disturb
the others in its group. Readers see committed state and never wait for the writer.

A record that cannot be read is moved to the table `quarantine`, with the reason and the whole row as
JSON (blobs in base64), so that the rest can be served and nothing is lost:

    sqlite3 state.db 'SELECT source, key, reason, content FROM quarantine'
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from atoll import errors

T = TypeVar("T")
Connection = sqlite3.Connection

MAX_GROUP = 256
"""Most changes that share one commit."""

LOCK_LIMIT_S = 5.0
"""How long a change waits where another process holds the write lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The tables of one component; `migrations[n]` is SQL that takes version n to n + 1.

    A landed migration is never edited, only followed by another.
    """

    component: str
    migrations: tuple[str, ...]


_OWN = Schema(
    component="database",
    migrations=(
        """
        CREATE TABLE quarantine (
            source  TEXT NOT NULL,
            key     TEXT NOT NULL,
            reason  TEXT NOT NULL,
            content TEXT NOT NULL,
            at      INTEGER NOT NULL  -- microseconds since the epoch
        );
        """,
    ),
)


def _forget(_result: object) -> None:
    """What memory does after a commit that it keeps nothing of."""


@dataclass(frozen=True, slots=True)
class Plan(Generic[T]):
    """A part of a transaction: the SQL, and what memory does once that is durable.

    `change` runs in the writer's thread, perhaps more than once, and touches nothing but the
    database. `committed` gets its result, on the loop, after the commit and before the caller of
    `Database.commit` goes on; it also runs where that caller was cancelled.
    """

    change: Callable[[Connection], T]
    committed: Callable[[T], None] = _forget


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A record that could not be read: the table it came from, its key there, and why."""

    source: str
    key: str
    reason: str
    at: datetime


class Database:
    """One open state file; made by `open`, ended by `close`."""

    def __init__(self, path: Path, writer: _Worker, reader: _Worker) -> None:
        self.path = path
        self.opened_at = datetime.now(UTC)
        """What went to quarantine since is news."""
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, path: Path, schemas: tuple[Schema, ...]) -> Database:
        """Open or make the file at `path` (0600) and bring every schema up to date, all or nothing.

        Raises `FailedPrecondition` where a newer Atoll wrote the file or it cannot be opened,
        `DataLoss` where it is not a readable database; neither changes the file. A full disk is
        `ResourceExhausted`, a file locked by another process `Unavailable`.
        """
        return await asyncio.get_running_loop().run_in_executor(None, cls._open, path, schemas)

    @classmethod
    def _open(cls, path: Path, schemas: tuple[Schema, ...]) -> Database:
        with contextlib.ExitStack() as undo:
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                writer = _connect(path)
                undo.callback(writer.close)
                _migrate(writer, path, (_OWN, *schemas))
                reader = _connect(path)
                undo.callback(reader.close)
                reader.execute("PRAGMA query_only = ON")
            except OSError as error:
                raise errors.FailedPrecondition(f"{path}: cannot be opened: {error.strerror}") from error
            except sqlite3.Error as error:
                raise _refused(path, error) from error
            undo.pop_all()
        return cls(
            path,
            _Worker("atoll-db-writer", path, writer, "BEGIN IMMEDIATE"),
            _Worker("atoll-db-reader", path, reader, "BEGIN"),
        )

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Run `change` in the writer's transaction; its result after the commit is durable.

        The commit happens even if the caller is cancelled while it waits. `change` may run more
        than once, and touches nothing but the database; where it raises, `change` alone is rolled
        back. A disk that refuses raises `ResourceExhausted` and changes nothing.
        """
        return await asyncio.shield(asyncio.wrap_future(self._writer.submit(change)))

    async def commit(self, plan: Plan[T], *others: Plan[Any]) -> T:
        """Run `plan` and `others`, in this order, in one transaction; the result of `plan`.

        All or none. Memory follows (`Plan.committed`, in this order) after the commit, in the order
        of the commits, even where the caller is cancelled while it waits.
        """
        plans = (plan, *others)
        inner = asyncio.wrap_future(self._writer.submit(functools.partial(_run_all, plans)))
        inner.add_done_callback(functools.partial(_follow, plans))
        first: T = (await asyncio.shield(inner))[0]
        return first

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on the reader's connection, which refuses to change anything."""
        return await asyncio.wrap_future(self._reader.submit(query))

    async def close(self) -> None:
        """Finish what was submitted, fold the log into the file, close; idempotent."""
        for worker in (self._reader, self._writer):
            worker.end()
            await asyncio.get_running_loop().run_in_executor(None, worker.join)


def is_blank(path: Path) -> bool:
    """Whether there is no database, or one that nothing was ever committed to; False where nobody can tell. Blocks."""
    try:
        if not path.exists():
            return True
        # Not made where it is missing, and its log counts.
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    except (OSError, sqlite3.Error):  # opening it says what is wrong
        return False


def quarantine(connection: Connection, source: str, key: str, row: sqlite3.Row, reason: str) -> None:
    """Keep the unreadable `row` of the table `source`; the caller deletes it there in the same transaction."""
    content = {name: row[name] for name in row.keys()}  # noqa: SIM118  # iterating a Row gives values
    keep_aside(connection, source, key, content, reason)


def legible_key(value: object) -> str:
    """A column of an unreadable row as a key of the quarantine: text, whatever is in it."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def keep_aside(connection: Connection, source: str, key: str, content: Mapping[str, object], reason: str) -> None:
    """`quarantine` of what is no row, such as a file."""
    connection.execute(
        "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)",
        (
            source,
            key,
            reason,
            json.dumps({name: _legible(value) for name, value in content.items()}),
            round(datetime.now(UTC).timestamp() * 1e6),
        ),
    )


def forget_quarantined(connection: Connection, source: str, key: str) -> None:
    """Drop what is kept of `key`: it is there again, or is of no more use. Idempotent."""
    connection.execute("DELETE FROM quarantine WHERE source = ? AND key = ?", (source, key))


def quarantined(connection: Connection, source: str | None = None) -> tuple[Quarantined, ...]:
    """What `quarantine` ever took out of the table `source`, or of any, oldest first."""
    rows = connection.execute("SELECT * FROM quarantine WHERE source = ? OR ? IS NULL ORDER BY at", (source, source))
    return tuple(
        Quarantined(
            source=row["source"],
            key=row["key"],
            reason=row["reason"],
            at=datetime.fromtimestamp(row["at"] / 1e6, UTC),
        )
        for row in rows
    )


def _legible(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _run_all(plans: tuple[Plan[Any], ...], connection: Connection) -> list[Any]:
    return [plan.change(connection) for plan in plans]


def _follow(plans: tuple[Plan[Any], ...], done: asyncio.Future[list[Any]]) -> None:
    if done.cancelled() or done.exception() is not None:
        return
    for plan, result in zip(plans, done.result(), strict=True):
        plan.committed(result)


def _connect(path: Path) -> Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=LOCK_LIMIT_S)
    try:
        connection.row_factory = sqlite3.Row
        # a damaged page may hold text that is no UTF-8: whoever wants text finds bytes, its record goes to quarantine
        connection.text_factory = _text
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -1024")
        # As Debian builds it SQLite zeroes every page that a deletion frees, and makes a file for a savepoint.
        connection.execute("PRAGMA secure_delete = FAST")
        connection.execute("PRAGMA temp_store = MEMORY")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _migrate(connection: Connection, path: Path, schemas: tuple[Schema, ...]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL)")
        for schema in schemas:
            row = connection.execute("SELECT version FROM schema WHERE component = ?", (schema.component,)).fetchone()
            version: int = row[0] if row else 0
            if version > len(schema.migrations):
                raise errors.FailedPrecondition(
                    f"{path}: its {schema.component} tables have version {version}, written by a newer atoll; "
                    f"this one knows {len(schema.migrations)}: run the newer one or use another --root"
                )
            for migration in schema.migrations[version:]:
                for statement in _statements(migration):
                    connection.execute(statement)
            connection.execute(
                "INSERT INTO schema VALUES (?, ?) ON CONFLICT DO UPDATE SET version = excluded.version",
                (schema.component, len(schema.migrations)),
            )
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: Connection) -> None:
    """End the transaction; a full disk may have ended it already."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _statements(script: str) -> list[str]:
    statements: list[str] = []
    pending = ""
    for part in script.split(";"):
        pending += part + ";"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    assert not pending.strip("; \n"), f"a migration ends inside a statement: {pending!r}"
    return statements


class _Change(Generic[T]):
    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self.work = work
        self.future: Future[T] = Future()


class _Worker:
    """A thread that owns one connection and runs what is queued, in groups."""

    def __init__(self, name: str, path: Path, connection: Connection, begin: str) -> None:
        self._path = path
        self._connection = connection
        self._begin = begin
        self._queue: queue.SimpleQueue[_Change[Any] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        if self._closed:
            raise errors.Unavailable(f"{self._path}: the state database is closed")
        change = _Change(work)
        self._queue.put(change)
        return change.future

    def end(self) -> None:
        """Take nothing more; on the thread that submits, so that nothing is queued behind the end."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            while group := self._next_group():
                # a caller of read that went away has cancelled its future; nobody waits for that result
                self._commit([change for change in group if change.future.set_running_or_notify_cancel()])
        finally:
            self._connection.close()

    def _next_group(self) -> list[_Change[Any]]:
        """Everything that waits, at least one change; nothing after the end."""
        group: list[_Change[Any]] = []
        item = self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) == MAX_GROUP:
                return group
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group
        if group:
            self._queue.put(None)
        return group

    def _commit(self, group: list[_Change[Any]]) -> None:
        """Commit all together; where SQLite refuses one of them, each alone, so that one cannot disturb the others."""
        if not group:
            return
        settle: list[Callable[[], None]] = []
        begun = False
        try:
            self._connection.execute(self._begin)
            begun = True
            settle.extend([self._apply(change) for change in group])
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._abandon()
            if begun and len(group) > 1:
                for change in group:
                    self._commit([change])
                return
            for change in group:  # what is refused before any of them has run is no one's fault: all are told at once
                change.future.set_exception(_chained(_refused(self._path, error), error))
            return
        for done in settle:
            done()

    def _apply(self, change: _Change[Any]) -> Callable[[], None]:
        self._connection.execute("SAVEPOINT change")
        try:
            result = change.work(self._connection)
        except sqlite3.Error:
            raise  # told to the caller when it happens to the change alone
        except BaseException as error:  # noqa: BLE001  # settled into the future: the caller gets it
            self._connection.execute("ROLLBACK TO change")
            self._connection.execute("RELEASE change")
            return functools.partial(change.future.set_exception, error)
        self._connection.execute("RELEASE change")
        return functools.partial(change.future.set_result, result)

    def _abandon(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # the next BEGIN says it again, to somebody who waits
            _roll_back(self._connection)


def _chained(error: errors.AtollError, cause: BaseException) -> errors.AtollError:
    error.__cause__ = cause
    return error


def _refused(path: Path, error: sqlite3.Error) -> errors.AtollError:
    """SQLite's error in our words; the low byte of its code is the kind (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return errors.ResourceExhausted(f"{path}: cannot grow, the disk is full: free some space")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return errors.DataLoss(f"{path}: cannot be read as the state database: {error}; restore it or move it away")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return errors.Unavailable(f"{path}: is locked by another process: end it, or try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return errors.FailedPrecondition(f"{path}: cannot be written: {error}; look at its folder's mode and mount")
    if code == sqlite3.SQLITE_IOERR:
        return errors.Unavailable(f"{path}: the disk failed: {error}")
    return errors.Internal(f"{path}: refused a change: {error}")
