"""The snapshot records: their schema, and the SQL that reads and changes them.

snapshots   one row a snapshot
  name        chain ID of a committed one, key of an active one or a view
  number      the folder <root>/snapshots/<number>; never used twice while a row or folder has it
  kind        committed | active | view
  parent      name of the committed snapshot below, NULL for the lowest
  labels      JSON object of strings
  bytes       disk use of a committed one's own files; 0 otherwise
  inodes      their number
  created_ns  wall clock
"""

from __future__ import annotations

import enum
import logging
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from atoll import errors
from atoll.database import Connection, Schema, legible_key, quarantine, quarantined
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

SCHEMA = Schema(
    component="snapshot",
    migrations=(
        """
        CREATE TABLE snapshots (
            name TEXT PRIMARY KEY,
            number INTEGER NOT NULL UNIQUE,
            kind TEXT NOT NULL CHECK (kind IN ('committed', 'active', 'view')),
            parent TEXT REFERENCES snapshots (name),
            labels TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            inodes INTEGER NOT NULL,
            created_ns INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX snapshots_by_parent ON snapshots (parent);
        """,
    ),
)


class Kind(enum.StrEnum):
    """What may be done with a snapshot."""

    COMMITTED = "committed"
    ACTIVE = "active"
    VIEW = "view"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What files take on the disk, in bytes allocated and inodes."""

    bytes: int
    inodes: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(bytes=self.bytes + other.bytes, inodes=self.inodes + other.inodes)


NOTHING = Usage(bytes=0, inodes=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One record; `usage` is of a committed snapshot's own files, without its parents'."""

    name: str
    number: int
    kind: Kind
    parent: str | None
    labels: Mapping[str, str]
    usage: Usage
    created_ns: int


def new(name: str, number: int, kind: Kind, parent: str | None, labels: Mapping[str, str], usage: Usage) -> Snapshot:
    """A record made now."""
    return Snapshot(
        name=name,
        number=number,
        kind=kind,
        parent=parent,
        labels=dict(labels),
        usage=usage,
        created_ns=time.time_ns(),
    )


class _Row(msgspec.Struct, kw_only=True):
    """A row as it should be; what SQLite gives is checked against it, for a damaged page holds anything."""

    name: str
    number: int
    kind: Kind
    parent: str | None
    bytes: int
    inodes: int
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The records; `is_damaged`: some could not be read, so that nobody knows whose a folder is."""

    snapshots: list[Snapshot]
    is_damaged: bool


def load(connection: Connection) -> Loaded:
    """Every record that can be read.

    A copy of any other goes to quarantine, once; the row stays, for others may rest on it.
    """
    snapshots: list[Snapshot] = []
    told = {one.key for one in quarantined(connection, "snapshots")}
    rows = connection.execute("SELECT * FROM snapshots ORDER BY number").fetchall()
    for row in rows:
        try:
            snapshots.append(_decode(row))
        except UNREADABLE as error:
            if (key := legible_key(row["name"])) not in told:
                quarantine(connection, "snapshots", key, row, f"snapshot record: cannot be read: {error}")
    return Loaded(snapshots=snapshots, is_damaged=len(snapshots) < len(rows))


def _decode(row: sqlite3.Row) -> Snapshot:
    found = msgspec.convert(dict(row), _Row)
    return Snapshot(
        name=found.name,
        number=found.number,
        kind=found.kind,
        parent=found.parent,
        labels=_labels(found.name, row["labels"]),
        usage=Usage(bytes=found.bytes, inodes=found.inodes),
        created_ns=found.created_ns,
    )


def _labels(name: str, text: str | bytes) -> dict[str, str]:
    """The labels; damaged ones are none, because the snapshot is there all the same and may be in use."""
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except UNREADABLE as error:
        log.error("snapshot %s: its labels cannot be read: %s", name, error)
        return {}


def insert(connection: Connection, snapshot: Snapshot) -> None:
    """Record `snapshot`; `AlreadyExists` where its name is taken, `NotFound` where its parent is not there."""
    parent = snapshot.parent
    if parent is not None and not _is_committed(connection, parent):
        raise errors.NotFound(f"snapshot {parent}: not there as a committed snapshot, cannot be a parent")
    try:
        connection.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _row(snapshot))
    except sqlite3.IntegrityError as error:
        raise errors.AlreadyExists(f"snapshot {snapshot.name}: is there already; remove it first") from error


def replace(connection: Connection, snapshot: Snapshot) -> None:
    """Point the record of a committed snapshot whose folder was lost at a new folder."""
    connection.execute(
        "UPDATE snapshots SET number = ?, bytes = ?, inodes = ? WHERE name = ? AND kind = 'committed'",
        (snapshot.number, snapshot.usage.bytes, snapshot.usage.inodes, snapshot.name),
    )


def commit(connection: Connection, key: str, committed: Snapshot) -> None:
    """Turn the active snapshot `key` into `committed`."""
    try:
        changed = connection.execute(
            "UPDATE snapshots SET name = ?, kind = 'committed', bytes = ?, inodes = ? "
            "WHERE name = ? AND kind = 'active'",
            (committed.name, committed.usage.bytes, committed.usage.inodes, key),
        )
    except sqlite3.IntegrityError as error:
        raise errors.AlreadyExists(f"snapshot {committed.name}: is there already, cannot commit {key} to it") from error
    if changed.rowcount != 1:
        raise errors.NotFound(f"snapshot {key}: not there as an active snapshot, cannot be committed")


def label(connection: Connection, snapshot: Snapshot) -> None:
    """Give the record the labels of `snapshot`."""
    labels = msgspec.json.encode(dict(snapshot.labels)).decode()
    connection.execute("UPDATE snapshots SET labels = ? WHERE name = ?", (labels, snapshot.name))


def delete(connection: Connection, name: str) -> None:
    """Drop the record of `name`, if there is one; `FailedPrecondition` while it has children."""
    try:
        connection.execute("DELETE FROM snapshots WHERE name = ?", (name,))
    except sqlite3.IntegrityError as error:
        raise errors.FailedPrecondition(f"snapshot {name}: has children; remove them first") from error


def has_folder(connection: Connection, name: str, number: int) -> bool:
    """Whether the record `name` stands for the folder `number`."""
    row = connection.execute("SELECT number FROM snapshots WHERE name = ?", (name,)).fetchone()
    return row is not None and row["number"] == number


def _is_committed(connection: Connection, name: str) -> bool:
    row = connection.execute("SELECT kind FROM snapshots WHERE name = ?", (name,)).fetchone()
    return row is not None and row["kind"] == "committed"


def _row(snapshot: Snapshot) -> tuple[str, int, str, str | None, str, int, int, int]:
    return (
        snapshot.name,
        snapshot.number,
        snapshot.kind.value,
        snapshot.parent,
        msgspec.json.encode(dict(snapshot.labels)).decode(),
        snapshot.usage.bytes,
        snapshot.usage.inodes,
        snapshot.created_ns,
    )
