"""Sandboxes that foreign callers have asked for: what is kept of each, durably and while the daemon lives.

    hosted
      namespace, id    the key, as the caller named it
      key              what all that is ours of it is named by: the ledger's owner, folders, sockets, cgroups
      sandbox          JSON: the record as the caller gave it
      state            JSON: `HostedState`

The life of one:

    CREATING ──> CREATED ──start──> STARTING ──> STARTED ──exit or stop──> STARTED, with `ended`
       │            ├── never started within its time: freed
       │            └── stopped: CREATED, with `ended`
       └────────────┴── failed, cancelled, or cut short by a crash: everything freed, the record too

`key` is the ID itself in the namespace `k8s.io`, elsewhere a digest of namespace and ID: two namespaces may hold
the same ID, and no caller can choose a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import msgspec

from atoll import errors
from atoll.concurrency import Latch
from atoll.database import Connection, Database, Plan, Quarantined, Schema, legible_key, quarantine, quarantined
from atoll.engine.paths import NAMESPACE
from atoll.identifiers import is_identifier
from atoll.sandbox.controller import (
    ControllerInstance,
    ExitStatus,
    Platform,
    Runtime,
    Sandbox,
)
from atoll.unreadable import UNREADABLE

KEY_LENGTH = 40
"""Of a digest, in hex digits."""

SCHEMA = Schema(
    component="hosted",
    migrations=(
        """
        CREATE TABLE hosted (
            namespace TEXT NOT NULL,
            id        TEXT NOT NULL,
            key       TEXT NOT NULL UNIQUE,
            sandbox   BLOB NOT NULL,
            state     BLOB NOT NULL,
            PRIMARY KEY (namespace, id)
        );
        """,
    ),
)


class NoEnd(StrEnum):
    """Why a sandbox's end is none, for who waits."""

    GONE = "it is gone, and never ran"
    CLOSING = "the daemon ends; ask again"


class Phase(StrEnum):
    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    STARTED = "started"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedState:
    """What changes in the life of a hosted sandbox. `controller` names who runs it: a runtime handler, or a kind.

    `runtime` is what its controller is told, which need not be what the caller named.
    """

    controller: str
    runtime: Runtime
    phase: Phase
    made_at: datetime
    instance: ControllerInstance | None = None
    platform: Platform | None = None
    ended: ExitStatus | None = None
    is_heard_of: bool = True
    """Not yet, of a containerd's pod that has just started: it asks at once, unless the answer to start was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedRecord:
    """One row."""

    namespace: str
    key: str
    sandbox: Sandbox
    state: HostedState

    @property
    def id(self) -> str:
        return self.sandbox.id


@dataclass(slots=True, kw_only=True, eq=False)
class Hosted:
    """A hosted sandbox while the daemon lives; `lock` orders what changes it, reading needs none.

    `inner_id` is what its controller calls it. `end` is set when it has ended, or no end can be waited for.
    """

    record: HostedRecord
    inner_id: str
    reason: str = ""
    """Why nothing is known of it now, where that is so."""
    is_gone: bool = False
    """Its record is deleted; what is left of it are debts."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    end: Latch[ExitStatus | NoEnd] = field(default_factory=Latch[ExitStatus | NoEnd])
    expiry: asyncio.TimerHandle | None = None
    watch: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def state(self) -> HostedState:
        return self.record.state

    @property
    def is_ready(self) -> bool:
        return self.state.phase is Phase.STARTED and self.state.ended is None and not self.is_gone

    @contextlib.contextmanager
    def named(self) -> Generator[None]:
        """Within, errors are told with the ID that the caller knows, not with what its controller calls it."""
        try:
            yield
        except errors.AtollError as error:
            for one in (error, *error.joined):
                for what in ("sandbox", "container"):
                    one.message = one.message.replace(f"{what} {self.inner_id}", f"{what} {self.record.id}")
            if self.record.id not in error.message:
                error.message = f"sandbox {self.record.id}: {error.message}"
            raise

    def changed(self, **changes: object) -> HostedRecord:
        """The record with these values in its state."""
        return dataclasses.replace(self.record, state=dataclasses.replace(self.record.state, **changes))

    def __str__(self) -> str:
        return f"sandbox {self.record.id[:13]} of namespace {self.record.namespace}"


def key_of(namespace: str, sandbox_id: str) -> str:
    """What all of a hosted sandbox is named by."""
    if namespace == NAMESPACE:
        return sandbox_id
    return hashlib.sha256(f"{namespace}/{sandbox_id}".encode()).hexdigest()[:KEY_LENGTH]


