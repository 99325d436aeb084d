"""A request to upgrade: its head, what it asks for, and the answer that it gets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import h11
from wsproto.connection import Connection as WebSocket
from wsproto.connection import ConnectionType
from wsproto.utilities import generate_accept_token

from atoll.streaming.flow import Chunk
from atoll.streaming.wire import Wire

MAX_HEAD_BYTES = 16 << 10
PROTOCOL_HEADER = "X-Stream-Protocol-Version"
ACCEPTED_HEADER = "X-Accepted-Stream-Protocol-Versions"
WEBSOCKET_VERSION = "13"


class Refused(Exception):
    """The request gets an error of HTTP."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request without its body; `rest` is what came behind it."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    rest: bytes

    def values(self, name: str) -> list[str]:
        """The items of a header that is a list, in their order."""
        found = (value for key, value in self.headers if key == name.lower())
        return [item.strip() for value in found for item in value.split(",") if item.strip()]

    def value(self, name: str) -> str:
        """The first value of a header, empty where it is not there."""
        return next((value.strip() for key, value in self.headers if key == name.lower()), "")

    @property
    def upgrade(self) -> str:
        """What is asked for, in lower case; empty where it is no upgrade."""
        asked = "upgrade" in (item.lower() for item in self.values("connection"))
        return self.value("upgrade").lower() if asked else ""


class HeadReader:
    """Reads one request from a wire, and answers it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head: asyncio.Future[Head] = asyncio.get_running_loop().create_future()

    async def read(self) -> Head:
        """The head, after which the wire is held. Raises `Refused` for what is no request, and for one with a body."""
        self._wire.start(self._receive)
        self._wire.on_lost(self._lost)
        return await self._head

    def _lost(self) -> None:
        if not self._head.done():
            self._head.set_exception(Refused(400, "the connection ended"))

    def _receive(self, data: Chunk) -> Iterator[None]:
        yield from ()
        if self._head.done():
            return
        try:
            self._http.receive_data(bytes(data))
            self._events()
        except h11.RemoteProtocolError as error:
            self._head.set_exception(Refused(error.error_status_hint, str(error)))

    def _events(self) -> None:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._request = event
            elif isinstance(event, h11.Data):
                self._head.set_exception(Refused(400, "a request without a body was expected"))
                return
            elif isinstance(event, h11.EndOfMessage):
                self._wire.hold("head")
                head = self._made()
                if sum(len(name) + len(value) for name, value in head.headers) + len(head.path) > MAX_HEAD_BYTES:
                    self._head.set_exception(Refused(431, f"a request's head has at most {MAX_HEAD_BYTES} bytes"))
                else:
                    self._head.set_result(head)
                return
            else:
                return

    def _made(self) -> Head:
        request = self._request
        return Head(
            method=request.method.decode("latin-1"),
            path=request.target.decode("latin-1").partition("?")[0],
            headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers),
            rest=bytes(self._http.trailing_data[0]),
        )

    def switch(self, headers: Sequence[tuple[str, str]]) -> None:
        """Answer 101; what follows is no HTTP."""
        self._wire.send(self._http.send(h11.InformationalResponse(status_code=101, headers=list(headers))) or b"")

    def refuse(self, refusal: Refused) -> None:
        """Answer with an error, and close."""
        body = f"{refusal.message}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *refusal.headers,
        ]
        try:
            response = self._http.send(h11.Response(status_code=refusal.status, headers=headers)) or b""
            sent = response + (self._http.send(h11.Data(data=body)) or b"")
        except h11.LocalProtocolError:  # there was no request to answer
            sent = b""
        self._wire.send(sent)
        self._wire.close()


def spdy_protocol(head: Head, supported: Sequence[str]) -> str:
    """The protocol to speak over SPDY: the first of the client's that is supported, the last of ours where it names
    none, as the first clients did. Raises `Refused`."""
    wanted = head.values(PROTOCOL_HEADER)
    chosen = next((one for one in wanted if one in supported), "" if wanted else supported[-1])
    if not chosen:
        raise Refused(
            403,
            f"unable to upgrade: the client supports {wanted}, the server accepts {list(supported)}",
            [(ACCEPTED_HEADER, one) for one in supported],
        )
    if head.upgrade != "spdy/3.1":
        raise Refused(400, "unable to upgrade: a request with `Connection: Upgrade` and `Upgrade: SPDY/3.1` is needed")
    return chosen


def accept_spdy(reader: HeadReader, protocol: str) -> None:
    """Answer 101 for SPDY."""
    reader.switch((("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), (PROTOCOL_HEADER, protocol)))


def websocket_protocol(head: Head, supported: Sequence[str]) -> str:
    """The subprotocol to speak: the first of the client's that is supported; empty where it names none.

    Raises `Refused`, also for what is no proper WebSocket request (RFC 6455, section 4.2.1).
    """
    if head.method != "GET" or not head.value("sec-websocket-key"):
        raise Refused(400, "a WebSocket begins with GET and a Sec-WebSocket-Key")
    if head.value("sec-websocket-version") != WEBSOCKET_VERSION:
        raise Refused(426, "only version 13 of WebSocket is spoken", [("Sec-WebSocket-Version", WEBSOCKET_VERSION)])
    wanted = head.values("sec-websocket-protocol")
    chosen = next((one for one in wanted if one in supported), None)
    if wanted and chosen is None:
        raise Refused(403, f"the client offers the subprotocols {wanted}, the server knows {list(supported)}")
    return chosen or ""


def accept_websocket(reader: HeadReader, head: Head, protocol: str) -> WebSocket:
    """Answer 101 for WebSocket; the server's end of it, without extensions."""
    token = generate_accept_token(head.value("sec-websocket-key").encode("latin-1"))
    headers = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", token.decode())]
    if protocol:
        headers.append(("Sec-WebSocket-Protocol", protocol))
    reader.switch(headers)
    return WebSocket(ConnectionType.SERVER)
