"""Exec and attach: the streams of a process by their names, and how it ended.

Over SPDY the client opens a stream for each name (header `streamType`); over WebSocket each has a number. Versions:

    1, 2   stdin, stdout, stderr; a text on the error stream
    3      resizes of the terminal
    4      the error stream has a metav1.Status
    5      stdin can be ended over WebSocket too; over SPDY it always could
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from wsproto.connection import Connection as WebSocketConnection

from atoll.concurrency import TaskOwner
from atoll.streaming import status
from atoll.streaming.channels import Channels
from atoll.streaming.flow import Chunk, Gone, Inflow
from atoll.streaming.spdy import Session, Stream
from atoll.streaming.spdy_codec import Reason
from atoll.streaming.status import End
from atoll.streaming.websocket import Socket
from atoll.streaming.wire import Wire

log = logging.getLogger(__name__)

SPDY_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
)
WEBSOCKET_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
NAMES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}
FINISH_TIMEOUT_S = 15 * 60.0
"""For a client that has yet to read what was sent: closing earlier would lose it."""


class Outlet(Protocol):
    """Where a process's output goes."""

    async def write(self, data: Chunk) -> None:
        """Return once there is room for more. Raises `Gone` where the client takes no more."""
        ...

    async def end(self) -> None:
        """Nothing follows; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for when the URL was made; a terminal has no stderr."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """The client's streams; those that were not asked for are None."""

    stdin: Inflow | None = None
    stdout: Outlet | None = None
    stderr: Outlet | None = None
    resize: Inflow | None = None


Handler = Callable[[Streams], Awaitable[End]]
"""Runs or attaches to a process, until its end; it is cancelled where the client leaves."""


def version_of(protocol: str) -> int:
    """The version that a protocol's name stands for."""
    return int(protocol[1]) if protocol[:1] == "v" else 1


# SPDY


class _Opening:
    """The streams of a session by name, until all are there."""

    def __init__(self, options: Options, version: int) -> None:
        wanted = {ERROR}
        wanted |= {STDIN} if options.stdin else set()
        wanted |= {STDOUT} if options.stdout else set()
        wanted |= {STDERR} if options.stderr else set()
        wanted |= {RESIZE} if options.tty and version >= 3 else set()
        self._missing = wanted
        self.streams: dict[int, Stream] = {}
        self.complete = asyncio.Event()

    def opened(self, stream: Stream) -> Reason | None:
        number = NAMES.get(stream.headers.get("streamtype", ""))
        if number is None or number in self.streams:
            return Reason.REFUSED_STREAM
        self.streams[number] = stream
        if number not in self._missing:  # not asked for: it says nothing, and nobody hears what it is told
            stream.inflow.discard()
        self._missing.discard(number)
        if not self._missing:
            self.complete.set()
        return None

    def inflow(self, number: int) -> Inflow | None:
        return self.streams[number].inflow if number in self.streams else None


async def over_spdy(
    wire: Wire, rest: bytes, protocol: str, options: Options, handler: Handler, *, creation_timeout_s: float
) -> None:
    """Serve one command on an upgraded connection, until the client has closed it."""
    version = version_of(protocol)
    opening = _Opening(options, version)
    session = Session(wire, opening.opened)
    wire.on_lost(session.lost)
    wire.start(session.receive, rest)
    wire.resume("head")
    try:
        async with asyncio.timeout(creation_timeout_s), TaskOwner("command/streams") as tasks:
            waits = {tasks.spawn(session.gone.wait(), name="gone"), tasks.spawn(opening.complete.wait(), name="opened")}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        streams = Streams(
            stdin=opening.inflow(STDIN) if options.stdin else None,
            stdout=opening.streams.get(STDOUT) if options.stdout else None,
            stderr=opening.streams.get(STDERR) if options.stderr else None,
            resize=opening.inflow(RESIZE) if options.tty else None,
        )
        end = await _run(handler, streams, session.gone)
        if end is not None:
            await _finish_spdy(opening.streams, end, version)
            await wire.closed(FINISH_TIMEOUT_S)
    except TimeoutError:
        log.info("streaming: a client did not open its streams within %g s", creation_timeout_s)
    finally:
        session.close()


async def _finish_spdy(streams: dict[int, Stream], end: End, version: int) -> None:
    """Tell the end, after all output: input is reset, output ended."""
    for number in (STDIN, RESIZE):
        if number in streams:
            streams[number].inflow.discard()  # what nobody reads would keep us from seeing the client leave
            if not streams[number].inflow.is_over:
                streams[number].reset()
    with contextlib.suppress(Gone):
        await streams[ERROR].write(status.as_json(end) if version >= 4 else status.as_text(end))
    for number in (STDOUT, STDERR, ERROR):
        if number in streams:
            await streams[number].end()


# WebSocket


async def over_websocket(
    wire: Wire, rest: bytes, connection: WebSocketConnection, protocol: str, options: Options, handler: Handler
) -> None:
    """Serve one command on an upgraded connection, until the client has closed it."""
    version = version_of(protocol)
    socket = Socket(wire, connection)
    channels = Channels(
        socket,
        readable=(STDIN, RESIZE),
        is_base64="base64" in protocol,
        has_close=version >= 5,
    )
    for number, is_wanted in ((STDIN, options.stdin), (RESIZE, options.tty)):
        if not is_wanted:
            channels.inflow(number).discard()
    gone = asyncio.Event()
    wire.on_lost(gone.set)
    wire.start(channels.receive, rest)
    wire.resume("head")
    try:
        # An empty message on the first channel that is written tells the client that all stands.
        first = STDOUT if options.stdout else STDERR if options.stderr else ERROR
        channels.send(first, b"")
        streams = Streams(
            stdin=channels.inflow(STDIN) if options.stdin else None,
            stdout=channels.outlet(STDOUT) if options.stdout else None,
            stderr=channels.outlet(STDERR) if options.stderr else None,
            resize=channels.inflow(RESIZE) if options.tty else None,
        )
        end = await _run(handler, streams, gone)
        if end is not None:
            for number in (STDIN, RESIZE):
                channels.inflow(number).discard()
            text = status.as_json(end) if version >= 4 else status.as_text(end)
            if text:
                with contextlib.suppress(Gone):
                    await channels.outlet(ERROR).write(text)
            socket.say_close()
            await wire.closed(FINISH_TIMEOUT_S)
    finally:
        socket.say_close()
        wire.close()


async def _run(handler: Handler, streams: Streams, gone: asyncio.Event) -> End | None:
    """The end of the handler; None, and it is cancelled, where the client leaves first."""
    if gone.is_set():
        return None
    async with TaskOwner("command") as tasks:
        work = tasks.spawn(_handled(handler, streams), name="command/handler")
        leaving = tasks.spawn(gone.wait(), name="command/gone")
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None


async def _handled(handler: Handler, streams: Streams) -> End:
    return await handler(streams)
