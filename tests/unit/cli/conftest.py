"""A command line in this process, against a fake daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import atoll
from atoll.cli import main
from atoll.testing.fake_daemon import FakeDaemon

Cli = Callable[..., Awaitable["Said"]]


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with FakeDaemon(tmp_path / "atoll.sock", registry=("docker.io/library/web:1",)) as daemon:
        yield daemon


@pytest.fixture
async def client(daemon: FakeDaemon) -> AsyncIterator[atoll.Client]:
    async with atoll.connect(daemon.socket, start=False) as client:
        yield client


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Awaitable[Said]]:
    """Runs one command line beside the loop of the test; commands with signals of their own need a process."""
    monkeypatch.setenv("ATOLL_SOCKET", str(tmp_path / "atoll.sock"))

    async def run(*arguments: str) -> Said:
        capfd.readouterr()
        code = await asyncio.to_thread(main.run, list(arguments))
        said = capfd.readouterr()
        return Said(code, said.out, said.err)

    return run
