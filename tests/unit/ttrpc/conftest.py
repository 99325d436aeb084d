"""A server with the echo service, and clients connected to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atoll.ttrpc.client import Client
from atoll.ttrpc.server import Server
from tests.unit.ttrpc.echo import SERVICE, Echo


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path short enough for a unix socket, whatever the name of the test."""
    with tempfile.TemporaryDirectory(prefix="atoll-ttrpc-") as folder:
        yield Path(folder) / "s"


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(socket_path: Path, echo: Echo) -> AsyncIterator[Server]:
    async with Server(peer_uid=os.getuid()) as server:
        server.register(SERVICE, echo.methods())
        await server.serve(socket_path)
        yield server
        echo.released.set()


@pytest.fixture
async def client(server: Server, socket_path: Path) -> AsyncIterator[Client]:
    async with await Client.connect(f"unix://{socket_path}") as client:
        yield client
