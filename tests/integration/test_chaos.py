"""A sample of the kill matrix; `make chaos` plays all of it."""

from __future__ import annotations

import pytest

from tests.chaos.arena import Arena
from tests.chaos.cells import Blow, Cell, cells, sample
from tests.chaos.points import unseen
from tests.integration.conftest import Roots

CELLS = 10
ALWAYS = (Cell("remove/release", Blow.ERROR), Cell("run/network", Blow.UNDO), Cell("start/create task", Blow.DAEMON))
"""Those that found something once, or that cross most of the code."""


@pytest.mark.timeout(300)
def test_a_sample_of_the_matrix_leaves_nothing_and_every_point_is_in_it(roots: Roots) -> None:
    arena = Arena(roots)
    with arena.open() as notes:
        assert unseen(notes) == set(), "points that no life reaches: see tests/chaos/points.py"
        matrix = cells(notes)
        assert set(ALWAYS) <= set(matrix)
        outcomes = [arena.play(cell) for cell in dict.fromkeys((*ALWAYS, *sample(matrix, CELLS)))]
    assert [f"{one.cell}: {one.fault}" for one in outcomes if one.fault] == []
    assert [str(one.cell) for one in outcomes if not one.struck] == []
