"""The container records: durable in the state database, served from memory.

    containers
      id               the key
      sandbox_id       whose container it is
      name             unique, where not empty
      metadata         versioned JSON, see `metadata`; never changes
      image            the reference the container was made from
      snapshot_key     its writable layer
      spec             the OCI runtime spec, JSON; changes with the limits
      labels           JSON
      created_at       nanoseconds since the epoch

The status is no part of the record: it is a file of its own (`storage`).
"""

from __future__ import annotations

import bisect
import builtins
import dataclasses
import functools
import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

from atoll import errors
from atoll.concurrency import Blocking, Latch
from atoll.container.metadata import Metadata, decode_metadata, encode_metadata
from atoll.container.registrar import Registrar
from atoll.container.status import Status
from atoll.container.storage import Damage, StatusStorage, load_statuses, status_folder, store_status
from atoll.database import (
    Connection,
    Database,
    Plan,
    Quarantined,
    Schema,
    forget_quarantined,
    keep_aside,
    legible_key,
    quarantine,
    quarantined,
)
from atoll.identifiers import is_identifier, require_identifier
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
"""The source, in the quarantine, of checkpoints that could not be read; the key is the container's ID."""

SCHEMA = Schema(
    component="container",
    migrations=(
        """
        CREATE TABLE containers (
            id           TEXT PRIMARY KEY,
            sandbox_id   TEXT NOT NULL,
            name         TEXT NOT NULL,
            metadata     BLOB NOT NULL,
            image        TEXT NOT NULL,
            snapshot_key TEXT NOT NULL,
            spec         BLOB NOT NULL,
            labels       BLOB NOT NULL,
            created_at   INTEGER NOT NULL
        );
        CREATE UNIQUE INDEX container_names ON containers (name) WHERE name <> '';
        """,
    ),
)


class _Row(msgspec.Struct, kw_only=True):
    """A row as it should be; what SQLite gives is checked against it, for a damaged page holds anything."""

    id: str
    sandbox_id: str
    name: str
    metadata: bytes
    image: str
    snapshot_key: str
    spec: bytes
    labels: bytes
    created_at: int


