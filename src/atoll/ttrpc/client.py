"""The client: calls and streams over one connection.

A connection carries any number of calls at a time; nothing orders their answers. When it ends, every
waiting call fails with `Unavailable` whose text ends in `ttrpc: closed`; there is no reconnect, since only the caller
knows what may be repeated.
"""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from atoll import errors
from atoll.ttrpc import address as addresses
from atoll.ttrpc import codec
from atoll.ttrpc.connection import ClientConnection, ClientEvent, MessageReceived, ResponseReceived, StreamFailed
from atoll.ttrpc.inbox import Inbox
from atoll.ttrpc.transport import FramedProtocol, closed_error

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0

ResponseT = TypeVar("ResponseT", bound=Message)
Outgoing: TypeAlias = Message | bytes


class _Pending(Protocol):
    """One open stream as its connection sees it."""

    def event(self, event: ClientEvent) -> None: ...

    def fail(self, error: errors.AtollError) -> None: ...


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


class _ClientProtocol(FramedProtocol):
    """Hands each event to the stream it belongs to."""

    def __init__(self, peer: str) -> None:
        super().__init__()
        self.peer = peer
        self.machine = ClientConnection()
        self.pending: dict[int, _Pending] = {}
        self.ended = False

    def received(self, data: memoryview) -> None:
        for event in self.machine.receive_data(data):
            pending = self.pending.get(event.stream_id)
            if pending is not None:
                pending.event(event)
                if type(event) is not MessageReceived:
                    self.pending.pop(event.stream_id, None)

    def lost(self) -> None:
        self.end()

    def end(self) -> None:
        """Fail whatever waits, now; no call starts afterwards."""
        self.ended = True
        pending, self.pending = self.pending, {}
        for waiting in pending.values():
            waiting.fail(closed_error(self.peer))

    def check(self) -> None:
        """Raise `Unavailable` where the connection is over."""
        if self.ended or not self.is_connected:
            raise closed_error(self.peer)

    def forget(self, stream_id: int) -> None:
        """Drop a stream on this side; its number is not used again."""
        self.pending.pop(stream_id, None)
        self.machine.forget(stream_id)


async def _wait_writable(protocol: _ClientProtocol, deadline: float | None, what: str) -> None:
    """Return once the transport takes a frame; the connection is up then."""
    if protocol.must_wait:
        try:
            async with asyncio.timeout_at(deadline):
                await protocol.drained()
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{what}: the peer took no request before the deadline") from None
    protocol.check()


def _encode(message: Outgoing) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _decode(payload: bytes, response_type: type[ResponseT], what: str) -> ResponseT:
    try:
        return response_type.FromString(payload)
    except DecodeError as error:
        raise errors.Internal(f"{what}: response cannot be decoded: {error}") from error


class Client:
    """One connection to a ttrpc server; made by `connect` or `from_socket`, ended by `aclose`.

    Safe to use from any number of tasks of one event loop.
    """

    def __init__(self, protocol: _ClientProtocol) -> None:
        """Not for callers: use `connect` or `from_socket`."""
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()

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
            _, protocol = await loop.create_connection(lambda: _ClientProtocol(peer), sock=connection)
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
            await _wait_writable(protocol, deadline, f"{service}/{method}")
            timeout = None if deadline is None else max(deadline - self._loop.time(), 0.0)
        protocol.check()
        envelope = codec.encode_request(service, method, _encode(request), timeout_s=timeout, metadata=metadata)
        stream_id, frame = protocol.machine.open(envelope)
        call = _Call(self._loop)
        protocol.pending[stream_id] = call
        timer = None
        if deadline is not None:
            late = errors.DeadlineExceeded(f"{service}/{method}: no answer before the deadline")
            timer = self._loop.call_at(deadline, call.fail, late)
        try:
            protocol.write(frame)
            payload = await call.waiter
        finally:
            if timer is not None:
                timer.cancel()
            protocol.forget(stream_id)
        return _decode(payload, response_type, f"{service}/{method}")

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
        await _wait_writable(self._protocol, deadline, what)
        remaining = None if deadline is None else deadline - self._loop.time()
        if remaining is not None and remaining <= 0:
            raise errors.DeadlineExceeded(f"{what}: the deadline has passed")
        payload = b"" if request is None else _encode(request)
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


