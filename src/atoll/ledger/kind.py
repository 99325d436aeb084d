"""The words of the ledger: `Entry`, `Kind`, `BlockingKind`, `Found`, `Intent`, `Debt`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from atoll.concurrency import Blocking
from atoll.database import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A resource about to be acquired.

    `key` names it, unique in its kind and derived from the owner's ID; `data` is what else its
    release needs.
    """

    owner: str
    kind: str
    key: str
    data: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger. `attempts` counts failed releases: with one, the entry is a debt."""

    seq: int
    owner: str
    kind: str
    key: str
    data: Mapping[str, str]
    entered_at: datetime
    boot_id: str
    attempts: int = 0
    last_error: str = ""
    next_try: datetime | None = None

    @property
    def is_debt(self) -> bool:
        return self.attempts > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Debt:
    """An entry that could not be released; as text it names the resource and the reason."""

    entry: Entry

    def __str__(self) -> str:
        return f"{self.entry.kind} {self.entry.key}: {self.entry.last_error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A resource seen on the machine that carries this daemon's mark; `owner` is empty where it does not tell."""

    kind: str
    key: str
    owner: str = ""
    data: Mapping[str, str] = field(default_factory=dict[str, str])


class Kind(ABC):
    """How one sort of resource is released, looked for, and found again.

    Each implementation also has an idempotent `acquire` of its own form, called between
    `Ledger.enter` and the first use.
    """

    name: ClassVar[str] | str
    limit_s: float = 10.0
    """How long one release may take."""

    volatile: bool = False
    """Whether a reboot takes the resource away by itself, so that nothing is left to release."""

    after: frozenset[str] = frozenset()
    """Kinds of the same owner that must be released first.

    While one of these is owed, or has just failed in the same walk, this one is not tried and is owed
    too. What is in use holds nothing up.
    """

    @abstractmethod
    async def release(self, entry: Entry) -> None:
        """Free the resource; idempotent, and nothing to free is success. May be cancelled at its limit."""

    def last_change(self, entry: Entry) -> Plan[None] | None:
        """What of the release is a change of the database: committed with the end of the entry, after `release`.

        None where there is none. What of the resource goes only after that goes in the plan's `committed`.
        """
        return None

    @abstractmethod
    async def exists(self, entry: Entry) -> bool:
        """Whether the resource is there now."""

    @abstractmethod
    async def scan(self) -> list[Found]:
        """Every resource of this kind on the machine that is certainly this daemon's; never another's."""


class BlockingKind(Kind):
    """A kind whose release is a few blocking calls: the walk frees several of its entries in one turn of a thread."""

    def __init__(self, blocking: Blocking) -> None:
        self.blocking = blocking

    @abstractmethod
    def free(self, entry: Entry) -> bool:
        """Free the resource, in a thread; idempotent. False where that takes more than blocking calls: see `finish`."""

    def is_absent(self, entry: Entry) -> bool:
        """Whether it is known at once, without waiting for a disk, that nothing is there: no thread is asked then."""
        return False

    async def finish(self, entry: Entry) -> None:
        """Free what `free` did not."""

    async def release(self, entry: Entry) -> None:
        if not await self.blocking.run(self.free, entry):
            await self.finish(entry)
