"""The listener: one request a connection, found by its token, upgraded, served."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.config import StreamingSection
from atoll.streaming import command, forward, handshake
from atoll.streaming.flow import Gone
from atoll.streaming.handshake import Head, HeadReader, Refused
from atoll.streaming.tokens import Tokens
from atoll.streaming.wire import Wire

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 10.0
"""From the connection to the end of its request."""
TLS_TIMEOUT_S = 10.0
FLUSH_TIMEOUT_S = 2.0
"""For the last words of a session that has ended."""
BACKLOG = 256
METHODS = ("GET", "POST")
MAX_UNKNOWN = 64
"""Connections that have shown no token yet; then the oldest of them goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A session of exec or attach."""

    options: command.Options
    handler: command.Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A session of port forward; `ports` are for WebSocket, where the client does not name them."""

    dial: forward.Dial
    ports: tuple[int, ...] = ()


class Server:
    """Serves sessions until `aclose`, which ends them."""

    def __init__(self, settings: StreamingSection) -> None:
        self._settings = settings
        self._tokens: Tokens[tuple[str, Command | Forward]] = Tokens()
        self._sessions = TaskOwner("streaming")
        self._unknown: dict[Wire, None] = {}  # the oldest first
        self._starting = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._base = ""

    async def start(self) -> None:
        """Listen now; idempotent. Raises `FailedPrecondition` for an address or TLS files that cannot be used."""
        async with self._starting:
            if self._server is not None:
                return
            settings = self._settings
            tls = _tls(settings)
            try:
                self._server = await asyncio.get_running_loop().create_server(
                    lambda: Wire(self._accepted, settings.idle_timeout_s),
                    settings.address,
                    settings.port,
                    backlog=BACKLOG,
                    ssl=tls,
                    ssl_handshake_timeout=TLS_TIMEOUT_S if tls is not None else None,
                )
            except OSError as error:
                raise errors.FailedPrecondition(
                    f"streaming: cannot listen on {settings.address} port {settings.port}: {error.strerror or error}; "
                    "set [streaming] address and port"
                ) from error
            port = self._server.sockets[0].getsockname()[1]
            self._base = f"{'https' if tls is not None else 'http'}://{_host(settings.address)}:{port}"
            log.info("streaming listens on %s", self._base)

    async def url(self, kind: str, request: Command | Forward) -> str:
        """A URL for one session of `kind`: exec, attach or portforward.

        Raises `ResourceExhausted` while too many wait for their clients, `FailedPrecondition` as `start`.
        """
        await self.start()
        return f"{self._base}/{kind}/{self._tokens.issue((kind, request))}"

    async def aclose(self) -> None:
        """Listen no more, end every session and wait for it; idempotent."""
        if self._server is not None:
            self._server.close()
        await self._sessions.aclose()

    def _accepted(self, wire: Wire) -> None:
        if len(self._unknown) >= MAX_UNKNOWN:
            log.warning("streaming: %d connections have shown no token, the oldest is ended", MAX_UNKNOWN)
            oldest = next(iter(self._unknown))
            del self._unknown[oldest]
            oldest.abort()
        self._unknown[wire] = None
        self._sessions.spawn(self._serve(wire), name="streaming/session")

    async def _serve(self, wire: Wire) -> None:
        reader = HeadReader(wire)
        try:
            try:
                async with asyncio.timeout(HEAD_TIMEOUT_S):
                    head = await reader.read()
            finally:
                self._unknown.pop(wire, None)
            match self._asked(head):
                case Command() as asked:
                    await self._command(wire, reader, head, asked)
                case Forward() as asked:
                    await self._forward(wire, reader, head, asked)
        except Refused as refusal:
            reader.refuse(refusal)
        except (TimeoutError, Gone):
            log.debug("streaming: a client has left, or never asked")
        finally:
            wire.close()
            await wire.closed(FLUSH_TIMEOUT_S)

    def _asked(self, head: Head) -> Command | Forward:
        """What the token of a request stands for, which is used up. Raises `Refused`."""
        if head.method not in METHODS:
            raise Refused(405, f"{head.method}: is none of {', '.join(METHODS)}", [("Allow", ", ".join(METHODS))])
        if len(self._sessions) - len(self._unknown) > self._settings.max_connections:
            raise Refused(503, f"{self._settings.max_connections} connections are served; try again")
        kind, _, token = head.path.removeprefix("/").partition("/")
        found = self._tokens.redeem(token) if token else None
        if found is None or found[0] != kind:
            raise Refused(404, "there is no such session: a URL works once, and for a minute")
        return found[1]

    async def _command(self, wire: Wire, reader: HeadReader, head: Head, asked: Command) -> None:
        if head.upgrade == "websocket":
            protocol = handshake.websocket_protocol(head, command.WEBSOCKET_PROTOCOLS)
            connection = handshake.accept_websocket(reader, head, protocol)
            await command.over_websocket(wire, head.rest, connection, protocol, asked.options, asked.handler)
        else:
            protocol = handshake.spdy_protocol(head, command.SPDY_PROTOCOLS)
            handshake.accept_spdy(reader, protocol)
            limit_s = self._settings.creation_timeout_s
            await command.over_spdy(wire, head.rest, protocol, asked.options, asked.handler, creation_timeout_s=limit_s)

    async def _forward(self, wire: Wire, reader: HeadReader, head: Head, asked: Forward) -> None:
        limit_s = self._settings.creation_timeout_s
        if head.upgrade != "websocket":
            handshake.accept_spdy(reader, handshake.spdy_protocol(head, forward.SPDY_PROTOCOLS))
            await forward.over_spdy(wire, head.rest, asked.dial, creation_timeout_s=limit_s)
            return
        protocol = handshake.websocket_protocol(head, forward.WEBSOCKET_PROTOCOLS)
        if protocol != forward.TUNNEL and not asked.ports:
            raise Refused(400, f"the request names no port, which a WebSocket needs that is no {forward.TUNNEL}")
        connection = handshake.accept_websocket(reader, head, protocol)
        if protocol == forward.TUNNEL:
            await forward.over_tunnel(wire, head.rest, connection, asked.dial, creation_timeout_s=limit_s)
        else:
            await forward.over_websocket(wire, head.rest, connection, protocol, asked.ports, asked.dial)


def _host(address: str) -> str:
    """The host of a URL for an address that is listened on; every address is also that of this machine."""
    literal = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 # compared, not bound
    return f"[{literal}]" if ":" in literal else literal


def _tls(settings: StreamingSection) -> ssl.SSLContext | None:
    if not settings.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:  # SSLError is one
        raise errors.FailedPrecondition(
            f"streaming: {settings.tls_cert} and {settings.tls_key}: cannot be loaded: {error}"
        ) from error
    return context
