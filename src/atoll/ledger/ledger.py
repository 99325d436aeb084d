"""`Ledger`: enter before acquiring, strike after releasing; the walk does the rest.

    entries = await ledger.enter(Intent(owner=id, kind="netns", key=id))
    await netns.acquire(...)
    ...
    debts = await ledger.release_all(id, within=30.0)

A crash between any two of these lines leaves an entry, never a resource without one; `recover` and
the next walk find it. A debt is retried in the background after 1 s, 2 s, 4 s, ... 5 min, for ever;
where there are no debts nothing wakes up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from weakref import WeakValueDictionary

from atoll import errors
from atoll.concurrency import TaskOwner, run_to_completion, wait_all
from atoll.database import Database, Plan, Quarantined
from atoll.identifiers import require_identifier
from atoll.ledger import records
from atoll.ledger.kind import Debt, Entry, Intent, Kind
from atoll.ledger.walk import Walk

log = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 300.0
RETRY_LIMIT_S = 60.0
"""How long one round of retries of one owner may take."""

COMMIT_LIMIT_S = 10.0
"""How long the record of a walk may take, beyond the time of the walk."""

PARALLEL_RETRIES = 4
"""Owners whose debts are retried at the same time."""


class Ledger:
    """The ledger of one daemon; made by `open`. Its retries run as tasks of `owner`."""

    def __init__(
        self, db: Database, kinds: Mapping[str, Kind], owner: TaskOwner, boot_id: str, first_retry_s: float
    ) -> None:
        self._db = db
        self._kinds = MappingProxyType(dict(kinds))
        self._owner = owner
        self._boot_id = boot_id
        self._first_retry_s = first_retry_s
        self._seq = itertools.count(1)
        self._entries: dict[int, Entry] = {}
        self._by_owner: dict[str, dict[int, Entry]] = {}
        self._seqs: dict[tuple[str, str], int] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._in_debt = asyncio.Event()
        self._retrying = False
        self._quarantined: tuple[Quarantined, ...] = ()

    @classmethod
    async def open(
        cls,
        db: Database,
        kinds: Mapping[str, Kind],
        owner: TaskOwner,
        *,
        boot_id: str | None = None,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> Ledger:
        """Load every entry; release nothing yet (see `recover`). `boot_id` is the kernel's unless given."""
        ledger = cls(db, kinds, owner, boot_id if boot_id is not None else read_boot_id(), first_retry_s)
        entries, ledger._quarantined = await db.write(records.load)
        for entry in entries:
            ledger._keep(entry)
        ledger._seq = itertools.count(max((entry.seq for entry in entries), default=0) + 1)
        return ledger

    @property
    def kinds(self) -> Mapping[str, Kind]:
        return self._kinds

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Entries that could not be read, of this start and earlier ones."""
        return self._quarantined

    def entries(self, owner: str | None = None) -> tuple[Entry, ...]:
        """The entries, of one owner or all, in the order of entering; from memory."""
        source = self._entries if owner is None else self._by_owner.get(owner, {})
        return tuple(sorted(source.values(), key=lambda entry: entry.seq))

    def find(self, kind: str, key: str) -> Entry | None:
        """The entry of one resource."""
        seq = self._seqs.get((kind, key))
        return None if seq is None else self._entries[seq]

    def owners(self) -> frozenset[str]:
        """Everybody who has entries."""
        return frozenset(self._by_owner)

    def debts(self, owner: str | None = None) -> tuple[Debt, ...]:
        """What could not be released yet, of one owner or all."""
        return tuple(Debt(entry=entry) for entry in self.entries(owner) if entry.is_debt)

    async def enter(self, *intents: Intent) -> list[Entry]:
        """Write `intents` down in one commit, in this order; durable when it returns: acquire now.

        All or none. `AlreadyExists` where a resource is in the ledger: by another owner, or because
        its release is still owed; the message says which. `InvalidArgument` for a bad owner or an
        unknown kind.
        """
        return await self._db.commit(self.plan_enter(*intents))

    def plan_enter(self, *intents: Intent) -> Plan[list[Entry]]:
        """`enter` as a part of a transaction."""
        entries = [self._entry(intent) for intent in intents]
        return Plan(functools.partial(_insert, entries), self._keep_all)

    async def strike(self, *entries: Entry) -> None:
        """Cross out what the caller has released itself, in one commit. Idempotent."""
        await self._db.commit(self.plan_strike(*entries))

    def plan_strike(self, *entries: Entry) -> Plan[None]:
        """`strike` as a part of a transaction."""
        return Plan(lambda connection: records.delete(connection, entries), lambda _: self._drop_all(entries))

    async def update(self, entry: Entry, data: Mapping[str, str]) -> Entry:
        """Replace what an entry says of its resource; `NotFound` where it is struck."""
        return await self._db.commit(self.plan_update(entry, data))

    def plan_update(self, entry: Entry, data: Mapping[str, str]) -> Plan[Entry]:
        """`update` as a part of a transaction."""
        if (current := self._entries.get(entry.seq)) is None:
            raise errors.NotFound(f"{entry.kind} {entry.key}: is not in the ledger")
        changed = dataclasses.replace(current, data=MappingProxyType(dict(data)))
        return Plan(functools.partial(_replace, changed), lambda _: self._renew([changed]))

    async def release_all(self, *owners: str, within: float, also: tuple[Plan[None], ...] = ()) -> list[Debt]:
        """Release everything of `owners`, last entered first; what could not be released, oldest first.

        Bounded by `within` seconds, each release by its kind's limit. A failure becomes a debt and
        the walk goes on, save for kinds that come `after` the failed one. One commit at the end,
        shared by `also`, such as the removal of the owner's record: it goes although debts stay.
        Finishes even if the caller is cancelled. An owner without entries is fine.
        """
        return await self._released(owners, None, within, also)

    async def release(self, *entries: Entry, within: float) -> list[Debt]:
        """`release_all` for some entries; those of each owner take up to `within` seconds."""
        debts: list[Debt] = []
        for owner in dict.fromkeys(entry.owner for entry in entries):
            chosen = frozenset(entry.seq for entry in entries if entry.owner == owner)
            debts += await self._released((owner,), chosen, within)
        return debts

    async def recover(self, known_owners: Collection[str]) -> tuple[Entry, ...]:
        """Take up the ledger of an earlier run; those struck because a reboot had taken them.

        Entries of owners not in `known_owners` (a start or removal that a crash cut short) become
        debts, due now, and the background retries begin.
        """
        gone = tuple(entry for entry in self._entries.values() if self._is_gone(entry))
        lost = [
            self._owed(entry, "its owner has no record")
            for entry in self._entries.values()
            if entry not in gone and entry.owner not in known_owners and not entry.is_debt
        ]
        await self._record(gone, lost)
        now = datetime.now(UTC)
        self._renew([dataclasses.replace(debt.entry, next_try=now) for debt in self.debts()])
        self._start_retries()
        return gone

    async def retry(self, *owners: str, within: float = RETRY_LIMIT_S) -> list[Debt]:
        """Try to pay the debts of `owners`, or all, now and not when they are due; what is still owed."""
        for owner in owners or tuple(dict.fromkeys(debt.entry.owner for debt in self.debts())):
            owed = frozenset(debt.entry.seq for debt in self.debts(owner))
            await self._released((owner,), owed, within)
        return [debt for debt in self.debts() if not owners or debt.entry.owner in owners]

    def _entry(self, intent: Intent) -> Entry:
        require_identifier(intent.owner, "ledger owner")
        if intent.kind not in self._kinds:
            raise errors.InvalidArgument(f"ledger kind {intent.kind!r}: there is no such kind")
        if not intent.key:
            raise errors.InvalidArgument(f"ledger entry of kind {intent.kind}: its key must not be empty")
        if (held := self.find(intent.kind, intent.key)) is not None:
            state = f"its release is still owed: {held.last_error}" if held.is_debt else "it is in use"
            raise errors.AlreadyExists(f"{intent.kind} {intent.key}: belongs to {held.owner}, {state}")
        return Entry(
            seq=next(self._seq),
            owner=intent.owner,
            kind=intent.kind,
            key=intent.key,
            data=MappingProxyType(dict(intent.data)),
            entered_at=datetime.now(UTC),
            boot_id=self._boot_id,
        )

    def _is_gone(self, entry: Entry) -> bool:
        kind = self._kinds.get(entry.kind)
        return kind is not None and kind.volatile and entry.boot_id != self._boot_id

    async def _released(
        self, owners: tuple[str, ...], chosen: frozenset[int] | None, within: float, also: tuple[Plan[None], ...] = ()
    ) -> list[Debt]:
        """The walk, shielded; nothing to do costs no task."""
        if self._by_owner.keys().isdisjoint(owners) and not also:
            return []
        return await run_to_completion(self._walk(owners, chosen, within, also), within=within + COMMIT_LIMIT_S)

    async def _walk(
        self, owners: tuple[str, ...], chosen: frozenset[int] | None, within: float, also: tuple[Plan[None], ...]
    ) -> list[Debt]:
        deadline = asyncio.get_running_loop().time() + within
        async with AsyncExitStack() as stack:
            for owner in owners:
                if not await self._enter_lock(stack, owner, deadline - asyncio.get_running_loop().time()):
                    raise errors.DeadlineExceeded(
                        f"sandbox {owner}: its resources are being released, for {within:g} s now"
                    )
            walk = Walk(
                self._kinds,
                reversed(self._chosen(owners, chosen)),
                debts=[debt.entry for owner in owners for debt in self.debts(owner)],
                is_gone=self._is_gone,
                deadline=deadline,
            )
            await walk.run()
            owed = sorted((self._owed(entry, why) for entry, why in walk.owed), key=lambda entry: entry.seq)
            await self._record(walk.released, owed[::-1], also)
        return [Debt(entry=entry) for entry in owed]

    async def _enter_lock(self, stack: AsyncExitStack, owner: str, within: float) -> bool:
        """One walk an owner at a time; False where another took all of the time."""
        lock = self._locks.setdefault(owner, asyncio.Lock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await stack.enter_async_context(lock)
                return True
        return False

    def _chosen(self, owners: tuple[str, ...], chosen: frozenset[int] | None) -> list[Entry]:
        entries = [entry for owner in owners for entry in self.entries(owner) if chosen is None or entry.seq in chosen]
        return sorted(entries, key=lambda entry: entry.seq)

    def _owed(self, entry: Entry, why: str) -> Entry:
        pause = min(self._first_retry_s * 2.0 ** min(entry.attempts, 16), LAST_RETRY_S)
        entry = self._entries.get(entry.seq, entry)
        return dataclasses.replace(
            entry,
            attempts=entry.attempts + 1,
            last_error=why,
            next_try=datetime.now(UTC) + timedelta(seconds=pause),
        )

    async def _record(self, released: Iterable[Entry], owed: list[Entry], also: tuple[Plan[None], ...] = ()) -> None:
        """Write the outcome of a walk down, in one commit.

        Where the disk refuses, memory holds all of it as debts: released again, which is harmless,
        and struck when the disk works again.
        """
        released = tuple(released)
        if not released and not owed and not also:
            return
        outcome = Plan(functools.partial(_settle, released, owed), lambda _: self._settled(released, owed))
        last = [change for entry in released if (change := self._kinds[entry.kind].last_change(entry)) is not None]
        try:
            await self._db.commit(outcome, *last, *also)
        except errors.AtollError as error:
            unstruck = [self._owed(entry, f"is released but still in the ledger: {error}") for entry in released]
            self._renew([*owed, *unstruck])
            self._start_retries()
            raise

    def _settled(self, released: tuple[Entry, ...], owed: list[Entry]) -> None:
        self._drop_all(released)
        self._renew(owed)
        if owed:
            self._start_retries()

    def _keep(self, entry: Entry) -> None:
        self._entries[entry.seq] = entry
        self._by_owner.setdefault(entry.owner, {})[entry.seq] = entry
        self._seqs[entry.kind, entry.key] = entry.seq

    def _keep_all(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._keep(entry)

    def _renew(self, entries: Iterable[Entry]) -> None:
        self._keep_all([entry for entry in entries if entry.seq in self._entries])

    def _drop_all(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if self._entries.pop(entry.seq, None) is None:
                continue
            del self._seqs[entry.kind, entry.key]
            remaining = self._by_owner[entry.owner]
            del remaining[entry.seq]
            if not remaining:
                del self._by_owner[entry.owner]

    def _start_retries(self) -> None:
        """Wake the retries; the task lives only while there are debts."""
        self._in_debt.set()
        if not self._retrying and self.debts():
            with contextlib.suppress(errors.Unavailable):  # the daemon is closing: the next start takes the debts up
                self._owner.spawn(self._retries(), name="ledger/retries")
                self._retrying = True

    async def _retries(self) -> None:
        try:
            while debts := self.debts():
                self._in_debt.clear()
                now = datetime.now(UTC)
                due = {debt.entry.owner for debt in debts if _is_due(debt.entry, now)}
                if due:
                    await self._pay(sorted(due), now)
                    continue
                first = min(debt.entry.next_try or now for debt in debts)
                pause = min(max((first - now).total_seconds(), 0.0), LAST_RETRY_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._in_debt.wait()
        finally:
            self._retrying = False

    async def _pay(self, owners: list[str], now: datetime) -> None:
        gate = asyncio.Semaphore(PARALLEL_RETRIES)

        async def pay(owner: str) -> None:
            due = frozenset(debt.entry.seq for debt in self.debts(owner) if _is_due(debt.entry, now))
            async with gate:
                try:
                    left = await self._released((owner,), due, RETRY_LIMIT_S)
                except errors.AtollError as error:
                    log.warning("sandbox %s: retried releases could not be recorded: %s", owner, error)
                    return
            for debt in left:
                log.warning("sandbox %s: still not released (%d tries): %s", owner, debt.entry.attempts, debt)

        await wait_all([pay(owner) for owner in owners])


def _is_due(entry: Entry, now: datetime) -> bool:
    """Whether a debt is to be tried now; one due later than any can be was noted before the clock was set back."""
    return entry.next_try is None or not now < entry.next_try <= now + timedelta(seconds=LAST_RETRY_S)


def read_boot_id() -> str:
    """The kernel's name for this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _insert(entries: list[Entry], connection: records.Connection) -> list[Entry]:
    records.insert(connection, entries)
    return entries


def _replace(entry: Entry, connection: records.Connection) -> Entry:
    records.replace(connection, [entry])
    return entry


def _settle(released: tuple[Entry, ...], owed: list[Entry], connection: records.Connection) -> None:
    records.delete(connection, released)
    records.replace(connection, owed)
