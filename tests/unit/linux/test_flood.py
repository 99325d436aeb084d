"""What a program writes while somebody waits for it is bounded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from atoll import errors
from atoll.linux import flood


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("flood")
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "LOOK_S", 0.001)


async def test_too_much_ends_the_wait_and_names_who_wrote(file: int) -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        async with flood.bounded(file, limit_bytes=10, what="crun create c1"):
            os.write(file, bytes(11))
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    with pytest.raises(errors.ResourceExhausted, match="crun create c1: wrote more than 10 bytes and was killed"):
        await wait()
    assert ended.is_set()


async def test_enough_is_fine_however_long_it_takes(file: int) -> None:
    async with flood.bounded(file, limit_bytes=10, what="x"):
        os.write(file, bytes(10))
        await asyncio.sleep(0.02)


async def test_other_ends_pass_through(file: int) -> None:
    async def wait() -> None:
        async with flood.bounded(file, limit_bytes=10, what="x"), asyncio.timeout(0.005):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await wait()
