"""The durable pools: what their members are made by, how many there are to be, and each member.

    pools
      name         the key
      size         ready members that are wanted; -1 where the pool is being deleted
      generation   of its spec; members of earlier ones are replaced
      spec         JSON of a `PoolSpec`
      hits         acquisitions that a ready member served
      misses       those that had to wait for a pod of their own
      created_ns   wall clock
    pool_members
      pod_name     the key: `<name>_<namespace>_<uid>_<attempt>`, written before the pod is made
      pool         whose member it is
      generation   of the spec that it was made by
      pod_id       empty while it is being made
      container_id

A member that is handed out is a member no more: its row goes in the commit that gives the pod its lease.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
from dataclasses import dataclass

import msgspec

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.database import Connection, Database, Plan, Schema, legible_key, quarantine
from atoll.sandbox.config import PodConfig
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

GOING = -1
"""The size of a pool that is being deleted."""

SCHEMA = Schema(
    component="pools",
    migrations=(
        """
        CREATE TABLE pools (
            name       TEXT PRIMARY KEY,
            size       INTEGER NOT NULL,
            generation INTEGER NOT NULL,
            spec       TEXT NOT NULL,
            hits       INTEGER NOT NULL,
            misses     INTEGER NOT NULL,
            created_ns INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE pool_members (
            pod_name     TEXT PRIMARY KEY,
            pool         TEXT NOT NULL,
            generation   INTEGER NOT NULL,
            pod_id       TEXT NOT NULL,
            container_id TEXT NOT NULL
        ) STRICT;
        """,
    ),
)


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a member is: a pod with one running container. The names in it are replaced by each member's own.

    With a command `ready` it is one only once that has ended with 0 in its container, `ready_within_s` after its start
    at the latest.
    """

    pod: PodConfig
    container: ContainerConfig
    handler: str = ""
    ready: tuple[str, ...] = ()
    ready_within_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRecord:
    name: str
    size: int
    generation: int
    spec: PoolSpec
    hits: int
    misses: int
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRecord:
    pod_name: str
    pool: str
    generation: int
    pod_id: str = ""
    container_id: str = ""


class PoolStore:
    """Reads and writes the two tables; what is in memory is `Pools`'s business."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def load(self) -> tuple[list[PoolRecord], list[MemberRecord]]:
        """Everything; a pool that cannot be read goes to quarantine, its members are told as nobody's."""
        return await self._db.write(_load)

    async def put(self, record: PoolRecord) -> None:
        await self._db.write(functools.partial(_put, record=record))

    async def resize(self, name: str, size: int) -> None:
        await self._db.write(lambda db: _run(db, "UPDATE pools SET size = ? WHERE name = ?", (size, name)))

    async def delete(self, name: str) -> None:
        await self._db.write(lambda db: _run(db, "DELETE FROM pools WHERE name = ?", (name,)))

    async def enter(self, member: MemberRecord) -> None:
        """Write a member down, before its pod is made, or with its pod once it is ready."""
        await self._db.write(functools.partial(_enter, member=member))

    async def strike(self, pod_name: str) -> None:
        """Forget a member, after its pod is gone. Idempotent."""
        await self._db.write(functools.partial(_strike, pod_name=pod_name))

    def plan_claim(self, member: MemberRecord) -> Plan[None]:
        """Make a member nobody's and count the hit, as a part of a transaction."""
        return Plan(functools.partial(_claim, member=member))

    async def count_miss(self, name: str) -> None:
        await self._db.write(lambda db: _run(db, "UPDATE pools SET misses = misses + 1 WHERE name = ?", (name,)))


def _run(connection: Connection, sql: str, values: tuple[object, ...]) -> None:
    connection.execute(sql, values)


def _put(connection: Connection, *, record: PoolRecord) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO pools VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            record.name,
            record.size,
            record.generation,
            msgspec.json.encode(record.spec).decode(),
            record.hits,
            record.misses,
            record.created_ns,
        ),
    )


def _enter(connection: Connection, *, member: MemberRecord) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO pool_members VALUES (?, ?, ?, ?, ?)",
        (member.pod_name, member.pool, member.generation, member.pod_id, member.container_id),
    )


def _strike(connection: Connection, *, pod_name: str) -> None:
    connection.execute("DELETE FROM pool_members WHERE pod_name = ?", (pod_name,))


def _claim(connection: Connection, *, member: MemberRecord) -> None:
    _strike(connection, pod_name=member.pod_name)
    connection.execute("UPDATE pools SET hits = hits + 1 WHERE name = ?", (member.pool,))


def _load(connection: Connection) -> tuple[list[PoolRecord], list[MemberRecord]]:
    pools: list[PoolRecord] = []
    for row in connection.execute("SELECT *, rowid FROM pools ORDER BY name").fetchall():
        try:
            pools.append(_pool(row))
        except (errors.DataLoss, *UNREADABLE) as error:
            log.error("pool %s: its record cannot be read, its members are removed: %s", row["name"], error)
            quarantine(connection, "pools", legible_key(row["name"]), row, str(error))
            connection.execute("DELETE FROM pools WHERE rowid = ?", (row["rowid"],))
    members: list[MemberRecord] = []
    for row in connection.execute("SELECT *, rowid FROM pool_members ORDER BY rowid").fetchall():
        try:
            members.append(msgspec.convert(dict(row), MemberRecord))
        except UNREADABLE as error:
            quarantine(connection, "pool_members", legible_key(row["pod_name"]), row, str(error))
            connection.execute("DELETE FROM pool_members WHERE rowid = ?", (row["rowid"],))
    return pools, members


def _pool(row: sqlite3.Row) -> PoolRecord:
    return PoolRecord(
        name=msgspec.convert(row["name"], str),
        size=msgspec.convert(row["size"], int),
        generation=msgspec.convert(row["generation"], int),
        spec=msgspec.json.decode(row["spec"], type=PoolSpec),
        hits=msgspec.convert(row["hits"], int),
        misses=msgspec.convert(row["misses"], int),
        created_ns=msgspec.convert(row["created_ns"], int),
    )
