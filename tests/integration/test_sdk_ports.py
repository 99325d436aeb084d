"""Ports of a pod by the SDK: as streams, as a port of this host; statistics as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

import atoll
from atoll import errors
from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
BOUND_S = 60.0
ASK = b"GET /hostname HTTP/1.0\r\n\r\n"


@pytest.fixture
async def pod(daemon: Daemon) -> AsyncIterator[atoll.Pod]:
    async with (
        atoll.connect(daemon.roots.socket, start=False) as client,
        await client.run_pod("web", network="none") as pod,
    ):
        server = await pod.run(IMAGE, ["httpd", "-f", "-h", "/etc"])
        until = "until wget -qO- http://127.0.0.1/hostname; do sleep 0.05; done 2>/dev/null"
        assert (await server.exec(["sh", "-c", until], timeout=BOUND_S)).text == "web\n"
        yield pod


async def test_a_port_is_a_stream_and_a_port_of_this_host(pod: atoll.Pod) -> None:
    async with asyncio.timeout(BOUND_S):
        async with pod.forward(80) as (reader, writer):
            writer.write(ASK)
            writer.write_eof()
            assert (await reader.read()).endswith(b"web\n")
        async with pod.listen(80) as listener:
            for _ in range(3):
                reader, writer = await asyncio.open_connection(listener.host, listener.port)
                writer.write(ASK)
                assert (await reader.read()).endswith(b"web\n")
                writer.close()
                await writer.wait_closed()
            with pytest.raises(errors.AlreadyExists, match="cannot be listened on"):
                async with pod.listen(80, local_port=listener.port):
                    pass
        with pytest.raises(errors.Unavailable, match="port 81"):
            async with pod.forward(81):
                pass
        told: list[errors.AtollError] = []
        async with pod.listen(81, on_error=told.append) as listener:
            reader, writer = await asyncio.open_connection(listener.host, listener.port)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            assert [type(error) for error in told] == [errors.Unavailable]


async def test_the_same_without_a_loop(pod: atoll.Pod, daemon: Daemon) -> None:
    def work() -> tuple[bytes, bytes]:
        with atoll.connect_sync(daemon.roots.socket, start=False) as client:
            web = client.pod("web")
            with web.forward(80) as connection:
                connection.sendall(ASK)
                direct = _everything(connection)
            with web.listen(80) as listener, socket.create_connection((listener.host, listener.port)) as connection:
                connection.sendall(ASK)
                return direct, _everything(connection)

    direct, listened = await asyncio.wait_for(asyncio.to_thread(work), BOUND_S)
    assert direct.endswith(b"web\n")
    assert listened.endswith(b"web\n")


def _everything(connection: socket.socket) -> bytes:
    parts: list[bytes] = []
    while part := connection.recv(4096):
        parts.append(part)
    return b"".join(parts)


async def test_statistics_are_a_stream(pod: atoll.Pod, daemon: Daemon) -> None:
    async with atoll.connect(daemon.roots.socket, start=False) as client, asyncio.timeout(BOUND_S):
        stream = client.stats_stream([pod.id], interval=0.05)
        samples = [await anext(stream) for _ in range(3)]
        await stream.aclose()
    assert [[one.name for one in sample] for sample in samples] == [["web"]] * 3
    assert all(sample[0].memory_bytes > 0 for sample in samples)


async def test_events_go_on_behind_a_cursor_and_what_is_lost_is_told(client: atoll.Client, daemon: Daemon) -> None:
    begun = datetime.now(UTC)
    async with await client.run_pod("told", network="none"):
        first = [one async for one in client.events(since=begun, follow=False)]
        assert [(one.type, one.pod_name) for one in first] == [("created", "told"), ("started", "told")]
    rest = [one async for one in client.events(after=first[0].cursor, follow=False)]
    assert [one.type for one in rest] == ["started", "stopped", "deleted"]
    assert rest[0] == first[1]
    assert [one async for one in client.events(after=rest[-1].cursor, follow=False)] == []
    async with contextlib.aclosing(client.events(after=rest[1].cursor)) as told, asyncio.timeout(BOUND_S):
        assert await anext(told) == rest[2]
        async with await client.run_pod("next", network="none"):
            assert (await anext(told)).pod_name == "next"
    long_ago = [one async for one in client.events(since=begun - timedelta(days=1), follow=False)]
    assert long_ago[0].type == "lost"
    assert long_ago[0].at <= begun
    of_another = [one async for one in client.events(after="01234567-3", follow=False)]
    assert [one.type for one in of_another[:1]] == ["lost"]
    assert [one async for one in client.events(after=of_another[0].cursor, follow=False)] == of_another[1:]
    with pytest.raises(errors.InvalidArgument, match="cursor"):
        await anext(client.events(after="nonsense"))
    with pytest.raises(errors.InvalidArgument, match="not both"):
        await anext(client.events(after=rest[0].cursor, since=begun))
