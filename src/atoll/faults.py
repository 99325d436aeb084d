"""Named points of the code at which something can be made to go wrong, for tests of what comes then.

    reached("start/create task")
    with step("pull/manifest"): ...         # "pull/manifest", and "pull/manifest:done" where it ends well

A program started with `ATOLL_FAULTS=FOLDER` in its environment notes each point it reaches in `FOLDER/reached`, with
the file and the line that named it, and at each looks for a rule: `FOLDER/rules/<name>`, a `Rule` as JSON. The first
that matches strikes once and is gone. Without the variable a point costs one comparison. Points are named
`<use case>/<step>`, and `...:done` behind the step.

A point where the program stands still (`hold`) writes its `Held` into `FOLDER/held` and goes on when `FOLDER/go` is
there: until then nothing of that process moves, so it can be killed at that very instruction.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import sys
import time
from collections.abc import Generator
from enum import StrEnum
from pathlib import Path

import msgspec

from atoll import errors

VARIABLE = "ATOLL_FAULTS"
DONE = ":done"
SURE = " (cannot fail)"
"""Behind the note of a point at which no error can be asked for."""
HOLD_POLL_S = 0.002
HOLD_LIMIT_S = 60.0


class Action(StrEnum):
    ERROR = "error"
    STALL = "stall"
    HOLD = "hold"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What is to happen at the first point whose name matches `point` (fnmatch); `seconds` are those of a stall."""

    point: str
    action: Action
    seconds: float = 0.0


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Who stands still, and where."""

    point: str
    pid: int


class Plan:
    """The rules of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._decoder = msgspec.json.Decoder(Rule)

    def reached(self, point: str, *, fails: bool) -> None:
        self._note(point if fails else f"{point}{SURE}")
        rule = self._taken(point, fails=fails)
        if rule is None:
            return
        if rule.action is Action.ERROR:
            raise errors.Internal(f"a fault was asked for at {point!r}")
        if rule.action is Action.STALL:
            time.sleep(rule.seconds)
        else:
            self._hold(point)

    def _note(self, point: str) -> None:
        with open(self._folder / "reached", "a", encoding="utf-8") as file:
            file.write(f"{point}\t{_site()}\n")

    def _taken(self, point: str, *, fails: bool) -> Rule | None:
        for path in sorted((self._folder / "rules").iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another process was struck by it
                rule = self._decoder.decode(path.read_bytes())
                if fnmatch.fnmatchcase(point, rule.point) and (fails or rule.action is not Action.ERROR):
                    path.unlink()
                    return rule
        return None

    def _hold(self, point: str) -> None:
        held = self._folder / "held"
        fresh = held.with_name("held.new")
        fresh.write_bytes(msgspec.json.encode(Held(point=point, pid=os.getpid())))
        fresh.replace(held)
        deadline = time.monotonic() + HOLD_LIMIT_S
        while not (self._folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(HOLD_POLL_S)


def _site() -> str:
    """The file, below the package, and the line that the point is named in."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # the only way to the callers' lines
    while frame.f_back is not None and frame.f_code.co_filename.endswith(_PASSED):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/atoll/')[2]}:{frame.f_lineno}"


_PASSED = ("/atoll/faults.py", "/engine/phases.py", "/sandboxers/held.py", "/contextlib.py")
"""Files whose functions name the points of others."""
_folder = os.environ.get(VARIABLE, "")
_plan = Plan(Path(_folder)) if _folder else None


def reached(point: str, *, fails: bool = True) -> None:
    """The program is at `point`. Raises `Internal` where a rule asks for an error, unless nothing can fail there."""
    if _plan is not None:
        _plan.reached(point, fails=fails)


@contextlib.contextmanager
def step(point: str) -> Generator[None]:
    """What runs inside is the step `point`: `reached` before it, and behind it where it ended well."""
    reached(point)
    yield
    reached(point + DONE)
