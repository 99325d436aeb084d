"""A ledger over a fresh state file, and the small world it is about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll.ledger.ledger import Ledger
from tests.unit.ledger.world import Run, World, kinds


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
async def run(path: Path, world: World) -> AsyncIterator[Run]:
    run = await Run.begin(path, kinds(world))
    yield run
    await run.end()


@pytest.fixture
async def ledger(run: Run) -> Ledger:
    return run.ledger