_labels: msgspec.json.Decoder[dict[str, str]] = msgspec.json.Decoder(dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    """The durable record of a container; `spec` is the OCI runtime spec's JSON, `created_at` in ns."""

    metadata: Metadata
    created_at: int
    image: str = ""
    snapshot_key: str = ""
    spec: bytes = b""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def id(self) -> str:
        return self.metadata.id

    @property
    def sandbox_id(self) -> str:
        return self.metadata.sandbox_id

    @property
    def name(self) -> str:
        return self.metadata.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStats:
    """The last sample of a container's CPU use; `timestamp` in ns since the epoch."""

    timestamp: int
    usage_core_nanoseconds: int


class Container:
    """A container this daemon has: its record, its status, and what only memory knows of it.

    `stop_signalled` turns true with the first polite stop signal, so that it is sent once. `is_paused` is whether
    somebody has paused it: a start of the daemon lets it go on.
    """

    __slots__ = ("is_paused", "record", "stats", "status", "stop_signalled")

    def __init__(self, record: ContainerRecord, status: StatusStorage) -> None:
        self.record = record
        self.status = status
        self.stats: ContainerStats | None = None
        self.stop_signalled = False
        self.is_paused = False

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def sandbox_id(self) -> str:
        return self.record.sandbox_id

    @property
    def metadata(self) -> Metadata:
        return self.record.metadata

    @property
    def stopped(self) -> Latch[Status]:
        """Set, to the final status, when the container has exited."""
        return self.status.exited


class ContainerStore:
    """Every container of this daemon; made by `open`."""

    def __init__(self, db: Database, root: Path, blocking: Blocking) -> None:
        self._db = db
        self._root = root
        self._blocking = blocking
        self._containers: dict[str, Container] = {}
        self._sorted: list[str] = []
        self._quarantined: tuple[Quarantined, ...] = ()
        self.names = Registrar("container")
        """Names reserved by containers in the making, and held by those in the store."""

    @classmethod
    async def open(cls, db: Database, root: Path, blocking: Blocking) -> ContainerStore:
        """Load every record and checkpoint under `root`; what cannot be read stops nothing.

        An unreadable record goes to quarantine. So does the text of an unreadable checkpoint, under the source
        `CHECKPOINT`, until its container is removed; the container is served with the status UNKNOWN.
        """
        store = cls(db, root, blocking)
        records, store._quarantined = await db.write(_load)
        found = await load_statuses(root, [record.id for record in records], blocking)
        damaged: dict[str, Damage] = {}
        for record, (storage, damage) in zip(records, found, strict=True):
            store._keep(Container(record, storage))
            if damage is not None:
                damaged[record.id] = damage
        if damaged:
            await db.write(functools.partial(_set_aside, damaged=damaged))
        return store

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Records that could not be read, of this start and earlier ones; `key` is the container's ID."""
        return self._quarantined

    async def prepare(self, record: ContainerRecord, status: Status) -> Container:
        """Reserve the name and write the first checkpoint of a container to be added; `abandon` undoes it.

        Raises `AlreadyExists` where the full ID is in the store or the name belongs to another one.
        """
        require_identifier(record.id, "container id")
        if record.id in self._containers:
            raise errors.AlreadyExists(f"container {record.id}: is there already")
        record = dataclasses.replace(record, labels=MappingProxyType(dict(record.labels)))
        if record.name:
            self.names.reserve(record.name, record.id)
        try:
            return Container(record, await store_status(self._root, record.id, status, self._blocking))
        except errors.AtollError:
            self.names.release_key(record.id)
            await self._blocking.run(_remove_empty, status_folder(self._root, record.id))
            raise

    async def abandon(self, container: Container) -> None:
        """Undo `prepare`, for a container that was not added. Idempotent."""
        assert container.id not in self._containers, f"{container.id} is in the store: delete it"
        self.names.release_key(container.id)
        await container.status.delete()
        await self._blocking.run(_remove_empty, status_folder(self._root, container.id))

    async def add(self, record: ContainerRecord, status: Status) -> Container:
        """`prepare` and `plan_add` in one: checkpoint first, then the record; durable when it returns."""
        container = await self.prepare(record, status)
        try:
            return await self._db.commit(self.plan_add(container))
        except errors.AtollError:
            await self.abandon(container)
            raise

    def plan_add(self, container: Container) -> Plan[Container]:
        """Add a prepared container, as a part of a transaction; `AlreadyExists` where its ID is there."""
        if container.id in self._containers:
            raise errors.AlreadyExists(f"container {container.id}: is there already")
        return Plan(functools.partial(_insert, container=container), self._keep)

    def has(self, container_id: str) -> bool:
        """Whether the full ID is in the store; one that is only prepared is not."""
        return container_id in self._containers

    def get(self, prefix: str) -> Container:
        """The container whose ID is `prefix`, or the only one whose ID starts with it.

        Raises `InvalidArgument` for an empty or ambiguous prefix, `NotFound` where nothing matches.
        """
        if not prefix:
            raise errors.InvalidArgument("container id: must not be empty")
        if (exact := self._containers.get(prefix)) is not None:
            return exact
        first = bisect.bisect_left(self._sorted, prefix)
        matches = [full for full in self._sorted[first : first + 2] if full.startswith(prefix)]
        if not matches:
            raise errors.NotFound(f"container {prefix[:80]!r}: there is no such container")
        if len(matches) > 1:
            raise errors.InvalidArgument(f"container {prefix!r}: several IDs start so, such as {' and '.join(matches)}")
        return self._containers[matches[0]]

    def list(self, sandbox_id: str | None = None) -> tuple[Container, ...]:
        """Every container, or those of one sandbox, oldest first; a snapshot."""
        if sandbox_id is None:
            return tuple(self._containers.values())
        return tuple(container for container in self._containers.values() if container.sandbox_id == sandbox_id)

    def plan_update(
        self, container_id: str, *, spec: bytes | None = None, labels: Mapping[str, str] | None = None
    ) -> Plan[None]:
        """Replace what is given of a record, as a part of a transaction; `NotFound` for an unknown full ID."""
        values: dict[str, bytes] = {}
        if spec is not None:
            values["spec"] = spec
        if labels is not None:
            values["labels"] = msgspec.json.encode(dict(labels))
        return Plan(
            functools.partial(_update, container_id=container_id, values=values),
            lambda _: self._replace(container_id, spec, labels),
        )

    async def update(
        self, container_id: str, *, spec: bytes | None = None, labels: Mapping[str, str] | None = None
    ) -> None:
        """`plan_update` by itself; durable when it returns."""
        await self._db.commit(self.plan_update(container_id, spec=spec, labels=labels))

    def update_stats(self, prefix: str, stats: ContainerStats) -> None:
        """Keep the last sample; the rules of `get`."""
        self.get(prefix).stats = stats

    def plan_delete(self, container_id: str) -> Plan[None]:
        """Remove the record of a full ID and release its name, as a part of a transaction. Idempotent."""
        return Plan(functools.partial(_delete, container_id=container_id), lambda _: self._drop(container_id))

    async def delete(self, container_id: str) -> None:
        """Remove the record, then the checkpoint; the folder stays. Idempotent."""
        container = self._containers.get(container_id)
        await self._db.commit(self.plan_delete(container_id))
        if container is not None:
            await container.status.delete()

    def _keep(self, container: Container) -> None:
        self._containers[container.id] = container
        bisect.insort(self._sorted, container.id)
        if container.record.name:
            self.names.reserve(container.record.name, container.id)

    def _replace(self, container_id: str, spec: bytes | None, labels: Mapping[str, str] | None) -> None:
        container = self._containers[container_id]
        if spec is not None:
            container.record = dataclasses.replace(container.record, spec=spec)
        if labels is not None:
            container.record = dataclasses.replace(container.record, labels=MappingProxyType(dict(labels)))

    def _drop(self, container_id: str) -> None:
        if self._containers.pop(container_id, None) is not None:
            del self._sorted[bisect.bisect_left(self._sorted, container_id)]
            self.names.release_key(container_id)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s: is not removed: %s", folder, error.strerror)


def _insert(connection: Connection, *, container: Container) -> Container:
    record = container.record
    try:
        connection.execute(
            "INSERT INTO containers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.id,
                record.sandbox_id,
                record.name,
                encode_metadata(record.metadata),
                record.image,
                record.snapshot_key,
                record.spec,
                msgspec.json.encode(dict(record.labels)),
                record.created_at,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise errors.AlreadyExists(f"container {record.id}: it or its name {record.name!r} is there already") from error
    return container


def _update(connection: Connection, *, container_id: str, values: dict[str, bytes]) -> None:
    found = connection.execute("SELECT 1 FROM containers WHERE id = ?", (container_id,)).fetchone()
    if found is None:
        raise errors.NotFound(f"container {container_id[:80]!r}: there is no such container")
    if "spec" in values:
        connection.execute("UPDATE containers SET spec = ? WHERE id = ?", (values["spec"], container_id))
    if "labels" in values:
        connection.execute("UPDATE containers SET labels = ? WHERE id = ?", (values["labels"], container_id))


def _delete(connection: Connection, *, container_id: str) -> None:
    connection.execute("DELETE FROM containers WHERE id = ?", (container_id,))
    forget_quarantined(connection, CHECKPOINT, container_id)


def _decode(row: sqlite3.Row) -> ContainerRecord:
    try:
        found = msgspec.convert(dict(row), _Row)
        labels = _labels.decode(found.labels)
    except UNREADABLE as error:
        raise errors.DataLoss(f"container record: cannot be read: {error}") from error
    metadata = decode_metadata(found.metadata)
    if not is_identifier(found.id):
        raise errors.DataLoss("container record: its id is not an identifier")
    if (metadata.id, metadata.sandbox_id, metadata.name) != (found.id, found.sandbox_id, found.name):
        raise errors.DataLoss("container record: the metadata is that of another container")
    return ContainerRecord(
        metadata=metadata,
        created_at=found.created_at,
        image=found.image,
        snapshot_key=found.snapshot_key,
        spec=found.spec,
        labels=MappingProxyType(labels),
    )


def _load(connection: Connection) -> tuple[builtins.list[ContainerRecord], tuple[Quarantined, ...]]:
    records: builtins.list[ContainerRecord] = []
    for row in connection.execute("SELECT *, rowid FROM containers ORDER BY created_at, id").fetchall():
        try:
            records.append(_decode(row))
        except errors.DataLoss as error:
            quarantine(connection, "containers", legible_key(row["id"]), row, error.message)
            connection.execute("DELETE FROM containers WHERE rowid = ?", (row["rowid"],))
    return records, quarantined(connection, "containers")


def _set_aside(connection: Connection, *, damaged: Mapping[str, Damage]) -> None:
    """Tell of each damaged file once: one that could not be moved is found again at every start."""
    for container_id, damage in damaged.items():
        forget_quarantined(connection, CHECKPOINT, container_id)
        content = {"file": damage.kept_as, "text": damage.text}
        keep_aside(connection, CHECKPOINT, container_id, content, damage.reason)
