"""What can go wrong at a point: the cells of the matrix, made from the points that were seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from atoll.faults import DONE, SURE, Action, Rule

STALL_S = 0.3


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
    """One point and one blow."""

    point: str
    blow: Blow

    def __str__(self) -> str:
        return f"{self.point}: {self.blow}"

    def rules(self) -> list[Rule]:
        """What the daemon is told to do, in this order."""
        match self.blow:
            case Blow.ERROR:
                return [Rule(point=self.point, action=Action.ERROR)]
            case Blow.STALL:
                return [Rule(point=self.point, action=Action.STALL, seconds=STALL_S)]
            case Blow.UNDO:
                undo = [Rule(point=undone, action=Action.ERROR) for undone in ("release/*", "shim undo/*")]
                return [Rule(point=self.point, action=Action.ERROR), *undo]
            case _:
                return [Rule(point=self.point, action=Action.HOLD)]


def cells(notes: Iterable[str]) -> list[Cell]:
    """The matrix over the points in `notes`, which are lines of a program's note of points, in their order."""
    found: list[Cell] = []
    for note in dict.fromkeys(notes):
        point = note.removesuffix(SURE)
        fails = point == note
        blows = [*([Blow.ERROR] if fails else []), Blow.STALL, *KILLS]
        if fails and not point.startswith(("release/", "shim undo/")) and not point.endswith(DONE):
            blows.insert(2, Blow.UNDO)
        found += [Cell(point, blow) for blow in blows]
    return found


def sample(all_cells: list[Cell], count: int) -> list[Cell]:
    """`count` of them, spread over points and blows, the same ones each time."""
    step = max(1, len(all_cells) // count)
    step += step % 7 == 0  # a point has up to 7 blows: not the same one each time
    return all_cells[::step][:count]
