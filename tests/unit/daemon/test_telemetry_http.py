"""The endpoint of metrics over its sockets."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from atoll import errors
from atoll.daemon.telemetry_http import MAX_CONNECTIONS, Endpoint


async def text() -> bytes:
    return b"x 1\n"


@asynccontextmanager
async def serving(path: Path) -> AsyncGenerator[None]:
    endpoint = Endpoint(str(path), text)
    await endpoint.start()
    try:
        yield
    finally:
        await endpoint.aclose()
        await endpoint.aclose()


async def ask(path: Path, *requests: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    for request in requests:
        writer.write(request.encode())
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_a_scrape_is_answered_and_the_socket_is_roots_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    async with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answer = await ask(path, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"text/plain; version=0.0.4" in head
        assert body == b"x 1\n"
    assert not path.exists()


async def test_a_connection_takes_one_scrape_after_another(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    async with serving(path):
        again = "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await ask(path, again, again, "HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.count(b"HTTP/1.1 200 ") == 3
        assert answer.count(b"x 1\n") == 2


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET / HTTP/1.1", b"404"), ("GET /metrics/../etc HTTP/1.1", b"404"), ("DELETE /metrics HTTP/1.1", b"405")],
)
async def test_there_is_nothing_else(tmp_path: Path, request_line: str, status: bytes) -> None:
    async with serving(tmp_path / "metrics"):
        answer = await ask(tmp_path / "metrics", f"{request_line}\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.split()[1] == status


async def test_what_is_no_http_is_hung_up_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "metrics"):
        assert await ask(tmp_path / "metrics", "\x16\x03\x01 no\r\n\r\n") == b""


async def test_connections_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    async with serving(path):
        held = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CONNECTIONS)]
        request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert await ask(path, request) == b""
        _, first = held.pop()
        first.close()
        await first.wait_closed()
        assert b" 200 " in await ask(path, request)
        for _, one in held:
            one.close()


async def test_a_socket_that_an_earlier_daemon_left_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serving(path):
        assert b"200" in await ask(path, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    path.write_text("somebody's")
    with pytest.raises(errors.FailedPrecondition, match=r"metrics: cannot listen on"):
        await Endpoint(str(path), text).start()
    assert path.read_text() == "somebody's"
