"""The sandbox records: durable in the state database, served from memory.

    sandboxes
      namespace, id    the key
      name             reserved for this record, unique in the namespace; NULL where none was asked for
      sandboxer        which controller
      runtime, spec, labels, extensions    JSON, see `codec`
      created_at, updated_at               microseconds since the epoch

`get`, `list` and `named` never touch the disk. A change is planned (`plan_create`, ...), so that it
can share a transaction with others (`Database.commit`); memory follows once that is durable.

The rules are those of containerd's Store service, save where it keeps on disk what `Update` was told
to replace (extensions missing in the new map, a spec or runtime options now unset): here the record
returned is the record stored. Labels with an empty value are dropped on every write.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TypeVar

import msgspec

from atoll import errors
from atoll.database import Connection, Database, Plan, Quarantined, Schema, legible_key, quarantine, quarantined
from atoll.identifiers import is_identifier, require_identifier
from atoll.sandbox import codec
from atoll.sandbox.controller import Sandbox
from atoll.sandbox.filters import compile_filters
from atoll.unreadable import UNREADABLE

V = TypeVar("V")
Key = tuple[str, str]

DEFAULT_NAMESPACE = "k8s.io"
MAX_LABEL_BYTES = 4096
"""Most bytes of a label's key and value together; containerd has the same limit for its other records."""
MAX_LABELS = 4096
"""Most labels of one record."""

SCHEMA = Schema(
    component="sandbox",
    migrations=(
        """
        CREATE TABLE sandboxes (
            namespace  TEXT NOT NULL,
            id         TEXT NOT NULL,
            name       TEXT,
            sandboxer  TEXT NOT NULL,
            runtime    BLOB NOT NULL,
            spec       BLOB NOT NULL,
            labels     BLOB NOT NULL,
            extensions BLOB NOT NULL,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            PRIMARY KEY (namespace, id)
        );
        CREATE UNIQUE INDEX sandbox_names ON sandboxes (namespace, name) WHERE name IS NOT NULL;
        """,
    ),
)


