"""The served side of one connection: its calls, their deadlines, their one answer each.

A call is answered exactly once, by whichever comes first: its handler's result or error, its deadline, a rule that the
client broke. Its handler is cancelled when somebody else answers and when the peer goes. The call
counts against `MAX_CALLS_PER_CONNECTION` until its handler has really ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Protocol, Self

from google.protobuf.message import DecodeError, Message

from atoll import errors
from atoll.api import ttrpc_pb2
from atoll.concurrency import TaskOwner
from atoll.ttrpc import address as addresses
from atoll.ttrpc import codec
from atoll.ttrpc.connection import HalfClosed, MessageReceived, RequestReceived, ServerConnection, StreamRejected
from atoll.ttrpc.inbox import Inbox
from atoll.ttrpc.service import CallContext, Method
from atoll.ttrpc.transport import FramedProtocol, closed_error

MAX_CALLS_PER_CONNECTION = 1024

log = logging.getLogger(__name__)

Services = Mapping[str, Mapping[str, Method]]


class Owner(Protocol):
    """What a connection needs from its server."""

    @property
    def services(self) -> Services: ...

    @property
    def tasks(self) -> TaskOwner: ...

    @property
    def draining(self) -> bool: ...

    @property
    def peer_uid(self) -> int | None: ...

    def joined(self, connection: ServedConnection) -> None: ...

    def left(self, connection: ServedConnection) -> None: ...


class ServedConnection(FramedProtocol):
    """Reads requests, runs their handlers as tasks, writes their answers."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self._owner = owner
        self.machine = ServerConnection()
        self.calls: dict[int, Call] = {}
        self.peer: addresses.PeerCredentials | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        try:
            self.peer = addresses.peer_credentials(self.socket())
        except OSError:
            self.peer = None  # not a unix socket
        wanted = self._owner.peer_uid
        if wanted is not None and (self.peer is None or self.peer.uid != wanted):
            log.warning("ttrpc connection dropped: peer %s is not uid %d", self.peer, wanted)
            self.abort()
            return
        self._owner.joined(self)

    def received(self, data: memoryview) -> None:
        for event in self.machine.receive_data(data):
            if type(event) is RequestReceived:
                self._begin(event)
            elif type(event) is StreamRejected:
                self._reject(event)
            elif type(event) is MessageReceived:
                call = self.calls.get(event.stream_id)
                if call is not None:
                    call.message(event.payload)
            elif type(event) is HalfClosed:
                call = self.calls.get(event.stream_id)
                if call is not None:
                    call.inbox.end()

    def _begin(self, event: RequestReceived) -> None:
        request = event.request
        service = self._owner.services.get(request.service)
        method = service.get(request.method) if service is not None else None
        error: errors.AtollError | None = None
        if self._owner.draining:
            error = errors.Unavailable("the server is shutting down")
        elif service is None:
            error = errors.Unimplemented(f"service {request.service}")
        elif method is None:
            error = errors.Unimplemented(f"method {request.method} of service {request.service}")
        elif len(self.calls) >= MAX_CALLS_PER_CONNECTION:
            error = errors.ResourceExhausted(f"{MAX_CALLS_PER_CONNECTION} calls are running on this connection")
        if error is not None or method is None:
            self.answer_error(event.stream_id, error or errors.Internal("no method"))
            return
        call = Call(self, event.stream_id, method, request)
        self.calls[event.stream_id] = call
        call.start(self._owner.tasks, event.more_follows)

    def _reject(self, event: StreamRejected) -> None:
        call = self.calls.get(event.stream_id)
        if call is not None and not call.answered:
            call.stop(event.error)
        else:
            self.answer_error(event.stream_id, event.error)

    def answer_error(self, stream_id: int, error: errors.AtollError) -> None:
        """Write the answer of a call that failed."""
        self.write(self.machine.respond_error(stream_id, error))

    def cancelled_error(self, what: str) -> errors.AtollError:
        """Why a handler was cancelled while its peer still waits."""
        if self._owner.draining:
            return errors.Unavailable(f"{what}: the server is shutting down")
        return errors.Cancelled(f"{what}: the call was cancelled")

    def forget(self, call: Call) -> None:
        """The handler of `call` has ended."""
        self.calls.pop(call.stream_id, None)
        if self._owner.draining and not self.calls:
            self.close()

    def cancel_calls(self) -> None:
        """Cancel every handler."""
        for call in list(self.calls.values()):
            call.cancel()

    def pause_writing(self) -> None:
        # Whoever does not read its answers is not read from either: answers must not pile up.
        super().pause_writing()
        self.block_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unblock_reading()

    def lost(self) -> None:
        self.cancel_calls()
        self._owner.left(self)


