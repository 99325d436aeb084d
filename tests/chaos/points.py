"""Which points there are: those that a life reaches, as noted, and those that the code names."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from atoll.faults import DONE, SURE

SOURCE = Path(__file__).resolve().parents[2] / "src" / "atoll"

ELSEWHERE = {
    "undo": "a run that failed: reached by the blows to the steps of a run",
    "kill": "a container that does not end by its signal: reached by the blows to the step before",
}
"""Steps that a life without a blow does not reach, and what reaches them."""


def named() -> set[str]:
    """The steps of stories and the points whose names are written out in the code."""
    return {name for path in SOURCE.rglob("*.py") for name in _named_in(path)}


def _named_in(path: Path) -> Iterator[str]:
    text = path.read_text()
    if "story.step(" not in text and "faults.reached(" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        first = node.args[0]
        if (of, node.func.attr) in (("story", "step"), ("faults", "reached")) and isinstance(first, ast.Constant):
            yield str(first.value)


def unseen(notes: Iterable[str]) -> set[str]:
    """What the code names and nothing in `notes` is, but for `ELSEWHERE`."""
    points = {note.removesuffix(SURE) for note in notes}
    steps = {point.removesuffix(DONE).partition("/")[2] for point in points}
    return {name for name in named() if name not in points and name not in steps and name not in ELSEWHERE}