class SandboxStore:
    """Every sandbox record of this daemon; made by `open`, owned by nobody: it holds no resource."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._records: dict[Key, Sandbox] = {}
        self._ids: dict[Key, str] = {}
        self._names: dict[Key, str] = {}
        self._quarantined: tuple[Quarantined, ...] = ()

    @classmethod
    async def open(cls, db: Database) -> SandboxStore:
        """Load every record; those that cannot be read go to quarantine and the rest is served."""
        store = cls(db)
        records, store._quarantined = await db.write(_load)
        for namespace, name, sandbox in records:
            store._keep(namespace, name, sandbox)
        return store

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Records that could not be read, of this start and earlier ones; `key` is `namespace/id`."""
        return self._quarantined

    async def create(self, sandbox: Sandbox, *, name: str = "", namespace: str = DEFAULT_NAMESPACE) -> Sandbox:
        """Store a new record, with both its times set to now; the record as stored.

        `name`, where given, is reserved until the record is deleted, whatever happens to its labels.
        Raises `InvalidArgument` for a bad ID, `AlreadyExists` for one there is or a name taken,
        `FailedPrecondition` without a namespace. Durable when it returns.
        """
        return await self._db.commit(self.plan_create(sandbox, name=name, namespace=namespace))

    def plan_create(self, sandbox: Sandbox, *, name: str = "", namespace: str = DEFAULT_NAMESPACE) -> Plan[Sandbox]:
        """`create` as a part of a transaction; what memory can tell already, it raises at once."""
        require_namespace(namespace)
        require_identifier(sandbox.id, "sandbox id")
        require_labels(sandbox.labels)
        if (namespace, sandbox.id) in self._records:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is there already")
        if holder := self.named(name, namespace=namespace):
            raise errors.AlreadyExists(f"sandbox name {name!r}: is held by sandbox {holder}")
        now = datetime.now(UTC)
        record = _owned(dataclasses.replace(sandbox, created_at=now, updated_at=now))
        return Plan(
            functools.partial(_insert, namespace=namespace, name=name or None, record=record),
            functools.partial(self._keep, namespace, name),
        )

    def get(self, sandbox_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Sandbox:
        """The record, or `NotFound`."""
        require_namespace(namespace)
        record = self._records.get((namespace, sandbox_id))
        if record is None:
            raise _unknown(sandbox_id)
        return record

    def list(self, *filters: str, namespace: str = DEFAULT_NAMESPACE) -> tuple[Sandbox, ...]:
        """The records that any of `filters` matches (see `filters`), oldest first; all where there are none."""
        require_namespace(namespace)
        matches = compile_filters(filters)
        return tuple(record for (space, _), record in self._records.items() if space == namespace and matches(record))

    def pods(self) -> tuple[Sandbox, ...]:
        """The records of this daemon's own pods, oldest first: those that hold a name."""
        return tuple(record for key, record in self._records.items() if key in self._names)

    def is_pod(self, sandbox_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Whether the record is one of `pods`."""
        return (namespace, sandbox_id) in self._names

    def named(self, name: str, *, namespace: str = DEFAULT_NAMESPACE) -> str | None:
        """The ID of the sandbox that holds the reserved `name`."""
        return self._ids.get((namespace, name)) if name else None

    async def update(
        self, sandbox: Sandbox, fields: Iterable[str] = (), *, namespace: str = DEFAULT_NAMESPACE
    ) -> Sandbox:
        """Bring the named `fields` of the stored record to the values in `sandbox`; the record as stored.

        No fields: labels, extensions, spec and runtime are replaced, and the runtime's name must
        stay. `labels`, `extensions`, `spec`, `runtime` replace that part; `labels.<key>` and
        `extensions.<key>` set one key, or remove it where `sandbox` lacks it. ID, sandboxer and
        creation time never change. Raises `NotFound`, `InvalidArgument` for any other path; then
        nothing changed. Updates of one record never lose one another's changes.
        """
        return await self._db.commit(self.plan_update(sandbox, fields, namespace=namespace))

    def plan_update(
        self, sandbox: Sandbox, fields: Iterable[str] = (), *, namespace: str = DEFAULT_NAMESPACE
    ) -> Plan[Sandbox]:
        """`update` as a part of a transaction; it works on the record as that transaction finds it."""
        require_namespace(namespace)
        paths = tuple(fields)
        for path in paths:
            require_path(path)
        require_labels(sandbox.labels)
        return Plan(
            functools.partial(_update, namespace=namespace, sandbox=_owned(sandbox), paths=paths),
            functools.partial(self._replace, namespace),
        )

    async def delete(self, sandbox_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Remove the record and release its name; `NotFound` where there is none."""
        await self._db.commit(self.plan_delete(sandbox_id, namespace=namespace))

    def plan_delete(self, sandbox_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Plan[None]:
        """`delete` as a part of a transaction."""
        require_namespace(namespace)
        return Plan(
            functools.partial(_delete, namespace=namespace, sandbox_id=sandbox_id),
            lambda _: self._drop(namespace, sandbox_id),
        )

    def _keep(self, namespace: str, name: str, record: Sandbox) -> None:
        self._records[namespace, record.id] = record
        if name:
            self._ids[namespace, name] = record.id
            self._names[namespace, record.id] = name

    def _replace(self, namespace: str, record: Sandbox) -> None:
        self._records[namespace, record.id] = record

    def _drop(self, namespace: str, sandbox_id: str) -> None:
        self._records.pop((namespace, sandbox_id), None)
        name = self._names.pop((namespace, sandbox_id), None)
        if name is not None:
            del self._ids[namespace, name]


def _unknown(sandbox_id: str) -> errors.NotFound:
    return errors.NotFound(f"sandbox {sandbox_id[:80]!r}: there is no such sandbox")


def require_namespace(namespace: str) -> str:
    """`namespace` where it can be one; `FailedPrecondition` where there is none, else `InvalidArgument`."""
    if not namespace:
        raise errors.FailedPrecondition("a namespace is required: set the containerd-namespace header")
    return require_identifier(namespace, "namespace")


def require_labels(labels: Mapping[str, str]) -> None:
    """Raise `InvalidArgument` naming what of `labels` is over a limit."""
    if len(labels) > MAX_LABELS:
        raise errors.InvalidArgument(f"labels: {len(labels)} are more than {MAX_LABELS}")
    for key, value in labels.items():
        size = len(key.encode()) + len(value.encode())
        if size > MAX_LABEL_BYTES:
            raise errors.InvalidArgument(
                f"label {key[:64]!r}: key and value have {size} bytes, at most {MAX_LABEL_BYTES} are allowed"
            )


def require_path(path: str) -> None:
    part, dot, key = path.partition(".")
    whole = not dot and part in ("labels", "extensions", "spec", "runtime")
    if not whole and not (part in ("labels", "extensions") and key):
        raise errors.InvalidArgument(
            f"field path {path!r}: cannot be updated; labels, extensions, spec, runtime, labels.KEY and extensions.KEY "
            "can, and of a controller's sandbox annotations and annotations.KEY"
        )


def _owned(sandbox: Sandbox) -> Sandbox:
    """A copy whose mappings nobody else can change, without the labels that have no value."""
    return dataclasses.replace(
        sandbox,
        labels=MappingProxyType({key: value for key, value in sandbox.labels.items() if value}),
        extensions=MappingProxyType(dict(sandbox.extensions)),
    )


def merge(old: Sandbox, new: Sandbox, paths: tuple[str, ...]) -> Sandbox:
    """`old` with the parts that the valid `paths` name taken from `new`, as `SandboxStore.update` tells."""
    if not paths:
        if new.runtime.name != old.runtime.name:
            raise errors.InvalidArgument(
                f"sandbox {old.id}: its runtime {old.runtime.name!r} cannot become {new.runtime.name!r} "
                "unless the field runtime is named"
            )
        paths = ("labels", "extensions", "spec", "runtime")
    for path in paths:
        part, _, key = path.partition(".")
        if part == "labels":
            old = dataclasses.replace(old, labels=_with_key(old.labels, new.labels, key) if key else new.labels)
        elif part == "extensions":
            chosen = _with_key(old.extensions, new.extensions, key) if key else new.extensions
            old = dataclasses.replace(old, extensions=chosen)
        elif part == "spec":
            old = dataclasses.replace(old, spec=new.spec)
        else:
            old = dataclasses.replace(old, runtime=new.runtime)
    return _owned(old)


def _with_key(old: Mapping[str, V], new: Mapping[str, V], key: str) -> Mapping[str, V]:
    result = {name: value for name, value in old.items() if name != key}
    if key in new:
        result[key] = new[key]
    return result


def _insert(connection: Connection, *, namespace: str, name: str | None, record: Sandbox) -> Sandbox:
    try:
        connection.execute(
            "INSERT INTO sandboxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                namespace,
                record.id,
                name,
                record.sandboxer,
                codec.encode(record.runtime),
                codec.encode(record.spec),
                codec.encode(record.labels),
                codec.encode(record.extensions),
                codec.to_microseconds(record.created_at),
                codec.to_microseconds(record.updated_at),
            ),
        )
    except sqlite3.IntegrityError as error:
        raise errors.AlreadyExists(f"sandbox {record.id}: it or its name {name!r} is there already") from error
    return record


def _update(connection: Connection, *, namespace: str, sandbox: Sandbox, paths: tuple[str, ...]) -> Sandbox:
    row = connection.execute(
        "SELECT * FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, sandbox.id)
    ).fetchone()
    if row is None:
        raise _unknown(sandbox.id)
    record = dataclasses.replace(merge(_decode(row), sandbox, paths), updated_at=datetime.now(UTC))
    connection.execute(
        "UPDATE sandboxes SET runtime = ?, spec = ?, labels = ?, extensions = ?, updated_at = ? "
        "WHERE namespace = ? AND id = ?",
        (
            codec.encode(record.runtime),
            codec.encode(record.spec),
            codec.encode(record.labels),
            codec.encode(record.extensions),
            codec.to_microseconds(record.updated_at),
            namespace,
            record.id,
        ),
    )
    return record


def _delete(connection: Connection, *, namespace: str, sandbox_id: str) -> None:
    done = connection.execute("DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, sandbox_id))
    if done.rowcount == 0:
        raise _unknown(sandbox_id)


class _Row(msgspec.Struct, kw_only=True):
    """A row as it should be; what SQLite gives is checked against it, for a damaged page holds anything."""

    namespace: str
    id: str
    name: str | None
    sandboxer: str
    runtime: bytes
    spec: bytes
    labels: bytes
    extensions: bytes
    created_at: int
    updated_at: int


def _decode(row: sqlite3.Row) -> Sandbox:
    """The record of a row, or `DataLoss` that says what of it cannot be read."""
    try:
        found = msgspec.convert(dict(row), _Row)
    except UNREADABLE as error:
        raise errors.DataLoss(f"sandbox record: cannot be read: {error}") from error
    if not is_identifier(found.id) or not is_identifier(found.namespace):
        raise errors.DataLoss("sandbox record: its id or namespace is not an identifier")
    return Sandbox(
        id=found.id,
        sandboxer=found.sandboxer,
        runtime=codec.decode_runtime(found.runtime),
        spec=codec.decode_spec(found.spec),
        labels=codec.decode_labels(found.labels),
        extensions=codec.decode_extensions(found.extensions),
        created_at=codec.from_microseconds(found.created_at),
        updated_at=codec.from_microseconds(found.updated_at),
    )


def _load(connection: Connection) -> tuple[builtins.list[tuple[str, str, Sandbox]], tuple[Quarantined, ...]]:
    records: builtins.list[tuple[str, str, Sandbox]] = []
    for row in connection.execute("SELECT *, rowid FROM sandboxes ORDER BY created_at, id").fetchall():
        try:
            records.append((row["namespace"], row["name"] or "", _decode(row)))
        except errors.DataLoss as error:
            quarantine(
                connection, "sandboxes", f"{legible_key(row['namespace'])}/{legible_key(row['id'])}", row, error.message
            )
            connection.execute("DELETE FROM sandboxes WHERE rowid = ?", (row["rowid"],))
    return records, quarantined(connection, "sandboxes")
