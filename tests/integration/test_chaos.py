"""A sample of the kill matrix, which `make chaos` plays all of, and of a soak, which `make soak` makes last."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.chaos.run import ALWAYS

CELLS = 8
WITHIN_S = 580


@pytest.mark.timeout(WITHIN_S + 20)
def test_a_sample_of_the_matrix_leaves_nothing_and_every_point_is_in_it() -> None:
    """The run fails where a cell does, and where the code names a point that no life reaches."""
    command = [sys.executable, "-m", "tests.chaos.run", "--jobs", "1", "--sample", str(CELLS)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    said = f"{finished.stdout}\n{finished.stderr}"
    assert finished.returncode == 0, said
    assert "no life reaches" not in said
    passed = re.search(r"^(\d+) of (\d+) cells passed, 0 not reached", finished.stdout, re.MULTILINE)
    assert passed, said
    assert CELLS <= int(passed[1]) == int(passed[2]) <= CELLS + len(ALWAYS)


@pytest.mark.timeout(WITHIN_S + 20)
def test_some_seconds_of_random_lives_and_strikes_lose_nothing_and_leave_nothing() -> None:
    command = [sys.executable, "-m", "tests.chaos.soak", "--seconds", "5", "--callers", "2", "--seed", "5"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    said = f"{finished.stdout}\n{finished.stderr}"
    assert finished.returncode == 0, said
    assert "seed 5" in said
    assert "lost: 0" in said
    assert int(re.findall(r"^strikes: (\d+)", finished.stdout, re.MULTILINE)[0]) >= 1, said