class HostedStore:
    """The table; changes are plans, so that they share a transaction with the ledger's."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._quarantined: tuple[Quarantined, ...] = ()

    async def load(self) -> tuple[HostedRecord, ...]:
        """Every record; those that cannot be read go to quarantine."""
        found, self._quarantined = await self._db.write(_load)
        return found

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Records that `load` could not read, now or before; `key` is `namespace/key`."""
        return self._quarantined

    def plan_create(self, record: HostedRecord) -> Plan[None]:
        return Plan(functools.partial(_insert, record=record))

    def plan_state(self, record: HostedRecord) -> Plan[None]:
        return Plan(functools.partial(_set, record=record, column="state", value=_encode(record.state)))

    def plan_heard_of(self, record: HostedRecord) -> Plan[None]:
        """Note that one thing in the state; what else changes at the same time stays as it is."""
        return Plan(functools.partial(_hear_of, record=record))

    def plan_sandbox(self, record: HostedRecord) -> Plan[None]:
        return Plan(functools.partial(_set, record=record, column="sandbox", value=encode_sandbox(record.sandbox)))

    def plan_delete(self, record: HostedRecord) -> Plan[None]:
        """Idempotent."""
        return Plan(functools.partial(_delete, record=record))


def encode_sandbox(sandbox: Sandbox) -> bytes:
    """The JSON text of a record."""
    plain = dataclasses.replace(sandbox, labels=dict(sandbox.labels), extensions=dict(sandbox.extensions))
    return msgspec.json.encode(plain)


def _encode(state: HostedState) -> bytes:
    if state.instance is not None:
        state = dataclasses.replace(
            state, instance=dataclasses.replace(state.instance, labels=dict(state.instance.labels))
        )
    return msgspec.json.encode(state)


def _insert(connection: Connection, *, record: HostedRecord) -> None:
    connection.execute(
        "INSERT INTO hosted VALUES (?, ?, ?, ?, ?)",
        (record.namespace, record.id, record.key, encode_sandbox(record.sandbox), _encode(record.state)),
    )


def _set(connection: Connection, *, record: HostedRecord, column: str, value: bytes) -> None:
    statement = {
        "state": "UPDATE hosted SET state = ? WHERE key = ?",
        "sandbox": "UPDATE hosted SET sandbox = ? WHERE key = ?",
    }[column]
    connection.execute(statement, (value, record.key))


def _hear_of(connection: Connection, *, record: HostedRecord) -> None:
    connection.execute(
        "UPDATE hosted SET state = CAST(json_set(CAST(state AS TEXT), '$.is_heard_of', json('true')) AS BLOB) "
        "WHERE key = ?",
        (record.key,),
    )


def _delete(connection: Connection, *, record: HostedRecord) -> None:
    connection.execute("DELETE FROM hosted WHERE key = ?", (record.key,))


class _Row(msgspec.Struct, kw_only=True):
    """A row as it should be; what SQLite gives is checked against it, for a damaged page holds anything."""

    namespace: str
    id: str
    key: str
    sandbox: bytes
    state: bytes


_sandbox: msgspec.json.Decoder[Sandbox] = msgspec.json.Decoder(Sandbox)
_state: msgspec.json.Decoder[HostedState] = msgspec.json.Decoder(HostedState)


def _decode(row: Mapping[str, object]) -> HostedRecord:
    try:
        found = msgspec.convert(dict(row), _Row)
        record = HostedRecord(
            namespace=found.namespace,
            key=found.key,
            sandbox=_sandbox.decode(found.sandbox),
            state=_state.decode(found.state),
        )
    except UNREADABLE as error:
        raise errors.DataLoss(f"hosted sandbox: cannot be read: {error}") from error
    if record.id != found.id or not all(map(is_identifier, (found.namespace, found.id, found.key))):
        raise errors.DataLoss("hosted sandbox: its id or namespace is not an identifier, or not its own")
    return record


def _load(connection: Connection) -> tuple[tuple[HostedRecord, ...], tuple[Quarantined, ...]]:
    found: list[HostedRecord] = []
    for row in connection.execute("SELECT *, rowid FROM hosted").fetchall():
        try:
            found.append(_decode({name: row[name] for name in row.keys()}))  # noqa: SIM118  a Row gives values
        except errors.DataLoss as error:
            quarantine(
                connection, "hosted", f"{legible_key(row['namespace'])}/{legible_key(row['key'])}", row, error.message
            )
            connection.execute("DELETE FROM hosted WHERE rowid = ?", (row["rowid"],))
    return tuple(found), quarantined(connection, "hosted")
