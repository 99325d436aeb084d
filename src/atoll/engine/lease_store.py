"""The durable leases of pods, and the clock that they are measured by.

    leases
      pod_id     the key
      ttl_s      absolute time to live from `began`; 0 for none
      idle_s     time to live without use, from `used`; 0 for none
      began      when it was made or renewed    JSON of a `Moment`
      used       the last use that was noted    JSON of a `Moment`
      reason     why it ran out; empty while it runs. A row with a reason outlives its pod, to be asked about
      ended_ns   when it ran out, wall clock

Within one boot time is CLOCK_BOOTTIME, which no change of the wall clock moves and which counts a suspended machine's
time. Over a reboot only the wall clock is there; one that was set back counts as no time.
"""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec

from atoll import errors
from atoll.database import Connection, Database, Plan, Schema, legible_key, quarantine
from atoll.ledger.ledger import read_boot_id
from atoll.unreadable import UNREADABLE

TTL = "io.atoll.lease/ttl"
IDLE = "io.atoll.lease/idle"
"""Annotations on a pod: seconds. It has its lease from the commit on that makes it ready."""
SHORTEST_S = 0.1
LONGEST_S = 10 * 366 * 24 * 3600.0
MAX_ENDED = 256
"""Leases that ran out and are remembered; the oldest go first."""

