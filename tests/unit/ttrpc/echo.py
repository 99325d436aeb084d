"""A small service of every shape, and a raw peer that speaks in frames."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

from atoll import errors
from atoll.api import ttrpc_pb2
from atoll.ttrpc import codec
from atoll.ttrpc.service import CallContext, Method, Send

SERVICE = "test.Echo"


class Echo:
    """Handlers of each shape; remembers what happened to those that were cancelled."""

    def __init__(self) -> None:
        self.contexts: list[CallContext] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.released = asyncio.Event()
        self.sent = 0

    async def say(self, request: StringValue, context: CallContext) -> StringValue:
        self.contexts.append(context)
        return StringValue(value=request.value)

    async def fail(self, request: StringValue, context: CallContext) -> StringValue:
        raise errors.NotFound(f"sandbox {request.value}: not found")

    async def crash(self, request: StringValue, context: CallContext) -> StringValue:
        raise ValueError("secret detail")

    async def nothing(self, request: StringValue, context: CallContext) -> None:
        return None

    async def huge(self, request: StringValue, context: CallContext) -> StringValue:
        return StringValue(value="x" * codec.MAX_PAYLOAD_BYTES)

    async def hang(self, request: StringValue, context: CallContext) -> StringValue:
        self.contexts.append(context)
        self.started.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return StringValue(value="released")

    async def repeat(self, request: StringValue, context: CallContext, send: Send) -> None:
        for number in range(int(request.value)):
            await send(StringValue(value=str(number)))

    async def flood(self, request: StringValue, context: CallContext, send: Send) -> None:
        chunk = StringValue(value="x" * int(request.value))
        try:
            while True:
                await send(chunk)
                self.sent += 1
                self.started.set()
                await asyncio.sleep(0)
        except (asyncio.CancelledError, errors.Unavailable):
            self.cancelled.set()
            raise

    async def break_off(self, request: StringValue, context: CallContext, send: Send) -> None:
        await send(StringValue(value="first"))
        raise errors.Aborted("lost the race")

    async def join(self, requests: AsyncIterator[StringValue], context: CallContext) -> StringValue:
        return StringValue(value=",".join([request.value async for request in requests]))

    async def chat(self, requests: AsyncIterator[StringValue], context: CallContext, send: Send) -> None:
        async for request in requests:
            await send(StringValue(value=request.value.upper()))

    async def deaf(self, requests: AsyncIterator[StringValue], context: CallContext, send: Send) -> None:
        await self.hang(StringValue(), context)

    def methods(self) -> dict[str, Method]:
        unary = ("say", "fail", "crash", "nothing", "huge", "hang")
        methods = {name: Method(handler=getattr(self, name), request_type=StringValue) for name in unary}
        for name in ("repeat", "flood", "break_off"):
            methods[name] = Method(handler=getattr(self, name), request_type=StringValue, server_streaming=True)
        methods["join"] = Method(handler=self.join, request_type=StringValue, client_streaming=True)
        for name in ("chat", "deaf"):
            methods[name] = Method(
                handler=getattr(self, name), request_type=StringValue, client_streaming=True, server_streaming=True
            )
        return methods


def request_frame(stream_id: int, method: str, message: Message | bytes = b"", flags: int = 0) -> bytes:
    """A request to the echo service as it goes over the wire."""
    payload = message if isinstance(message, bytes) else message.SerializeToString()
    return codec.encode_frame(stream_id, codec.REQUEST, flags, codec.encode_request(SERVICE, method, payload))


def status_of(frame: codec.FrameReceived) -> int:
    """The status code of a response frame."""
    assert frame.type == codec.RESPONSE
    return ttrpc_pb2.Response.FromString(frame.payload).status.code


class RawPeer:
    """A socket that reads and writes frames and keeps no rule."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._decoder = codec.FrameDecoder()
        self._frames: list[codec.FrameEvent] = []

    @classmethod
    def connect(cls, path: Path) -> RawPeer:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(path))
        return cls(connection)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def read_frame(self) -> codec.FrameReceived:
        while not self._frames:
            data = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 16)
            if not data:
                raise EOFError
            self._frames += self._decoder.receive_data(data)
        frame = self._frames.pop(0)
        assert isinstance(frame, codec.FrameReceived)
        return frame

    def close_sending(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def write_until_it_stalls(self, data: bytes, *, for_s: float) -> None:
        """Write `data` again and again until the peer takes no more."""
        try:
            async with asyncio.timeout(for_s):
                while True:
                    await self.write(data)
        except TimeoutError:
            return
