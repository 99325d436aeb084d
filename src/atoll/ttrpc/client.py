"""The client: calls and streams over one connection.

A connection carries any number of calls at a time; nothing orders their answers. When it ends, every
waiting call fails with `Unavailable` whose text ends in `ttrpc: closed`; there is no reconnect, since only the caller
knows what may be repeated.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

from atoll import errors
from atoll.ttrpc import address as addresses
from atoll.ttrpc import codec
from atoll.ttrpc.connection import ClientEvent, ResponseReceived, StreamFailed
from atoll.ttrpc.stream import ClientProtocol, ClientStream, Outgoing, ResponseT, decode, encode, wait_writable

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0


class _Call:
    """A unary call that waits for its response."""

    __slots__ = ("waiter",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiter: asyncio.Future[bytes] = loop.create_future()

    def event(self, event: ClientEvent) -> None:
        if self.waiter.done():
            return
        if type(event) is ResponseReceived:
            self.waiter.set_result(event.payload)
        elif type(event) is StreamFailed:
            self.waiter.set_exception(event.error)

    def fail(self, error: errors.AtollError) -> None:
        if not self.waiter.done():
            self.waiter.set_exception(error)


class Client:
    """One connection to a ttrpc server; made by `connect` or `from_socket`, ended by `aclose`.

    Safe to use from any number of tasks of one event loop.
    """

    def __init__(self, protocol: ClientProtocol) -> None:
        """Not for callers: use `connect` or `from_socket`."""
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self.whose: Callable[[], str] | None = None
        """Who the peer is, in words, for errors; asked when there is one."""

    @classmethod
    async def connect(cls, address: str, *, timeout: float = CONNECT_TIMEOUT_S) -> Client:
        """Connect to a unix socket named as `address` describes, within `timeout` seconds.

        `Unavailable` at once where nobody listens; `InvalidArgument` for an address of another kind.
        """
        connection = await addresses.connect(address, timeout_s=timeout)
        return await cls.from_socket(connection, peer=address)

    @classmethod
    async def from_socket(cls, connection: socket.socket, *, peer: str = "peer") -> Client:
        """A client on a connected stream socket, which it owns from now on; `peer` names it in errors."""
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            _, protocol = await loop.create_connection(lambda: ClientProtocol(peer), sock=connection)
        except BaseException:
            connection.close()
            raise
        return cls(protocol)

    @property
    def closed(self) -> asyncio.Future[None]:
        """A future that is done when the connection is over; each access gives a new one, so cancelling is harmless."""
        return asyncio.shield(self._protocol.gone)

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over or being closed."""
        return self._protocol.ended or not self._protocol.is_connected

    @property
    def peer_credentials(self) -> addresses.PeerCredentials:
        """Who serves the other end; raises `Unavailable` once closed."""
        return addresses.peer_credentials(self._protocol.socket())

    async def call(
        self,
        service: str,
        method: str,
        request: Outgoing,
        response_type: type[ResponseT],
        *,
        timeout: float | None = None,
        metadata: codec.Metadata | None = None,
    ) -> ResponseT:
        """Make a unary call.

        `timeout` seconds are sent as the server's deadline and kept here: `DeadlineExceeded`. A cancelled
        caller stops waiting at once; ttrpc has no way to tell the server. A failure is raised as the
        kind its status code names; `Unavailable` ending in `ttrpc: closed` means the connection ended and the call
        may or may not have been served.
        """
        protocol = self._protocol
        deadline = None
        if timeout is not None:
            deadline = self._loop.time() + timeout
            if timeout <= 0:
                raise errors.DeadlineExceeded(f"{service}/{method}: the deadline has passed")
        if protocol.must_wait:
            await wait_writable(protocol, deadline, f"{service}/{method}")
            timeout = None if deadline is None else max(deadline - self._loop.time(), 0.0)
        protocol.check()
        envelope = codec.encode_request(service, method, encode(request), timeout_s=timeout, metadata=metadata)
        stream_id, frame = protocol.machine.open(envelope)
        call = _Call(self._loop)
        protocol.pending[stream_id] = call
        timer = None
        if deadline is not None:
            timer = self._loop.call_at(deadline, self._expire, call, f"{service}/{method}")
        try:
            protocol.write(frame)
            payload = await call.waiter
        finally:
            if timer is not None:
                timer.cancel()
            protocol.forget(stream_id)
        return decode(payload, response_type, f"{service}/{method}")

    def _expire(self, call: _Call, what: str) -> None:
        who = f"{self.whose()}: " if self.whose is not None else ""
        call.fail(errors.DeadlineExceeded(f"{who}{what}: no answer before the deadline"))

    async def stream(
        self,
        service: str,
        method: str,
        response_type: type[ResponseT],
        *,
        request: Outgoing | None = None,
        client_streaming: bool = False,
        server_streaming: bool = False,
        timeout: float | None = None,
        metadata: codec.Metadata | None = None,
    ) -> ClientStream[ResponseT]:
        """Open a stream of the kind the method is declared with.

        Without `client_streaming`, `request` is the one message sent; with it, `request` may be a first message.
        Close the stream (or leave its context) when done with it early.
        """
        what = f"{service}/{method}"
        if not client_streaming and not server_streaming:
            raise errors.InvalidArgument(f"{what}: a unary method is called, not streamed")
        if request is None and not client_streaming:
            raise errors.InvalidArgument(f"{what}: needs its request")
        deadline = None if timeout is None else self._loop.time() + timeout
        await wait_writable(self._protocol, deadline, what)
        remaining = None if deadline is None else deadline - self._loop.time()
        if remaining is not None and remaining <= 0:
            raise errors.DeadlineExceeded(f"{what}: the deadline has passed")
        payload = b"" if request is None else encode(request)
        envelope = codec.encode_request(service, method, payload, timeout_s=remaining, metadata=metadata)
        stream_id, frame = self._protocol.machine.open(
            envelope, client_streaming=client_streaming, server_streaming=server_streaming
        )
        stream = ClientStream(
            self._protocol, stream_id, response_type, what=what, sending=client_streaming, single=not server_streaming
        )
        self._protocol.pending[stream_id] = stream
        stream.start(deadline)
        self._protocol.write(frame)
        return stream

    def close(self) -> None:
        """Fail every waiting call and begin to close; idempotent."""
        self._protocol.end()
        self._protocol.close()

    async def aclose(self) -> None:
        """`close`, then wait until the socket is closed, at most `CLOSE_TIMEOUT_S`; idempotent."""
        self.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.closed
        except TimeoutError:
            self._protocol.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
