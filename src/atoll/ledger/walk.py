"""One walk over entries of an owner, or of several: each is released or owed, and a failure stops none of the others.

Entries that follow each other and that a thread can free go to one thread together, in their order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from atoll import errors, faults
from atoll.concurrency import settle
from atoll.ledger.kind import BlockingKind, Entry, Kind

log = logging.getLogger(__name__)


class Walk:
    """The walk over `order`, which ends at `deadline` of the loop's clock.

    `debts` are what its owners owed before it; `is_gone` says that a reboot has taken what an entry stands for.
    """

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        order: Iterable[Entry],
        *,
        debts: Iterable[Entry],
        is_gone: Callable[[Entry], bool],
        deadline: float,
    ) -> None:
        self._kinds = kinds
        self._order = list(order)
        self._debts = list(debts)
        self._is_gone = is_gone
        self._deadline = deadline
        self.released: list[Entry] = []
        self.owed: list[tuple[Entry, str]] = []
        """What could not be released, and why."""

    async def run(self) -> None:
        """Every entry has its turn; what waits for a debt that this very walk pays has a second one behind it."""
        waiting = await self._turn(self._order, is_last=False)
        await self._turn(waiting, is_last=True)

    async def _turn(self, entries: list[Entry], *, is_last: bool) -> list[Entry]:
        waiting: list[Entry] = []
        group: list[Entry] = []
        for entry in entries:
            if group and not self._go_together(group[-1], entry):
                await self._release(group)
                group = []
            blocked = self._blocked_by(entry)
            if not blocked:
                group.append(entry)
            elif is_last or entry.kind not in self._kinds:
                self.owed.append((entry, blocked))
            else:
                waiting.append(entry)
        await self._release(group)
        return waiting

    def _go_together(self, one: Entry, other: Entry) -> bool:
        """Whether a thread can free both, and the second does not depend on how the first goes."""
        first, second = self._kinds.get(one.kind), self._kinds.get(other.kind)
        if not isinstance(first, BlockingKind) or not isinstance(second, BlockingKind) or second.after:
            return False
        return first.blocking is second.blocking

    def _blocked_by(self, entry: Entry) -> str:
        """Why this entry's turn has not come: something it comes after could not be released."""
        kind = self._kinds.get(entry.kind)
        if kind is None:
            return f"this atoll has no kind {entry.kind!r}"
        if kind.after:
            done = {one.seq for one in self.released} | {entry.seq}
            for other in (*(one for one, _ in self.owed), *self._debts):
                if other.owner == entry.owner and other.kind in kind.after and other.seq not in done:
                    return f"waits for {other.kind} {other.key}"
        return ""

    async def _release(self, group: list[Entry]) -> None:
        """Release entries that go together."""
        rest: list[Entry] = []
        for entry in group:
            if self._is_gone(entry):
                self.released.append(entry)
            elif self._is_absent(entry):
                self._note(entry, _passed(entry))
            else:
                rest.append(entry)
        while rest:
            done = await self._free(rest)
            if done < len(rest):  # of a kind that is awaited, or more than a thread could do
                entry = rest[done]
                kind = self._kinds[entry.kind]
                self._note(entry, await self._within(_released(kind, entry), kind.limit_s, entry))
                done += 1
            rest = rest[done:]

    def _is_absent(self, entry: Entry) -> bool:
        kind = self._kinds[entry.kind]
        return isinstance(kind, BlockingKind) and kind.is_absent(entry)

    async def _free(self, group: list[Entry]) -> int:
        """Free entries in one thread, as far as that goes; the number of those that have had their turn."""
        pairs = [(kind, entry) for entry in group if isinstance(kind := self._kinds[entry.kind], BlockingKind)]
        if not pairs:
            return 0
        first, work = pairs[0][0], _Freeing(pairs)
        failure = await self._within(first.blocking.run(work.run), max(kind.limit_s for kind, _ in pairs), group[0])
        work.is_given_up = failure is not None
        outcomes = [*work.outcomes]
        if failure is not None:
            outcomes += [failure] * (len(group) - len(outcomes))
        for entry, outcome in zip(group, outcomes, strict=False):
            self._note(entry, outcome)
        return len(outcomes)

    async def _within(self, work: Coroutine[Any, Any, None], limit_s: float, entry: Entry) -> BaseException | None:
        limit = min(limit_s, self._deadline - asyncio.get_running_loop().time())
        if limit <= 0:
            work.close()
            return errors.DeadlineExceeded("the time for clean-up ran out before its turn")
        return await settle(work, within=limit, name=f"sandbox/{entry.owner}/release/{entry.kind}")

    def _note(self, entry: Entry, outcome: BaseException | None) -> None:
        if outcome is None:
            self.released.append(entry)
            return
        if not isinstance(outcome, errors.AtollError | OSError):
            log.error("sandbox %s: release of %s %s failed", entry.owner, entry.kind, entry.key, exc_info=outcome)
        self.owed.append((entry, str(outcome) or type(outcome).__name__))


class _Freeing:
    """What runs in the thread: one entry after the other, up to the first that takes more than that."""

    def __init__(self, pairs: list[tuple[BlockingKind, Entry]]) -> None:
        self._pairs = pairs
        self.outcomes: list[BaseException | None] = []
        """How the first entries went, None for well."""
        self.is_given_up = False
        """Nobody waits any more: no further entry is begun."""

    def run(self) -> None:
        for kind, entry in self._pairs:
            outcome: BaseException | None = None
            try:
                faults.reached(f"release/{entry.kind}")
                if self.is_given_up or not kind.free(entry):
                    return
                faults.reached(f"release/{entry.kind}{faults.DONE}")
            except Exception as error:  # noqa: BLE001  # settled into the outcome: the walk goes on
                outcome = error
            self.outcomes.append(outcome)


def _passed(entry: Entry) -> BaseException | None:
    """The points of a release where there is nothing to do."""
    try:
        faults.reached(f"release/{entry.kind}")
        faults.reached(f"release/{entry.kind}{faults.DONE}")
    except errors.AtollError as error:
        return error
    return None


async def _released(kind: Kind, entry: Entry) -> None:
    faults.reached(f"release/{entry.kind}")
    await kind.release(entry)
    faults.reached(f"release/{entry.kind}{faults.DONE}")
