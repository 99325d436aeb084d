"""A fake daemon, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import atoll
from atoll.testing.fake_daemon import FakeDaemon


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with FakeDaemon(tmp_path / "atoll.sock", registry=("docker.io/library/web:1",)) as daemon:
        yield daemon


@pytest.fixture
async def client(daemon: FakeDaemon) -> AsyncIterator[atoll.Client]:
    async with atoll.connect(daemon.socket, start=False) as client:
        yield client
