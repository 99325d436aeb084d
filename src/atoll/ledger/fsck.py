"""Where the ledger and the machine disagree, and how that is mended.

    owed       an entry whose release failed
    unowned    an entry whose owner has no record
    vanished   an entry whose resource is gone
    stray      a resource of ours without an entry
    unknown    an entry of a kind this Atoll does not have
    unseen     a kind that could not be looked at
    unfinished a record that was never ready, of what a crash cut short
    damaged    a record that could not be read, and is kept aside with all that is its own
    unheld     an address leased from a shared folder that nobody on this host has

`plan` only looks; `repair` mends by the same walk that every removal takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from atoll import errors
from atoll.concurrency import settle, wait_all
from atoll.database import Quarantined
from atoll.ledger.kind import Entry, Found, Intent, Kind
from atoll.ledger.ledger import Ledger

SCAN_LIMIT_S = 30.0
EXISTS_LIMIT_S = 5.0
REPAIR_LIMIT_S = 60.0
"""For one owner."""


class Problem(StrEnum):
    OWED = "owed"
    UNOWNED = "unowned"
    VANISHED = "vanished"
    STRAY = "stray"
    UNKNOWN = "unknown"
    UNSEEN = "unseen"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"
    UNHELD = "unheld"


_NOT_MENDED = (Problem.UNKNOWN, Problem.UNSEEN, Problem.UNFINISHED, Problem.DAMAGED, Problem.UNHELD)
"""What `repair` leaves to somebody who knows better; UNFINISHED to whoever keeps the record."""

_REMEDIES = {
    Problem.OWED: "try its release again",
    Problem.UNOWNED: "release it",
    Problem.VANISHED: "finish its release and strike it off the ledger",
    Problem.STRAY: "enter it in the ledger and release it",
    Problem.UNKNOWN: "run the atoll that entered it, or release it by hand",
    Problem.UNSEEN: "see the reason, then run fsck again",
    Problem.UNFINISHED: "free what is left of it, then its record and its name",
    Problem.DAMAGED: "mend the row in the database's table `quarantine`, or delete it there; then restart the daemon",
    Problem.UNHELD: "remove the file, where no other runtime has given it away",
}


CHECKPOINT = "checkpoint"
"""The source of damaged status files; their container is there, and they are kept beside its new one."""
_CHECKPOINT_REMEDY = "look at the file that is kept; removing the container, which is there, ends this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One disagreement. `detail` says what was seen, `remedy` what `repair` does about it."""

    problem: Problem
    kind: str
    key: str
    owner: str
    detail: str = ""
    remedy: str = ""
    entry: Entry | None = field(default=None, repr=False)
    found: Found | None = field(default=None, repr=False)

    def __str__(self) -> str:
        owner = f" of {self.owner}" if self.owner else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.problem}: {self.kind} {self.key}{owner}{detail}: {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one look found, in the order of the ledger, strays last."""

    findings: tuple[Finding, ...] = ()

    @property
    def clean(self) -> bool:
        return not self.findings

    def render(self) -> str:
        """A line a finding."""
        return "\n".join(str(finding) for finding in self.findings) or "nothing is left behind"

    def to_json(self) -> bytes:
        """A list of objects: problem, kind, key, owner, detail, remedy."""
        shown = ("problem", "kind", "key", "owner", "detail", "remedy")
        return msgspec.json.encode([{name: str(getattr(finding, name)) for name in shown} for finding in self.findings])


async def plan(
    ledger: Ledger, known_owners: Callable[[], Collection[str]], *, busy: Callable[[str], bool] = lambda _: False
) -> Findings:
    """Compare the ledger with its owners' records and with the machine, in both directions.

    `known_owners` gives the owners that have a record or are being made, `busy` tells those with an
    operation under way: their entries and resources change while we look, and are passed over. What
    differs is looked at a second time and reported only if it still does. Changes nothing.
    """
    first = await _look(ledger, known_owners, busy)
    if first.clean:
        return first
    second = await _look(ledger, known_owners, busy)
    seen = {_identity(finding) for finding in first.findings}
    return Findings(findings=tuple(finding for finding in second.findings if _identity(finding) in seen))


def damaged(records: Iterable[Quarantined]) -> tuple[Finding, ...]:
    """A finding for each record in quarantine."""
    found = (
        disagreement(Problem.DAMAGED, one.source, one.key, one.key.rpartition("/")[2], one.reason) for one in records
    )
    return tuple(
        dataclasses.replace(one, remedy=_CHECKPOINT_REMEDY) if one.kind == CHECKPOINT else one for one in found
    )


async def repair(ledger: Ledger, findings: Findings) -> Findings:
    """Do each finding's remedy; what could not be mended, with the reason as its `detail`.

    What was mended or has gone since `plan` looked is not touched again.
    """
    left = [finding for finding in findings.findings if finding.problem in _NOT_MENDED]
    work = [finding for finding in findings.findings if finding.problem not in _NOT_MENDED]
    entered: list[tuple[Finding, Entry]] = []
    for finding in work:
        try:
            entry = await _entry_of(ledger, finding)
        except errors.AtollError as error:
            left.append(dataclasses.replace(finding, detail=error.message))
            continue
        if entry is not None:
            entered.append((finding, entry))
    await ledger.release(*(entry for _, entry in entered), within=REPAIR_LIMIT_S)
    for finding, entry in entered:
        remaining = ledger.find(entry.kind, entry.key)
        if remaining is not None and remaining.seq == entry.seq:
            left.append(dataclasses.replace(finding, detail=remaining.last_error))
    return Findings(findings=tuple(left))


async def _entry_of(ledger: Ledger, finding: Finding) -> Entry | None:
    """The entry to walk; None where somebody has dealt with it meanwhile."""
    current = ledger.find(finding.kind, finding.key)
    if finding.found is None:
        return (
            current if current is not None and finding.entry is not None and current.seq == finding.entry.seq else None
        )
    if current is not None:
        return None
    found = finding.found
    owner = found.owner or "fsck"
    return (await ledger.enter(Intent(owner=owner, kind=found.kind, key=found.key, data=found.data)))[0]


async def _look(ledger: Ledger, known_owners: Callable[[], Collection[str]], busy: Callable[[str], bool]) -> Findings:
    """One look. The machine is scanned before the ledger is read: what is acquired meanwhile has an entry."""
    scans = await wait_all([_scan(kind) for kind in ledger.kinds.values()])
    findings: list[Finding] = []
    owners = known_owners()
    entries = [entry for entry in ledger.entries() if not busy(entry.owner)]
    findings += [found for found in await wait_all([_check(ledger, entry, owners) for entry in entries]) if found]
    for seen, unseen in scans:
        if unseen is not None:
            findings.append(unseen)
        findings += _strays(ledger, seen, busy)
    return Findings(findings=tuple(findings))


async def _scan(kind: Kind) -> tuple[list[Found], Finding | None]:
    seen = await settle(kind.scan(), within=SCAN_LIMIT_S, name=f"fsck/scan/{kind.name}")
    if isinstance(seen, BaseException):
        return [], disagreement(Problem.UNSEEN, kind.name, "*", "", str(seen))
    return seen, None


def _strays(ledger: Ledger, seen: Iterable[Found], busy: Callable[[str], bool]) -> list[Finding]:
    return [
        dataclasses.replace(disagreement(Problem.STRAY, found.kind, found.key, found.owner), found=found)
        for found in seen
        if ledger.find(found.kind, found.key) is None and not (found.owner and busy(found.owner))
    ]


async def _check(ledger: Ledger, entry: Entry, owners: Collection[str]) -> Finding | None:
    kind = ledger.kinds.get(entry.kind)
    if kind is None:
        problem, detail = Problem.UNKNOWN, ""
    elif entry.is_debt:
        problem, detail = Problem.OWED, f"{entry.attempts} tries: {entry.last_error}"
    elif entry.owner not in owners:
        problem, detail = Problem.UNOWNED, ""
    else:
        there = await settle(kind.exists(entry), within=EXISTS_LIMIT_S, name=f"fsck/exists/{entry.kind}")
        if there is True:
            return None
        if there is False:
            problem, detail = Problem.VANISHED, ""
        else:
            problem, detail = Problem.UNSEEN, str(there)
    return dataclasses.replace(disagreement(problem, entry.kind, entry.key, entry.owner, detail), entry=entry)


def disagreement(problem: Problem, kind: str, key: str, owner: str, detail: str = "") -> Finding:
    """A finding with the remedy of its problem."""
    return Finding(problem=problem, kind=kind, key=key, owner=owner, detail=detail, remedy=_REMEDIES[problem])


def _identity(finding: Finding) -> tuple[Problem, str, str, int]:
    return finding.problem, finding.kind, finding.key, finding.entry.seq if finding.entry is not None else 0
