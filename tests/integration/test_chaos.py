"""A sample of the kill matrix; `make chaos` plays all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.arena import Arena
from tests.chaos.cells import Blow, Cell, cells, sample
from tests.chaos.kinds import LIVES, possible
from tests.chaos.outside import Outside, outside
from tests.chaos.points import unseen
from tests.integration.conftest import Roots

CELLS = 12
ALWAYS = (
    Cell("pod", "release/sandbox", Blow.ERROR),
    Cell("pod", "run/network", Blow.UNDO),
    Cell("pod", "start/create task", Blow.DAEMON),
    Cell("images", "remove image/record:done", Blow.DAEMON),
    Cell("hosted", "hosted start/commit", Blow.DAEMON),
    Cell("restart", "free/unfinished", Blow.DAEMON),
)
"""Those that found something once, or that cross most of the code."""


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Outside]:
    with outside(tmp_path) as made:
        yield made


@pytest.mark.timeout(300)
def test_a_sample_of_the_matrix_leaves_nothing_and_every_point_is_in_it(roots: Roots, out: Outside) -> None:
    arena = Arena(roots, out)
    with arena.open() as notes:
        if possible() == LIVES:
            assert unseen([line for one in notes for line in one.lines]) == [], "points that no life reaches"
        matrix = cells(notes)
        assert set(ALWAYS) <= set(matrix)
        assert {cell.life for cell in matrix} == set(possible())
        outcomes = [arena.play(cell) for cell in dict.fromkeys((*ALWAYS, *sample(matrix, CELLS)))]
    assert [f"{one.cell}: {one.fault}" for one in outcomes if one.fault] == []
    assert [str(one.cell) for one in outcomes if not one.struck] == []