class Call:
    """One call from its request to the end of its handler."""

    __slots__ = ("_connection", "_method", "_request", "_task", "_timer", "answered", "context", "inbox", "stream_id")

    def __init__(
        self, connection: ServedConnection, stream_id: int, method: Method, request: ttrpc_pb2.Request
    ) -> None:
        self.stream_id = stream_id
        self.answered = False
        self.inbox = Inbox(connection)
        self._connection = connection
        self._method = method
        self._request = request
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        deadline = None
        if request.timeout_nano:
            deadline = asyncio.get_running_loop().time() + request.timeout_nano / 1e9
        self.context = CallContext(
            request.service, request.method, codec.metadata_of(request), deadline, connection.peer
        )

    def start(self, tasks: TaskOwner, more_follows: bool) -> None:
        """Run the handler as a task of `tasks` and keep the deadline."""
        payload = self._request.payload
        if self._method.client_streaming:
            if payload:
                self.inbox.put(payload)
            if not more_follows:
                self.inbox.end()
        self._task = tasks.spawn(self._run(), name=f"ttrpc/{self.context.method}")
        self._task.add_done_callback(self._ended)
        if self.context.deadline is not None:
            # After the handler's first step: most have answered by then, and a timer costs more than they do.
            asyncio.get_running_loop().call_soon(self._arm, self.context.deadline)

    def message(self, payload: bytes) -> None:
        """Take a message of the client."""
        if self._method.client_streaming:
            self.inbox.put(payload)
        elif not self.answered:
            self.stop(errors.InvalidArgument(f"{self.context.method} takes a single request"))

    def _arm(self, deadline: float) -> None:
        if not self.answered:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        self.stop(errors.DeadlineExceeded(f"{self.context.service}/{self.context.method}: the deadline has passed"))

    def stop(self, error: errors.AtollError) -> None:
        """Answer `error` in place of the handler, and cancel it."""
        self._fail(error)
        self.cancel()

    def cancel(self) -> None:
        """Cancel the handler."""
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.answered:  # cancelled from outside, perhaps before its first step
            self._fail(self._connection.cancelled_error(f"{self.context.service}/{self.context.method}"))
        self.inbox.end(at_once=True)
        self._connection.forget(self)

    async def _run(self) -> None:
        try:
            response = await self._invoke()
            if not self.answered:
                self._finish(response)
        except errors.AtollError as error:
            self._fail(error)
        except Exception:  # the boundary: a handler's fault ends its call and nothing else
            fault = os.urandom(6).hex()
            log.exception("ttrpc %s/%s failed, error id %s", self.context.service, self.context.method, fault)
            self._fail(errors.Internal(f"{self.context.service}/{self.context.method}: internal error, id {fault}"))

    async def _invoke(self) -> Message | None:
        method = self._method
        request = Incoming(self) if method.client_streaming else self.decode(self._request.payload)
        if method.server_streaming:
            return await method.handler(request, self.context, self._send)
        return await method.handler(request, self.context)

    def decode(self, payload: bytes) -> Message:
        """A request message; `InvalidArgument` where its bytes are not of the method's type."""
        try:
            return self._method.request_type.FromString(payload)
        except DecodeError as error:
            raise errors.InvalidArgument(f"{self.context.method}: request cannot be decoded: {error}") from error

    async def _send(self, message: Message) -> None:
        """Send one message of the stream; raises `Unavailable` when the peer has gone or the call is over."""
        payload = message.SerializeToString()
        await self._connection.drained()
        if self.answered or not self._connection.is_connected:
            raise closed_error(self.context.method)
        self._connection.write(self._connection.machine.send_data(self.stream_id, payload))

    def _finish(self, response: Message | None) -> None:
        machine = self._connection.machine
        if self._method.server_streaming:
            frame = machine.end_stream(self.stream_id)
        elif response is None:
            raise errors.Internal(f"{self.context.service}/{self.context.method}: the handler returned nothing")
        else:
            frame = machine.respond(self.stream_id, response.SerializeToString())
        self.answered = True
        self._connection.write(frame)

    def _fail(self, error: errors.AtollError) -> None:
        if not self.answered:
            self.answered = True
            self._connection.answer_error(self.stream_id, error)


class Incoming:
    """The messages of a client-streaming call, as its handler iterates over them."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        payload = await self._call.inbox.get()
        if payload is None:
            raise StopAsyncIteration
        return self._call.decode(payload)