SCHEMA = Schema(
    component="leases",
    migrations=(
        """
        CREATE TABLE leases (
            pod_id   TEXT PRIMARY KEY,
            ttl_s    REAL NOT NULL,
            idle_s   REAL NOT NULL,
            began    TEXT NOT NULL,
            used     TEXT NOT NULL,
            reason   TEXT NOT NULL,
            ended_ns INTEGER NOT NULL
        ) STRICT;
        """,
    ),
)


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A point in time: seconds of CLOCK_BOOTTIME of one boot, and of the wall clock."""

    boot_id: str
    boot_s: float
    wall_s: float


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Tells moments and how long ago they were."""

    def __init__(
        self,
        boot_id: str | None = None,
        boottime: Callable[[], float] = _boottime,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._boot_id = boot_id if boot_id is not None else read_boot_id()
        self._boottime = boottime
        self._wall = wall

    def now(self) -> Moment:
        return Moment(boot_id=self._boot_id, boot_s=self._boottime(), wall_s=self._wall())

    def since(self, moment: Moment) -> float:
        """Seconds from `moment` until now, never negative."""
        if moment.boot_id == self._boot_id:
            return max(0.0, self._boottime() - moment.boot_s)
        return max(0.0, self._wall() - moment.wall_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """How long one pod may live. Times to live are in seconds, 0 for none; `reason` says why it ran out."""

    pod_id: str
    ttl_s: float
    idle_s: float
    began: Moment
    used: Moment
    reason: str = ""
    ended_ns: int = 0


def checked(value: float, what: str) -> float:
    """A time to live in seconds, 0 for none; raises `InvalidArgument`."""
    if value == 0:
        return 0.0
    if not SHORTEST_S <= value <= LONGEST_S:
        raise errors.InvalidArgument(f"{what} {value:g}: must be 0 for none, or {SHORTEST_S:g} to {LONGEST_S:g} s")
    return float(value)


def asked_lease(annotations: Mapping[str, str]) -> tuple[float, float] | None:
    """The times to live that a pod's annotations ask for, absolute and idle; None for neither.

    Raises `InvalidArgument` for what is no number of seconds.
    """
    found: list[float] = []
    for name in (TTL, IDLE):
        text = annotations.get(name, "0")
        try:
            value = float(text)
        except ValueError:
            raise errors.InvalidArgument(f"annotation {name}: {text[:40]!r} is no number of seconds") from None
        found.append(checked(value, f"annotation {name}"))
    return (found[0], found[1]) if any(found) else None


class LeaseStore:
    """Every lease; lookups answer from memory. Made by `open`."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self.clock = clock
        self._leases: dict[str, Lease] = {}
        self._taps: list[Callable[[Lease], None]] = []

    @classmethod
    async def open(cls, db: Database, clock: Clock | None = None) -> LeaseStore:
        """Read every lease; one that cannot be read goes to quarantine, and its pod has none."""
        store = cls(db, clock or Clock())
        for lease in await db.write(_load):
            store._leases[lease.pod_id] = lease
        return store

    def tap(self, told: Callable[[Lease], None]) -> None:
        """Have `told` called with every lease that is made or changed, once it is durable."""
        self._taps.append(told)

    def find(self, pod_id: str) -> Lease | None:
        return self._leases.get(pod_id)

    def list(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def plan_begin(self, pod_id: str, ttl_s: float, idle_s: float) -> Plan[Lease]:
        """Give a pod a lease from now on, in the place of one it has, as a part of a transaction."""
        now = self.clock.now()
        return self.plan_put(Lease(pod_id=pod_id, ttl_s=ttl_s, idle_s=idle_s, began=now, used=now))

    def plan_put(self, lease: Lease) -> Plan[Lease]:
        return Plan(functools.partial(_put, lease=lease), self._keep)

    async def put(self, lease: Lease) -> None:
        """`plan_put` by itself; durable when it returns."""
        await self._db.commit(self.plan_put(lease))

    async def note_use(self, pod_id: str, used: Moment) -> None:
        """Write down that the pod was used then; nothing where it has no lease that runs."""
        lease = self._leases.get(pod_id)
        if lease is not None and not lease.reason:
            self._leases[pod_id] = replace(lease, used=used)
            await self._db.write(functools.partial(_note_use, pod_id=pod_id, used=used))

    async def drop(self, *pod_ids: str) -> None:
        """Forget leases. Idempotent."""
        for pod_id in pod_ids:
            self._leases.pop(pod_id, None)
        await self._db.write(functools.partial(_drop, pod_ids=pod_ids))

    async def forget_oldest(self) -> None:
        """Keep no more than `MAX_ENDED` leases that ran out."""
        ended = sorted((one for one in self._leases.values() if one.reason), key=lambda one: one.ended_ns)
        if len(ended) > MAX_ENDED:
            await self.drop(*(one.pod_id for one in ended[:-MAX_ENDED]))

    def _keep(self, lease: Lease) -> None:
        self._leases[lease.pod_id] = lease
        for told in self._taps:
            told(lease)


def _put(connection: Connection, *, lease: Lease) -> Lease:
    connection.execute(
        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            lease.pod_id,
            lease.ttl_s,
            lease.idle_s,
            msgspec.json.encode(lease.began).decode(),
            msgspec.json.encode(lease.used).decode(),
            lease.reason,
            lease.ended_ns,
        ),
    )
    return lease


def _note_use(connection: Connection, *, pod_id: str, used: Moment) -> None:
    connection.execute(
        "UPDATE leases SET used = ? WHERE pod_id = ? AND reason = ''",
        (msgspec.json.encode(used).decode(), pod_id),
    )


def _drop(connection: Connection, *, pod_ids: tuple[str, ...]) -> None:
    connection.executemany("DELETE FROM leases WHERE pod_id = ?", [(one,) for one in pod_ids])


def _load(connection: Connection) -> list[Lease]:
    leases: list[Lease] = []
    for row in connection.execute("SELECT *, rowid FROM leases").fetchall():
        try:
            leases.append(_read(row))
        except UNREADABLE as error:
            quarantine(connection, "leases", legible_key(row["pod_id"]), row, str(error))
            connection.execute("DELETE FROM leases WHERE rowid = ?", (row["rowid"],))
    return leases


def _read(row: sqlite3.Row) -> Lease:
    return Lease(
        pod_id=msgspec.convert(row["pod_id"], str),
        ttl_s=msgspec.convert(row["ttl_s"], float),
        idle_s=msgspec.convert(row["idle_s"], float),
        began=msgspec.json.decode(row["began"], type=Moment),
        used=msgspec.json.decode(row["used"], type=Moment),
        reason=msgspec.convert(row["reason"], str),
        ended_ns=msgspec.convert(row["ended_ns"], int),
    )
