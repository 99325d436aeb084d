"""Fan-out of live output: bounded for containers, lossless for execs."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.shim.stdio.hub import CLIENT_BUFFER_BYTES, GREETING_BYTES, LOSSLESS_BUFFER_BYTES, Hub, HubClient


async def rest(client: HubClient, limit: int = 1000) -> bytes:
    read = b""
    while chunk := await client.read(limit):
        read += chunk
    return read


async def test_every_client_gets_what_comes_after_its_attach() -> None:
    hub = Hub("c-stdout", lossless=False)
    hub.write(b"before ")
    first = hub.attach()
    hub.write(b"one ")
    second = hub.attach()
    hub.write(b"two")
    hub.end()
    late = hub.attach()
    assert [await rest(client) for client in (first, second, late)] == [b"one two", b"two", b""]


async def test_slow_client_is_dropped_and_slows_nobody() -> None:
    hub = Hub("c-stdout", lossless=False)
    told: list[errors.AtollError] = []
    slow, quick = hub.attach(told.append), hub.attach()
    chunk = b"x" * 65536
    for _ in range(CLIENT_BUFFER_BYTES // len(chunk) + 1):
        hub.write(chunk)
        assert not hub.is_blocked
        assert await quick.read(len(chunk)) == chunk
    assert hub.clients == 1
    assert len(told) == 1
    with pytest.raises(errors.ResourceExhausted, match="not read"):
        await slow.read(10)
    hub.write(b"more")
    assert await quick.read(10) == b"more"


async def test_lossless_hub_waits_for_its_client() -> None:
    hub = Hub("e-stdout", lossless=True)
    wakes: list[bool] = []
    hub.connect(lambda: wakes.append(hub.is_blocked))
    assert hub.is_blocked
    client = hub.attach()
    assert not hub.is_blocked
    hub.write(b"x" * LOSSLESS_BUFFER_BYTES)
    assert hub.is_blocked
    assert not hub.is_idle
    wakes.clear()
    await client.read(1000)
    assert wakes == [False]


async def test_lossless_hub_keeps_what_a_lost_client_did_not_take() -> None:
    hub = Hub("e-stdout", lossless=True)
    hub.connect(lambda: None)
    first = hub.attach()
    hub.write(b"one two")
    assert await first.read(4) == b"one "
    first.detach()
    first.detach()
    assert hub.is_blocked
    assert not hub.is_idle
    hub.write(b" three")
    second = hub.attach()
    hub.end()
    assert await rest(second) == b"two three"
    assert hub.is_idle


async def test_undelivered_bytes_go_back() -> None:
    hub = Hub("e-stdout", lossless=True)
    first = hub.attach()
    hub.write(b"one two")
    first.unread(await first.read(3))
    first.detach()
    hub.end()
    assert await rest(hub.attach()) == b"one two"


async def test_newer_client_takes_a_lossless_stream_over() -> None:
    hub = Hub("e-stdout", lossless=True)
    older = hub.attach()
    hub.write(b"abc")
    newer = hub.attach()
    with pytest.raises(errors.Aborted, match="e-stdout"):
        await older.read(10)
    assert await newer.read(10) == b"abc"


async def test_detach_wakes_a_waiting_reader() -> None:
    hub = Hub("c-stdout", lossless=False)
    client = hub.attach()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(_kind(client))
        await asyncio.sleep(0)
        client.detach(errors.InvalidArgument("bad message"))
    assert reading.result() is errors.InvalidArgument


async def _kind(client: HubClient) -> type[errors.AtollError] | None:
    try:
        await client.read(1)
    except errors.AtollError as error:
        return type(error)
    return None


async def test_closed_hub_lets_clients_finish() -> None:
    hub = Hub("e-stdout", lossless=True)
    client = hub.attach()
    hub.write(b"last words")
    hub.close()
    assert hub.is_idle
    assert await rest(client) == b"last words"


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20), st.integers(1, 60))
def test_reads_join_to_the_writes(chunks: list[bytes], limit: int) -> None:
    async def run() -> None:
        hub = Hub("c-stdout", lossless=False)
        client = hub.attach()
        for chunk in chunks:
            hub.write(chunk)
        hub.end()
        assert client.size == sum(map(len, chunks))
        assert await rest(client, limit) == b"".join(chunks)
        assert client.size == 0

    asyncio.run(run())


async def test_a_terminal_keeps_its_first_output_for_its_first_client() -> None:
    hub = Hub("c-stdout", lossless=False, greets=True)
    hub.write(b"$ ")
    hub.write(b"x" * GREETING_BYTES)
    first = hub.attach()
    hub.write(b"now")
    second = hub.attach()
    hub.end()
    assert await rest(first) == (b"$ " + b"x" * GREETING_BYTES)[:GREETING_BYTES] + b"now"
    assert await rest(second) == b""
