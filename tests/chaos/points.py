"""Which points there are: those that a life reaches, as noted, and those that the code names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atoll.engine import hosting, kinds
from atoll.faults import SURE

SOURCE = Path(__file__).resolve().parents[2] / "src" / "atoll"
MAKERS = {("story", "step"), ("faults", "reached"), ("faults", "step"), ("undoing", "step")}
"""Calls that name a point."""
OF_POINTS = ("faults.py", "engine/phases.py", "sandboxers/held.py")
"""Files that pass on what others name."""
CRIU = {"checkpoint/layer", "checkpoint/pack"}
"""Behind a dump that not every CRIU can do on every kernel."""

OPEN = {
    *(("engine/restarts.py", name) for name in ("settle", "again")),
    ("sandboxers/podsandbox.py", "freezer"),
}
"""Points that no life comes by yet: docs/chaos.md names them as what is not struck. Nothing new may be added."""


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A place in the code that names a point, from its first line to its last."""

    file: str
    first: int
    last: int
    name: str
    """As it is written there: the text, or the expression."""

    def __str__(self) -> str:
        return f"{self.file}:{self.first} {self.name}"


def sites() -> list[Site]:
    """Every place in the code that names a point."""
    return sorted(site for path in SOURCE.rglob("*.py") for site in _sites_in(path))


def _sites_in(path: Path) -> Iterator[Site]:
    text, file = path.read_text(), path.relative_to(SOURCE).as_posix()
    if file in OF_POINTS or not any(f"{of}.{name}(" in text for of, name in MAKERS):
        return
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        if (of, node.func.attr) in MAKERS:
            first = node.args[0]
            name = str(first.value) if isinstance(first, ast.Constant) else ast.unparse(first)
            yield Site(file, node.lineno, node.end_lineno or node.lineno, name)


def released() -> set[str]:
    """The points of the release of every kind of thing that the code enters into the ledger."""
    module = ast.parse(Path(kinds.__file__).read_text())
    given = [node.value for node in module.body if isinstance(node, ast.Assign)]
    words = [str(value.value) for value in given if isinstance(value, ast.Constant)]
    names = [hosting.LINKS, *(word for word in words if re.fullmatch(r"[a-z-]+", word))]
    return {f"release/{name}" for name in names}


def split(note: str) -> tuple[str, bool, str]:
    """A line of the notes: the point, whether an error can be asked for there, and where in the code it is."""
    point, _, site = note.partition("\t")
    return point.removesuffix(SURE), not point.endswith(SURE), site


def unseen(notes: Iterable[str]) -> list[str]:
    """What the code names and nothing in `notes` is."""
    seen: set[tuple[str, int]] = set()
    points: set[str] = set()
    for note in notes:
        point, _, site = split(note)
        file, _, line = site.rpartition(":")
        points.add(point)
        seen.add((file, int(line)))
    missed = [
        site for site in sites() if not any((site.file, line) in seen for line in range(site.first, site.last + 1))
    ]
    if any(point.startswith("checkpoint/dump") for point in points):
        missed = [site for site in missed if site.name not in CRIU]
    missed = [site for site in missed if (site.file, site.name) not in OPEN]
    return [*map(str, missed), *sorted(released() - points)]
