"""The durable state: one SQLite file, one writer thread, group commit.

Every package that keeps records declares a `Schema` (its tables, grown by appended migrations) and
speaks SQL only inside the functions it hands to `Database.write` and `Database.read`.

Guarantees: `write` returns after its change is on disk (WAL, synchronous=FULL); changes that wait
together are committed together; a function that raises changes nothing and does not disturb the
others in its group. Readers see committed state and never wait for the writer.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from atoll import errors

T = TypeVar("T")
Connection = sqlite3.Connection

MAX_GROUP = 256
"""Most changes that share one commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The tables of one component; `migrations[n]` is SQL that takes version n to n + 1.

    A landed migration is never edited, only followed by another.
    """

    component: str
    migrations: tuple[str, ...]


class Database:
    """One open state file; made by `open`, ended by `close`."""

    def __init__(self, path: Path, writer: _Worker, reader: _Worker) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, path: Path, schemas: tuple[Schema, ...]) -> Database:
        """Open or make the file at `path` and bring every schema up to date, all or nothing.

        Raises `FailedPrecondition` where a newer Atoll wrote the file, `DataLoss` where it is not a
        readable database; neither changes the file.
        """
        return await asyncio.get_running_loop().run_in_executor(None, cls._open, path, schemas)

    @classmethod
    def _open(cls, path: Path, schemas: tuple[Schema, ...]) -> Database:
        try:
            connection = _connect(path)
            _migrate(connection, path, schemas)
        except sqlite3.DatabaseError as error:
            raise errors.DataLoss(f"{path}: cannot be used as the state database: {error}") from error
        return cls(path, _Worker("atoll-db-writer", connection), _Worker("atoll-db-reader", _connect(path)))

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Run `change` in the writer's transaction; its result after the commit is durable.

        The commit happens even if the caller is cancelled while it waits. `change` raising rolls
        back `change` alone. A disk that refuses raises `ResourceExhausted` and changes nothing.
        """
        return await asyncio.shield(asyncio.wrap_future(self._writer.submit(change)))

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on the reader's connection; it must not change anything."""
        return await asyncio.wrap_future(self._reader.submit(query))

    async def close(self) -> None:
        """Finish what was submitted, fold the log into the file, close; idempotent."""
        for worker in (self._reader, self._writer):
            await asyncio.get_running_loop().run_in_executor(None, worker.close)


def _connect(path: Path) -> Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -1024")
    return connection


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
    except BaseException:
        connection.execute("ROLLBACK")
        connection.close()
        raise
    connection.execute("COMMIT")


def _statements(script: str) -> list[str]:
    statements: list[str] = []
    pending = ""
    for part in script.split(";"):
        pending += part + ";"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements


class _Change(Generic[T]):
    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self.work = work
        self.future: Future[T] = Future()


class _Worker:
    """A thread that owns one connection and runs what is queued, in groups."""

    def __init__(self, name: str, connection: Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[_Change[Any] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        if self._closed:
            raise errors.Unavailable("the state database is closed")
        change = _Change(work)
        self._queue.put(change)
        return change.future

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            group: list[_Change[Any]] = []
            item = self._queue.get()
            while True:
                if item is None:
                    open_ = False
                    break
                group.append(item)
                if len(group) >= MAX_GROUP:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(group)
        self._connection.close()

    def _commit(self, group: list[_Change[Any]]) -> None:
        settle: list[Callable[[], None]] = []
        try:
            self._connection.execute("BEGIN")
            for change in group:
                settle.append(self._apply(change))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            failure = _disk_refused(error)
            for change in group:
                change.future.set_exception(failure)
            return
        for done in settle:
            done()

    def _apply(self, change: _Change[Any]) -> Callable[[], None]:
        self._connection.execute("SAVEPOINT change")
        try:
            result = change.work(self._connection)
        except sqlite3.OperationalError:
            raise  # the disk: the whole group is told
        except BaseException as error:  # settled into the future: the caller gets it
            self._connection.execute("ROLLBACK TO change")
            self._connection.execute("RELEASE change")
            failure = error
            return lambda: change.future.set_exception(failure)
        self._connection.execute("RELEASE change")
        return lambda: change.future.set_result(result)


def _disk_refused(error: sqlite3.Error) -> errors.AtollError:
    if "full" in str(error):
        return errors.ResourceExhausted(f"the state database cannot grow, the disk is full: {error}; free some space")
    return errors.Internal(f"the state database refused a change: {error}")
