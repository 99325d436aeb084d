"""The endpoint of metrics: `GET /metrics` over HTTP/1.1 on a loopback address or a unix socket, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import h11

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.config.rules import host_and_port
from atoll.daemon.telemetry_text import CONTENT_TYPE

log = logging.getLogger(__name__)

PATH = "/metrics"
IDLE_S = 30.0
"""A connection without a request for so long is closed."""
MAX_CONNECTIONS = 32
BACKLOG = 16
Text = Callable[[], Awaitable[bytes]]


class Endpoint:
    """Answers scrapes from `start` on until `aclose`; nothing runs where nobody asks."""

    def __init__(self, address: str, text: Text) -> None:
        """`address` is as the configuration has it: an absolute path, or a loopback IP and a port."""
        self._address = address
        self._text = text
        self._tasks = TaskOwner("metrics")
        self._server: asyncio.Server | None = None
        self._bound: tuple[Path, tuple[int, int]] | None = None
        self._connections: set[_Connection] = set()

    async def start(self) -> None:
        """Listen. Raises `FailedPrecondition` where that cannot be done."""
        loop = asyncio.get_running_loop()
        try:
            if self._address.startswith("/"):
                listening = self._bind(Path(self._address))
                self._server = await loop.create_unix_server(self._accept, sock=listening, backlog=BACKLOG)
            else:
                host, port = host_and_port(self._address)
                self._server = await loop.create_server(self._accept, host, port, backlog=BACKLOG)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"metrics: cannot listen on {self._address}: {error.strerror or error}; set [metrics] address"
            ) from error
        log.info("metrics at %s", self._address)

    def _bind(self, path: Path) -> socket.socket:
        """A socket that only root may connect to: none can before it listens, and by then its mode is set."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket():
            path.unlink()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listening.bind(str(path))
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            found = path.stat()
        except OSError:
            listening.close()
            raise
        self._bound = path, (found.st_dev, found.st_ino)
        return listening

    def _accept(self) -> asyncio.Protocol:
        return _Connection(self._connections, self._tasks, self._text)

    async def aclose(self) -> None:
        """End every connection; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for one in tuple(self._connections):
            one.abort()
        await self._tasks.aclose()
        bound, self._bound = self._bound, None
        if bound is not None:
            path, file = bound
            try:
                found = path.stat()
                if (found.st_dev, found.st_ino) == file:
                    os.unlink(path)
            except FileNotFoundError:
                log.debug("metrics: %s has gone", path)


class _Connection(asyncio.Protocol):
    """One scraper: a request at a time."""

    def __init__(self, connections: set[_Connection], tasks: TaskOwner, text: Text) -> None:
        self._connections = connections
        self._tasks = tasks
        self._text = text
        self._http = h11.Connection(h11.SERVER)
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._transport.abort()
            return
        self._connections.add(self)
        self._rest()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_S, self.abort)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            self._next()
        except h11.RemoteProtocolError as error:
            log.debug("metrics: a request that is none: %s", error)
            self.abort()

    def _next(self) -> None:
        while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                self._tasks.spawn(self._answer(event), name="metrics/scrape")
            elif isinstance(event, h11.ConnectionClosed):
                self.abort()
                return

    async def _answer(self, request: h11.Request) -> None:
        status, body, kind = 200, b"", CONTENT_TYPE
        if request.target.split(b"?")[0] != PATH.encode():
            status, body, kind = 404, f"there is {PATH}\n".encode(), "text/plain"
        elif request.method not in (b"GET", b"HEAD"):
            status, body, kind = 405, b"GET it\n", "text/plain"
        else:
            body = await self._text()
        if self._transport is None or self._http.our_state is not h11.SEND_RESPONSE:
            return
        headers = [("content-type", kind), ("content-length", str(len(body)))]
        head = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        sent = body if request.method != b"HEAD" else b""
        self._transport.write(head + (self._http.send(h11.Data(data=sent)) or b""))
        self._transport.write(self._http.send(h11.EndOfMessage()) or b"")
        try:
            self._http.start_next_cycle()
        except h11.LocalProtocolError:  # the last request of a connection, or one with more body than it should have
            self._transport.close()
            return
        self._rest()
        self._next()
