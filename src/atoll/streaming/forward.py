"""Port forward: connections to ports of a pod, each a pair of a data and an error stream.

Over SPDY the client opens the pairs as it needs them (headers `port`, `streamType`, `requestID`). Over WebSocket the
ports are those of the request: channel 2n has the data of the n-th, 2n + 1 its error, and each begins with the port,
two bytes, the lower first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from wsproto.connection import Connection as WebSocketConnection

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.streaming.channels import MAX_MESSAGE_BYTES, Channels
from atoll.streaming.flow import Chunk, Gone, Inflow
from atoll.streaming.spdy import Session, Stream
from atoll.streaming.spdy_codec import Reason
from atoll.streaming.tunnel import tunnelled
from atoll.streaming.websocket import Socket
from atoll.streaming.wire import Wire

log = logging.getLogger(__name__)

SPDY_PROTOCOLS = ("portforward.k8s.io",)
TUNNEL = "SPDY/3.1+portforward.k8s.io"
WEBSOCKET_PROTOCOLS = (TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io")
READ_BYTES = 256 << 10
READS_A_TURN = 4
ENDED_BY_POD_S = 1.0
"""Of silence after the pod's end of a connection; the field's value, and old clients wait for it."""
ENDED_BY_CLIENT_S = 60.0
"""Of silence after the client's end of it: the pod may still have an answer."""
MAX_PORTS = 64
"""Of one WebSocket."""

Dial = Callable[[int], Awaitable[socket.socket]]
"""A connection to a port of the pod, not blocking; raises an error of ours that says why there is none."""


class Target(Protocol):
    """The data stream of a pair, as it is written."""

    async def room(self) -> int:
        """Wait until something may be sent; how much. Raises `Gone`."""
        ...

    def send(self, chunk: Chunk) -> None:
        """Send at once what `room` allowed."""
        ...

    async def end(self) -> None: ...


# One connection


class Relay:
    """Bytes between a data stream and a connection to the pod; nothing is held while the other side is full."""

    def __init__(self, inflow: Inflow, target: Target, connection: socket.socket) -> None:
        self._inflow = inflow
        self._target = target
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()

    async def run(self) -> None:
        """Until both directions have ended, or one has and the other is silent; the connection is closed.

        Raises `Gone` where the client leaves, `OSError` for what the connection does.
        """
        try:
            async with TaskOwner("forward") as tasks:
                out = tasks.spawn(_outcome(self._to_client()), name="forward/to client")
                into = tasks.spawn(_outcome(self._to_pod()), name="forward/to pod")
                await asyncio.wait({out, into}, return_when=asyncio.FIRST_COMPLETED)
                for done in (out, into):
                    if done.done() and (fault := done.result()) is not None:
                        raise fault
                await self._silence(into if out.done() else out, ENDED_BY_POD_S if out.done() else ENDED_BY_CLIENT_S)
        finally:
            self._connection.close()

    async def _silence(self, other: asyncio.Task[Exception | None], limit_s: float) -> None:
        while not other.done():
            left = self._moved + limit_s - self._loop.time()
            if left <= 0:
                return
            await asyncio.wait({other}, timeout=left)

    async def _to_client(self) -> None:
        connection, target = self._connection, self._target
        reads = 0
        while True:
            allowed = await target.room()
            try:
                data = connection.recv(min(allowed, READ_BYTES))
            except BlockingIOError:
                await self._readable()
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                break
            target.send(data)
            self._moved = self._loop.time()
            reads += 1
            if not reads % READS_A_TURN:
                await asyncio.sleep(0)
        await target.end()

    async def _readable(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        fd = self._connection.fileno()
        self._loop.add_reader(fd, _wake, waiter)
        try:
            await waiter
        finally:
            self._loop.remove_reader(fd)

    async def _to_pod(self) -> None:
        while chunks := await self._inflow.read_chunks():
            self._moved = self._loop.time()
            try:
                await self._send(chunks)
            except (BrokenPipeError, ConnectionResetError):  # the pod takes no more: what it says is still passed on
                self._inflow.discard()
                return
            self._moved = self._loop.time()
        with contextlib.suppress(OSError):  # it has ended meanwhile
            self._connection.shutdown(socket.SHUT_WR)

    async def _send(self, chunks: list[Chunk]) -> None:
        """All of them: at once as far as there is room, without putting them together."""
        try:
            sent = self._connection.sendmsg(chunks)
        except BlockingIOError:
            sent = 0
        for chunk in chunks:
            if sent < len(chunk):
                await self._loop.sock_sendall(self._connection, memoryview(chunk)[sent:])
            sent = max(sent - len(chunk), 0)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _outcome(work: Awaitable[None]) -> Exception | None:
    """How a direction ended, as a value: the other may still go on."""
    try:
        await work
    except (Gone, OSError) as error:
        return error
    return None


async def _forward(port: int, dial: Dial, inflow: Inflow, target: Target) -> str:
    """One connection from its dialling to its end; what went wrong, for the client."""
    try:
        await Relay(inflow, target, await dial(port)).run()
    except errors.AtollError as error:
        return str(error)
    except OSError as error:
        return f"port {port}: {error.strerror or error}"
    except Gone:
        log.debug("streaming: a client left a connection to port %d", port)
    return ""


# SPDY


@dataclass(slots=True)
class _Pair:
    port: int
    data: Stream | None = None
    error: Stream | None = None
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, stream: Stream) -> bool:
        """False where there is such a stream already."""
        if stream.headers["streamtype"] == "data":
            taken, self.data = self.data is not None, self.data or stream
        else:
            taken, self.error = self.error is not None, self.error or stream
        if self.data is not None and self.error is not None:
            self.complete.set()
        return not taken


