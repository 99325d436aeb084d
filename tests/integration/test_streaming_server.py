"""The streaming server by itself: TLS, time-outs, limits, and its end; what it runs is made up here."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from atoll import errors
from atoll.config import StreamingSection
from atoll.streaming import server as module
from atoll.streaming import wire
from atoll.streaming.command import Options, Streams
from atoll.streaming.flow import Gone
from atoll.streaming.server import Command, Server
from atoll.streaming.status import End
from tests.integration.stream_client import Answer, Spdy, SpdyCommand, connect, request

ALL = Options(stdin=True, stdout=True, stderr=True)


class Cat:
    """Sends back what it gets; `left` is set where the client leaves first."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self, streams: Streams) -> End:
        assert streams.stdin is not None
        assert streams.stdout is not None
        try:
            while chunk := await streams.stdin.read():
                await streams.stdout.write(chunk)
        except (Gone, asyncio.CancelledError):
            self.left.set()
            raise
        return End(exit_code=7)


@contextlib.asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[Server]:
    server = Server(StreamingSection(**settings))  # pyright: ignore[reportArgumentType]
    try:
        yield server
    finally:
        await server.aclose()


async def exec_url(server: Server, handler: Cat | None = None) -> str:
    return await server.url("exec", Command(options=ALL, handler=handler or Cat()))


def cat(url: str, tls: ssl.SSLContext | None = None) -> bytes:
    with SpdyCommand(url, "v4.channel.k8s.io", stdin=True, tls=tls) as command:
        command.stdin(b"x" * 100_000)
        command.stdin(fin=True)
        command.wait()
        assert b'"7"' in command.text("error")
        return command.text("stdout")


async def test_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-subj", "/CN=atoll", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(make, check=True, capture_output=True)
    async with serving(tls_cert=str(cert), tls_key=str(key)) as server:
        url = await exec_url(server)
        assert url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        assert await asyncio.to_thread(cat, url, trusting) == b"x" * 100_000
        with pytest.raises((Answer, ConnectionResetError)):
            await asyncio.to_thread(cat, await exec_url(server))  # no TLS
    with pytest.raises(errors.FailedPrecondition, match="cannot be loaded"):
        await exec_url(Server(StreamingSection(tls_cert=str(cert), tls_key=str(cert))))


async def test_a_port_that_is_taken_is_told() -> None:
    async with serving() as server:
        port = urlsplit(await exec_url(server)).port
        assert port is not None
        with pytest.raises(errors.FailedPrecondition, match=f"port {port}: .*in use"):
            await Server(StreamingSection(port=port)).start()


async def test_ipv6_has_brackets_in_its_urls() -> None:
    async with serving(address="::1") as server:
        url = await exec_url(server)
        assert url.startswith("http://[::1]:")
        assert await asyncio.to_thread(cat, url) == b"x" * 100_000


async def test_a_client_that_does_not_open_its_streams_is_left() -> None:
    async with serving(creation_timeout_s=0.1) as server:
        url = await exec_url(server)

        def work() -> None:
            with Spdy(url, "v4.channel.k8s.io") as session:
                session.open(streamtype="error")
                session.until(lambda: False)
                assert session.away is not None

        await asyncio.to_thread(work)


async def test_a_silent_client_is_left_and_what_it_ran_too() -> None:
    async with serving(idle_timeout_s=0.2) as server:
        handler = Cat()
        url = await exec_url(server, handler)

        def work() -> None:
            with SpdyCommand(url, "v4.channel.k8s.io", stdin=True) as command:
                command.session.until(lambda: False)
                assert command.session.gone

        await asyncio.to_thread(work)
        async with asyncio.timeout(5):
            await handler.left.wait()


async def test_a_client_that_leaves_while_nothing_of_it_is_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WATCH_S", 0.1)
    left = asyncio.Event()

    async def deaf(streams: Streams) -> End:
        try:
            await asyncio.sleep(60)
        finally:
            left.set()
        return End()

    async with serving() as server:
        url = await server.url("exec", Command(options=ALL, handler=deaf))

        def work() -> None:
            with SpdyCommand(url, "v4.channel.k8s.io", stdin=True) as command:
                command.session.until(lambda: len(command.session.replied) == 4)
                command.stdin(bytes(1 << 20))
                command.stdin(bytes(10))

        await asyncio.to_thread(work)
        async with asyncio.timeout(5):
            await left.wait()


async def test_the_end_of_the_server_ends_its_sessions() -> None:
    handler = Cat()
    async with serving() as server:
        command = await asyncio.to_thread(SpdyCommand, await exec_url(server, handler), "v4.channel.k8s.io", stdin=True)
        await asyncio.to_thread(lambda: (command.stdin(b"x"), command.until("stdout", b"x")))
    assert handler.left.is_set()
    with command:
        await asyncio.to_thread(command.session.until, lambda: False)
        assert command.session.away is not None


async def test_a_session_beyond_the_limit_is_refused_and_its_url_stays_good() -> None:
    async with serving(max_connections=1) as server:
        first = await asyncio.to_thread(SpdyCommand, await exec_url(server), "v4.channel.k8s.io", stdin=True)
        url = await exec_url(server)
        with pytest.raises(Answer) as refusal:
            await asyncio.to_thread(cat, url)
        assert refusal.value.status == 503
        with first:
            await asyncio.to_thread(lambda: (first.stdin(fin=True), first.wait()))
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await asyncio.to_thread(cat, url) == b"x" * 100_000
                except Answer:  # the first has not gone yet
                    await asyncio.sleep(0.02)
                else:
                    return


async def test_connections_without_a_token_do_not_keep_others_out() -> None:
    async with serving() as server:
        url = await exec_url(server)
        with contextlib.ExitStack() as stack:
            for _ in range(module.MAX_UNKNOWN + 20):
                stack.enter_context(await asyncio.to_thread(connect, url))
            assert await asyncio.to_thread(cat, url) == b"x" * 100_000


async def test_a_head_that_is_too_long_or_garbage_is_a_bad_request() -> None:
    async with serving() as server:
        url = await exec_url(server)

        def ask(fields: dict[str, str]) -> int:
            with connect(url) as connection:
                return request(connection, "POST", "/exec/x", fields)[0]

        assert await asyncio.to_thread(ask, {"X": "y" * 100_000}) in {400, 431}
        assert await asyncio.to_thread(ask, {"X y": "z"}) == 400
        assert await asyncio.to_thread(ask, {"Content-Length": "0"}) == 404


async def test_a_client_that_reads_late_still_gets_all_and_the_end() -> None:
    async def talk(streams: Streams) -> End:
        assert streams.stdout is not None
        for _ in range(20):
            await streams.stdout.write(bytes(256 << 10))
        return End()

    async with serving() as server:
        url = await server.url("exec", Command(options=ALL, handler=talk))

        def work() -> int:
            with SpdyCommand(url, "v4.channel.k8s.io", stdin=True) as command:
                command.stdin(b"never read")
                time.sleep(0.3)
                command.session.write(b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01")  # a ping
                command.wait()
                return len(command.text("stdout"))

        assert await asyncio.to_thread(work) == 20 * (256 << 10)
