"""The kill matrix is made from the points: a new one cannot escape it."""

from __future__ import annotations

from pathlib import Path

from atoll.faults import Action
from tests.chaos.cells import KILLS, Blow, Cell, cells, sample
from tests.chaos.points import named, unseen


def test_every_point_gets_every_blow_that_can_strike_there() -> None:
    found = cells(["run/files", "run/files:done", "release/netns", "zygote/fork:done (cannot fail)", "run/files"])
    blows = {point: [cell.blow for cell in found if cell.point == point] for point in {cell.point for cell in found}}
    assert blows == {
        "run/files": [Blow.ERROR, Blow.STALL, Blow.UNDO, *KILLS],
        "run/files:done": [Blow.ERROR, Blow.STALL, *KILLS],
        "release/netns": [Blow.ERROR, Blow.STALL, *KILLS],
        "zygote/fork:done": [Blow.STALL, *KILLS],
    }


def test_an_undo_is_struck_as_well() -> None:
    rules = Cell("run/files", Blow.UNDO).rules()
    assert [(rule.point, rule.action) for rule in rules] == [
        ("run/files", Action.ERROR),
        ("release/*", Action.ERROR),
        ("shim undo/*", Action.ERROR),
    ]
    assert [rule.action for rule in Cell("run/files", Blow.SHIM).rules()] == [Action.HOLD]


def test_a_sample_has_blows_of_every_kind() -> None:
    matrix = cells(f"run/step{number}" for number in range(30))
    chosen = sample(matrix, 14)
    assert len(chosen) == len(set(chosen)) == 14
    assert {cell.blow for cell in chosen} == set(Blow)


def test_the_points_of_the_code_are_known(tmp_path: Path) -> None:
    assert {"files", "network", "create task", "shim create/runtime", "zygote/fork"} <= named()
    assert "files" in unseen([])
    assert unseen([*(f"run/{name}" for name in named() if "/" not in name), *named()]) == set()
