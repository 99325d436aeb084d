"""A small world of resources for the ledger's tests: a set of names, and kinds that fail on cue."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.database import Database
from atoll.ledger.kind import Entry, Found, Kind
from atoll.ledger.ledger import Ledger
from atoll.ledger.records import SCHEMA


class World:
    """What is there, as (kind, key), and the log of releases."""

    def __init__(self) -> None:
        self.there: set[tuple[str, str]] = set()
        self.log: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.recovers_after: dict[str, int] = {}
        self.hanging: set[str] = set()
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()

    def acquire(self, entry: Entry) -> None:
        self.there.add((entry.kind, entry.key))


class Thing(Kind):
    """A kind of the small world."""

    def __init__(
        self,
        name: str,
        world: World,
        *,
        volatile: bool = False,
        after: frozenset[str] = frozenset(),
        limit_s: float = 9,
    ) -> None:
        self.name = name
        self.volatile = volatile
        self.after = after
        self.limit_s = limit_s
        self._world = world

    async def release(self, entry: Entry) -> None:
        self._world.log.append(f"{self.name} {entry.key}")
        if self.name in self._world.hanging:
            self._world.entered.set()
            await self._world.go_on.wait()
        if (error := self._world.failing.get(self.name)) is not None:
            if self._world.log.count(f"{self.name} {entry.key}") >= self._world.recovers_after.get(self.name, 10**9):
                del self._world.failing[self.name]
            raise error
        self._world.there.discard((self.name, entry.key))

    async def exists(self, entry: Entry) -> bool:
        return (self.name, entry.key) in self._world.there

    async def scan(self) -> list[Found]:
        if (error := self._world.failing.get(f"scan {self.name}")) is not None:
            raise error
        return [
            Found(kind=kind, key=key, owner=key.partition("-")[0])
            for kind, key in sorted(self._world.there)
            if kind == self.name
        ]


def kinds(world: World, **more: Thing) -> Mapping[str, Kind]:
    """netns (volatile), shim, and cgroup, which comes after shim."""
    return {
        "netns": Thing("netns", world, volatile=True),
        "shim": Thing("shim", world),
        "cgroup": Thing("cgroup", world, after=frozenset({"shim"})),
        **more,
    }


BUSY = errors.Unavailable("device or resource busy")


class Run:
    """One run of a daemon over a state file: the database, the owner of its tasks, the ledger."""

    def __init__(self, db: Database, owner: TaskOwner, ledger: Ledger) -> None:
        self.db = db
        self.owner = owner
        self.ledger = ledger

    @classmethod
    async def begin(
        cls, path: Path, kinds: Mapping[str, Kind], *, boot_id: str = "boot-1", first_retry_s: float = 3600
    ) -> Run:
        db = await Database.open(path, (SCHEMA,))
        owner = TaskOwner("ledger")
        return cls(db, owner, await Ledger.open(db, kinds, owner, boot_id=boot_id, first_retry_s=first_retry_s))

    async def quiet(self) -> None:
        """Wait until no background task is left; without debts there is none."""
        if self.owner._tasks:
            await asyncio.wait(self.owner._tasks, timeout=30)
        assert not self.owner._tasks

    async def end(self) -> None:
        await self.owner.aclose()
        await self.db.close()
