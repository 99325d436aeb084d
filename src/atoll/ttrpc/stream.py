"""The client's end of a connection and its streaming calls."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from atoll import errors
from atoll.ttrpc.connection import ClientConnection, ClientEvent, MessageReceived, ResponseReceived, StreamFailed
from atoll.ttrpc.inbox import Inbox
from atoll.ttrpc.transport import FramedProtocol, closed_error

ResponseT = TypeVar("ResponseT", bound=Message)
Outgoing: TypeAlias = Message | bytes


class Pending(Protocol):
    """One open stream as its connection sees it."""

    def event(self, event: ClientEvent) -> None:
        """Take an event of this stream."""
        ...

    def fail(self, error: errors.AtollError) -> None:
        """The connection is over."""
        ...


class ClientProtocol(FramedProtocol):
    """Hands each event to the stream it belongs to."""

    def __init__(self, peer: str) -> None:
        super().__init__()
        self.peer = peer
        self.machine = ClientConnection()
        self.pending: dict[int, Pending] = {}
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


async def wait_writable(protocol: ClientProtocol, deadline: float | None, what: str) -> None:
    """Return once the transport takes a frame; the connection is up then."""
    if protocol.must_wait:
        try:
            async with asyncio.timeout_at(deadline):
                await protocol.drained()
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{what}: the peer took no request before the deadline") from None
    protocol.check()


def encode(message: Outgoing) -> bytes:
    """A message as bytes; bytes pass."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def decode(payload: bytes, response_type: type[ResponseT], what: str) -> ResponseT:
    """The response of the call `what`; `Internal` where its bytes are not of that type."""
    try:
        return response_type.FromString(payload)
    except DecodeError as error:
        raise errors.Internal(f"{what}: response cannot be decoded: {error}") from error


class ClientStream(Generic[ResponseT]):
    """A streaming call: send, close the sending side, iterate over what comes.

    Iteration ends when the server ended the stream well and raises what it failed with, also on a later
    `receive`. Messages wait unread in a buffer with a bound for the whole connection: a reader that is late holds
    up every call of this connection.
    """

    def __init__(
        self,
        protocol: ClientProtocol,
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
        payload = encode(message)
        await wait_writable(self._protocol, self._deadline, self._what)
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
        await wait_writable(self._protocol, self._deadline, self._what)
        self._protocol.write(self._protocol.machine.close_send(self._stream_id))

    async def receive(self) -> ResponseT | None:
        """The next message, or None when the stream has ended well."""
        payload = await self._inbox.get()
        return None if payload is None else decode(payload, self._response_type, self._what)

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
