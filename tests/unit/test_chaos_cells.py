"""The kill matrix is made from the points: a new one cannot escape it."""

from __future__ import annotations

from atoll.faults import Action
from tests.chaos.cells import KILLS, UNDOING, Blow, Cell, Notes, cells, sample
from tests.chaos.kinds import LIVES
from tests.chaos.points import OPEN, released, sites, unseen
from tests.chaos.run import Outcome, table


def notes(*lines: str, life: str = "pod", again: tuple[str, ...] = (), cause: str = "") -> Notes:
    return Notes(life=life, lines=tuple(f"{line}\tengine/pods.py:1" for line in lines), again=again, cause=cause)


def test_every_point_gets_every_blow_that_can_strike_there() -> None:
    seen = notes("run/files", "run/files:done", "release/netns", "zygote/fork:done (cannot fail)", "run/files")
    found = cells([seen])
    blows = {point: [cell.blow for cell in found if cell.point == point] for point in {cell.point for cell in found}}
    assert blows == {
        "run/files": [Blow.ERROR, Blow.STALL, Blow.UNDO, *KILLS],
        "run/files:done": [Blow.ERROR, Blow.STALL, *KILLS],
        "release/netns": [Blow.ERROR, Blow.STALL, *KILLS],
        "zygote/fork:done": [Blow.STALL, *KILLS],
    }


def test_a_point_is_struck_in_the_first_life_that_reaches_it_and_where_one_asks_for_it_again() -> None:
    first = notes("run/files", "create/record")
    second = notes("run/files", "create/record", "run/users", life="mapped", again=("create/*",))
    found = cells([first, second])
    assert {(cell.life, cell.point) for cell in found} == {
        ("pod", "run/files"),
        ("pod", "create/record"),
        ("mapped", "create/record"),
        ("mapped", "run/users"),
    }


def test_a_point_behind_an_error_is_struck_behind_it() -> None:
    found = cells([notes("run/commit"), notes("run/commit", "run/undo", cause="run/commit")])
    cell = Cell("pod", "run/undo", Blow.DAEMON, "run/commit")
    assert cell in found
    assert [(rule.point, rule.action) for rule in cell.rules()] == [
        ("run/commit", Action.ERROR),
        ("run/undo", Action.HOLD),
    ]
    assert not [one for one in found if one.point == "run/commit" and one.cause]


def test_an_undo_is_struck_as_well() -> None:
    rules = Cell("pod", "run/files", Blow.UNDO).rules()
    assert [rule.point for rule in rules] == ["run/files", *UNDOING]
    assert {rule.action for rule in rules} == {Action.ERROR}
    assert [rule.action for rule in Cell("pod", "run/files", Blow.SHIM).rules()] == [Action.HOLD]


def test_a_sample_has_blows_of_every_kind() -> None:
    matrix = cells([notes(*(f"run/step{number}" for number in range(30)))])
    chosen = sample(matrix, 14)
    assert len(chosen) == len(set(chosen)) == 14
    assert {cell.blow for cell in chosen} == set(Blow)


def test_the_points_of_the_code_are_known_by_where_they_are() -> None:
    found = sites()
    assert {"files", "network", "create task", "shim create/runtime", "zygote/fork", "pull/manifest"} <= {
        site.name for site in found
    }
    assert len([site for site in found if site.name == "release"]) == 2, (
        "of a pod, of a container: one is not the other"
    )
    assert {"release/network", "release/task", "release/links"} <= released()
    every = [f"x/{site.name}\t{site.file}:{site.last}" for site in found]
    assert unseen([*every, *(f"{point}\tledger/ledger.py:1" for point in released())]) == []
    told = next(line for line in every if line.startswith("x/pull/manifest"))
    assert len(unseen([line for line in every if line != told])) == len(released()) + 1
    assert {(site.file, site.name) for site in found} >= OPEN, "a point that is not there any more is not open"


def test_the_table_counts_every_cell() -> None:
    good = Outcome(Cell("pod", "run/files", Blow.ERROR), 1.0)
    bad = Outcome(Cell("images", "pull/fetch", Blow.STALL), 1.0, fault="a blob is left")
    said = table([good, bad], 60)
    assert "1 of 2 cells passed" in said
    assert "| pod | 1 | 1/1 |  | 1/1 |" in said
    assert "| images: pull/fetch: stall | FAILED: a blob is left |" in said
    assert set(LIVES) >= {"pod", "images"}
