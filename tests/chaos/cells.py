"""What can go wrong at a point: the cells of the matrix, made from the points that were seen."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from atoll.faults import DONE, Action, Rule
from tests.chaos.points import split

STALL_S = 0.3
UNDOING = ("release/*", "shim undo/*", "sandboxer undo/*", "*/undo")
"""Points of what undoes: an error there is asked for beside one at a step, and is a blow of its own."""


class Blow(StrEnum):
    """What strikes. A kill strikes while the program that reached the point stands still there."""

    ERROR = "error"
    STALL = "stall"
    UNDO = "error, error in its undo"
    DAEMON = "SIGKILL of the daemon"
    SHIM = "SIGKILL of the shim"
    ZYGOTE = "SIGKILL of the zygote"
    REBOOT = "reboot"


KILLS = (Blow.DAEMON, Blow.SHIM, Blow.ZYGOTE, Blow.REBOOT)


@dataclass(frozen=True, slots=True)
class Cell:
    """One point and one blow in a kind of life; an error at `cause` brings the life to the point, where it is told."""

    life: str
    point: str
    blow: Blow
    cause: str = ""

    def __str__(self) -> str:
        behind = f" (behind an error at {self.cause})" if self.cause else ""
        return f"{self.life}: {self.point}{behind}: {self.blow}"

    def rules(self) -> list[Rule]:
        """What the daemon is told to do, in this order; the last of them is the blow, but for an undo's."""
        causes = [Rule(point=self.cause, action=Action.ERROR)] if self.cause else []
        match self.blow:
            case Blow.ERROR:
                blow = [Rule(point=self.point, action=Action.ERROR)]
            case Blow.STALL:
                blow = [Rule(point=self.point, action=Action.STALL, seconds=STALL_S)]
            case Blow.UNDO:
                undo = [Rule(point=undone, action=Action.ERROR) for undone in UNDOING]
                blow = [Rule(point=self.point, action=Action.ERROR), *undo]
            case _:
                blow = [Rule(point=self.point, action=Action.HOLD)]
        return [*causes, *blow]


@dataclass(frozen=True, slots=True)
class Notes:
    """The points that one kind of life reached, behind an error at `cause` where that is told."""

    life: str
    lines: tuple[str, ...]
    again: tuple[str, ...] = ()
    """Patterns of points that are struck here although an earlier life reached them."""
    cause: str = ""


def cells(seen: Iterable[Notes]) -> list[Cell]:
    """The matrix over the points in `seen`, in their order: each in the first life that reaches it."""
    found: list[Cell] = []
    known: set[str] = set()
    for notes in seen:
        here: dict[str, bool] = {}
        for line in notes.lines:
            point, fails, _ = split(line)
            here.setdefault(point, fails)
        for point, fails in here.items():
            if point == notes.cause or (point in known and not _is_again(point, notes.again)):
                continue
            found += [Cell(notes.life, point, blow, notes.cause) for blow in _blows(point, fails=fails)]
        known.update(here)
    return found


def _is_again(point: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(point, pattern) for pattern in patterns)


def _blows(point: str, *, fails: bool) -> list[Blow]:
    blows = [*([Blow.ERROR] if fails else []), Blow.STALL, *KILLS]
    if fails and not _is_again(point.removesuffix(DONE), UNDOING) and not point.endswith(DONE):
        blows.insert(2, Blow.UNDO)
    return blows


def sample(all_cells: Sequence[Cell], count: int) -> list[Cell]:
    """`count` of them, spread over points and blows, the same ones each time."""
    step = max(1, len(all_cells) // count)
    step += step % 7 == 0  # a point has up to 7 blows: not the same one each time
    return list(all_cells[::step][:count])