class Pairs:
    """The pairs of one session; each is served by a task of `tasks`."""

    def __init__(self, dial: Dial, tasks: TaskOwner, creation_timeout_s: float) -> None:
        self._dial = dial
        self._tasks = tasks
        self._creation_timeout_s = creation_timeout_s
        self._pairs: dict[str, _Pair] = {}

    def opened(self, stream: Stream) -> Reason | None:
        """Match a new stream with its other; see `spdy.Opened`."""
        port, kind = stream.headers.get("port", ""), stream.headers.get("streamtype", "")
        is_number = port.isascii() and port.isdigit() and len(port) <= 5
        if kind not in {"data", "error"} or not is_number or not 0 < int(port) < 65536:
            return Reason.REFUSED_STREAM
        # Clients that name no request open the error stream first, the data stream right behind it.
        request = stream.headers.get("requestid") or f"of {stream.id - (2 if kind == 'data' else 0)}"
        pair = self._pairs.get(request)
        if pair is None:
            pair = self._pairs[request] = _Pair(int(port))
            pair.add(stream)
            self._tasks.spawn(self._serve(request, pair), name=f"forward/{request[:40]}")
        elif not pair.add(stream):
            return Reason.STREAM_IN_USE
        return None

    async def _serve(self, request: str, pair: _Pair) -> None:
        try:
            async with asyncio.timeout(self._creation_timeout_s):
                await pair.complete.wait()
        except TimeoutError:
            for stream in (pair.data, pair.error):
                if stream is not None:
                    stream.reset()
            return
        finally:
            del self._pairs[request]
        assert pair.data is not None
        assert pair.error is not None
        pair.error.inflow.discard()
        fault = await _forward(pair.port, self._dial, pair.data.inflow, pair.data)
        if fault:
            log.info("streaming: port forward: %s", fault)
            with contextlib.suppress(Gone):
                await pair.error.write(f"error forwarding port {pair.port}: {fault}".encode())
            pair.data.reset()
        await pair.error.end()
        await pair.data.end()
        for stream in (pair.error, pair.data):  # what the client did not end is over all the same
            if not stream.inflow.is_over:
                stream.reset()


async def over_spdy(wire: Wire, rest: bytes, dial: Dial, *, creation_timeout_s: float) -> None:
    """Serve a session until its client leaves."""
    async with TaskOwner("port forward") as tasks:
        session = Session(wire, Pairs(dial, tasks, creation_timeout_s).opened)
        wire.on_lost(session.lost)
        wire.start(session.receive, rest)
        wire.resume("head")
        try:
            await session.gone.wait()
        finally:
            session.close()


async def over_tunnel(
    wire: Wire, rest: bytes, connection: WebSocketConnection, dial: Dial, *, creation_timeout_s: float
) -> None:
    """The same inside a WebSocket."""
    async with TaskOwner("port forward") as tasks:
        session = tunnelled(Socket(wire, connection), Pairs(dial, tasks, creation_timeout_s).opened, rest)
        wire.resume("head")
        try:
            await session.gone.wait()
        finally:
            session.close()


# WebSocket


class _DataChannel:
    """The data channel of a port as a `Target`."""

    def __init__(self, channels: Channels, number: int) -> None:
        self._channels = channels
        self._number = number

    async def room(self) -> int:
        await self._channels.room()
        return MAX_MESSAGE_BYTES

    def send(self, chunk: Chunk) -> None:
        self._channels.send(self._number, chunk)

    async def end(self) -> None:
        """The protocol has no word for it."""


async def over_websocket(
    wire: Wire, rest: bytes, connection: WebSocketConnection, protocol: str, ports: tuple[int, ...], dial: Dial
) -> None:
    """Serve one connection for each of `ports`, until all have ended or the client leaves."""
    websocket = Socket(wire, connection)
    numbers = range(0, 2 * len(ports), 2)
    channels = Channels(websocket, readable=numbers, is_base64="base64" in protocol)
    wire.start(channels.receive, rest)
    wire.resume("head")
    try:
        async with TaskOwner("port forward") as tasks:
            for number, port in zip(numbers, ports, strict=True):
                for channel in (number, number + 1):
                    channels.send(channel, struct.pack("<H", port))
            served = [
                tasks.spawn(_serve_channel(channels, number, port, dial), name=f"forward/{port}")
                for number, port in zip(numbers, ports, strict=True)
            ]
            await asyncio.wait(served)
        websocket.say_close()
        await wire.closed(ENDED_BY_CLIENT_S)
    finally:
        websocket.say_close()
        wire.close()


async def _serve_channel(channels: Channels, number: int, port: int, dial: Dial) -> None:
    fault = await _forward(port, dial, channels.inflow(number), _DataChannel(channels, number))
    channels.inflow(number).discard()
    if fault:
        with contextlib.suppress(Gone):
            await channels.outlet(number + 1).write(f"error forwarding port {port}: {fault}".encode())
