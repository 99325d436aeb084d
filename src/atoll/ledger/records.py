"""The ledger's table.

ledger
  seq          the order of entering
  owner, kind, key, data (JSON)
  entered_at   microseconds since the epoch
  boot_id      the kernel's at that time
  attempts, last_error, next_try (microseconds since the epoch)    of a debt
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import msgspec

from atoll import errors
from atoll.database import Connection, Quarantined, Schema, legible_key, quarantine, quarantined
from atoll.identifiers import is_identifier
from atoll.ledger.kind import Entry
from atoll.unreadable import UNREADABLE

SCHEMA = Schema(
    component="ledger",
    migrations=(
        """
        CREATE TABLE ledger (
            seq        INTEGER PRIMARY KEY,
            owner      TEXT NOT NULL,
            kind       TEXT NOT NULL,
            key        TEXT NOT NULL,
            data       BLOB NOT NULL,
            entered_at INTEGER NOT NULL,
            boot_id    TEXT NOT NULL,
            attempts   INTEGER NOT NULL,
            last_error TEXT NOT NULL,
            next_try   INTEGER,
            UNIQUE (kind, key)
        );
        """,
    ),
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class _Row(msgspec.Struct, kw_only=True):
    """A row as it should be; what SQLite gives is checked against it, for a damaged page holds anything."""

    seq: int
    owner: str
    kind: str
    key: str
    data: bytes
    entered_at: int
    boot_id: str
    attempts: int
    last_error: str
    next_try: int | None


def insert(connection: Connection, entries: Iterable[Entry]) -> None:
    """Write new entries; `AlreadyExists` where a kind has the key already."""
    for entry in entries:
        try:
            connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _values(entry))
        except sqlite3.IntegrityError as error:
            raise errors.AlreadyExists(f"{entry.kind} {entry.key}: is in the ledger already") from error


def replace(connection: Connection, entries: Iterable[Entry]) -> None:
    """Write entries again where they still stand; struck ones stay struck."""
    connection.executemany(
        "UPDATE ledger SET data = ?, attempts = ?, last_error = ?, next_try = ? WHERE seq = ?",
        [
            (msgspec.json.encode(dict(entry.data)), entry.attempts, entry.last_error, _time(entry.next_try), entry.seq)
            for entry in entries
        ],
    )


def delete(connection: Connection, entries: Iterable[Entry]) -> None:
    """Strike entries; those struck before are fine."""
    connection.executemany("DELETE FROM ledger WHERE seq = ?", [(entry.seq,) for entry in entries])


def load(connection: Connection) -> tuple[list[Entry], tuple[Quarantined, ...]]:
    """Every entry in order of entering; those that cannot be read go to quarantine."""
    entries: list[Entry] = []
    for row in connection.execute("SELECT * FROM ledger ORDER BY seq").fetchall():
        try:
            entries.append(_decode(row))
        except errors.DataLoss as error:
            quarantine(connection, "ledger", legible_key(row["seq"]), row, error.message)
            connection.execute("DELETE FROM ledger WHERE seq = ?", (row["seq"],))
    return entries, quarantined(connection, "ledger")


def _values(entry: Entry) -> tuple[int | str | bytes | None, ...]:
    return (
        entry.seq,
        entry.owner,
        entry.kind,
        entry.key,
        msgspec.json.encode(dict(entry.data)),
        _time(entry.entered_at),
        entry.boot_id,
        entry.attempts,
        entry.last_error,
        _time(entry.next_try),
    )


def _time(value: datetime | None) -> int | None:
    return None if value is None else (value - _EPOCH) // _MICROSECOND


def _decode(row: sqlite3.Row) -> Entry:
    try:
        found = msgspec.convert(dict(row), _Row)
        data = msgspec.json.decode(found.data, type=dict[str, str])
        entered_at = _EPOCH + found.entered_at * _MICROSECOND
        next_try = None if found.next_try is None else _EPOCH + found.next_try * _MICROSECOND
    except (OverflowError, *UNREADABLE) as error:
        raise errors.DataLoss(f"ledger entry: cannot be read: {error}") from error
    if not is_identifier(found.owner):
        raise errors.DataLoss("ledger entry: its owner is not an identifier")
    return Entry(
        seq=found.seq,
        owner=found.owner,
        kind=found.kind,
        key=found.key,
        data=MappingProxyType(data),
        entered_at=entered_at,
        boot_id=found.boot_id,
        attempts=found.attempts,
        last_error=found.last_error,
        next_try=next_try,
    )