class ClientStream(Generic[ResponseT]):
    """A streaming call: send, close the sending side, iterate over what comes.

    Iteration ends when the server ended the stream well and raises what it failed with, also on a later
    `receive`. Messages wait unread in a buffer with a bound for the whole connection: a reader that is late holds
    up every call of this connection.
    """

    def __init__(
        self,
        protocol: _ClientProtocol,
        stream_id: int,
        response_type: type[ResponseT],
        *,
        what: str,
        sending: bool,
        single: bool,
    ) -> None:
        """Not for callers: use `Client.stream`."""
        self._protocol = protocol
        self._stream_id = stream_id
        self._response_type = response_type
        self._what = what
        self._sending = sending
        self._single = single
        self._inbox = Inbox(protocol)
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, deadline: float | None) -> None:
        """Begin to keep the deadline (loop time)."""
        self._deadline = deadline
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._protocol.forget(self._stream_id)
        late = errors.DeadlineExceeded(f"{self._what}: the stream did not end before the deadline")
        self._inbox.end(late, at_once=True)

    def event(self, event: ClientEvent) -> None:
        """Take an event of this stream from the connection."""
        if type(event) is MessageReceived:
            self._inbox.put(event.payload)
            return
        if type(event) is ResponseReceived and (self._single or event.payload):
            self._inbox.put(event.payload)
        self._finish(event.error if type(event) is StreamFailed else None)

    def fail(self, error: errors.AtollError) -> None:
        """End with `error` after the messages that arrived before."""
        self._finish(error)

    def _finish(self, error: errors.AtollError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._inbox.end(error)

    async def send(self, message: Outgoing) -> None:
        """Send one message, after waiting while the connection is full.

        Raises what the stream failed with, and `FailedPrecondition` after `close_send` or the server's good end.
        """
        self._check_sending()
        payload = _encode(message)
        await _wait_writable(self._protocol, self._deadline, self._what)
        self._check_sending()
        self._protocol.write(self._protocol.machine.send_data(self._stream_id, payload))

    def _check_sending(self) -> None:
        if self._inbox.error is not None:
            raise type(self._inbox.error)(self._inbox.error.message)
        if self._inbox.ended:
            raise errors.FailedPrecondition(f"{self._what}: the server has ended the stream")
        if not self._sending:
            raise errors.FailedPrecondition(f"{self._what}: the sending side is closed")

    async def close_send(self) -> None:
        """Tell the server that no message follows; idempotent, and nothing after the stream's end."""
        if not self._sending:
            return
        self._sending = False
        if self._inbox.ended:
            return
        await _wait_writable(self._protocol, self._deadline, self._what)
        self._protocol.write(self._protocol.machine.close_send(self._stream_id))

    async def receive(self) -> ResponseT | None:
        """The next message, or None when the stream has ended well."""
        payload = await self._inbox.get()
        return None if payload is None else _decode(payload, self._response_type, self._what)

    async def result(self) -> ResponseT:
        """Close the sending side and return the one response of a client-streaming call."""
        await self.close_send()
        response = await self.receive()
        if response is None:
            raise errors.Internal(f"{self._what}: the server ended the stream without a response")
        return response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ResponseT:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    def close(self) -> None:
        """Forget the stream: what still comes is dropped, waiting readers get `Cancelled`; idempotent.

        A sending side that is open is closed, so that the server's handler sees an end.
        """
        if self._sending and not self._inbox.ended:
            self._protocol.write(self._protocol.machine.close_send(self._stream_id))
        self._sending = False
        self._protocol.forget(self._stream_id)
        if self._timer is not None:
            self._timer.cancel()
        self._inbox.end(errors.Cancelled(f"{self._what}: the stream was closed here"))
        self._inbox.discard()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
