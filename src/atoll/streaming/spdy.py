"""A SPDY/3.1 session of the server, and its streams.

kubectl, crictl and the kubelet speak it through one library (moby/spdystream), which knows no flow control: it never
grants a window, and takes no notice of one. So a window is kept to once the peer has granted or set any, while our own
grants always go out. A peer that knows none is held back by the connection: its reading stops while
`STREAM_BUFFER_BYTES` of a stream, or `SESSION_BUFFER_BYTES` of all, wait for their readers here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from atoll.streaming import spdy_codec as codec
from atoll.streaming.flow import Chunk, Gone, Inflow
from atoll.streaming.spdy_codec import Reason, SpdyError
from atoll.streaming.wire import Carrier

log = logging.getLogger(__name__)

STREAM_BUFFER_BYTES = 1 << 20
SESSION_BUFFER_BYTES = 4 << 20
WINDOW_BYTES = 64 << 10
"""What either side may send at first; draft 3.1."""
GRANT_BYTES = WINDOW_BYTES // 2
MAX_STREAMS = 2048
"""At one time in one session."""
MAX_FRAME_BYTES = 256 << 10
EVENTS_A_SLICE = 64
STREAM_FULL, SESSION_FULL = "stream", "session"

Opened = Callable[["Stream"], Reason | None]
"""Told of each new stream before its reply; a reason refuses it."""


class Stream:
    """One stream that the client opened."""

    def __init__(self, session: Session, stream_id: int, headers: dict[str, str], window: int) -> None:
        """Not for callers: a session makes them."""
        self._session = session
        self.id = stream_id
        self.headers = headers
        self.inflow = Inflow(self._changed)
        self.window = window
        self.ungranted = 0
        self.is_ended = False
        """Whether we have sent its end."""
        self.is_reset = False
        self._opened = asyncio.Event()

    async def room(self) -> int:
        """Wait until something may be sent; how much. Raises `Gone`."""
        while True:
            await self._session.carrier.room()
            if self.is_reset or self.is_ended:
                raise Gone
            allowed = self._session.allowed(self)
            if allowed > 0:
                return allowed
            self._opened.clear()
            await self._opened.wait()

    def send(self, chunk: Chunk) -> None:
        """Send at once what `room` allowed."""
        self._session.spend(self, len(chunk))
        self._session.carrier.send(codec.data_head(self.id, len(chunk)), chunk)

    async def write(self, data: Chunk) -> None:
        """Send all of `data`. Raises `Gone` where the client takes no more."""
        view = memoryview(data)
        while view:
            allowed = await self.room()
            self.send(view[:allowed])
            view = view[allowed:]

    async def end(self) -> None:
        """Nothing follows; idempotent."""
        if not self.is_ended and not self.is_reset:
            self.is_ended = True
            self._session.carrier.send(codec.data_head(self.id, 0, fin=True))
            self._session.settle(self)

    def reset(self, reason: Reason = Reason.CANCEL) -> None:
        """End both directions, and drop what is on its way; idempotent."""
        if not self.is_reset:
            self._session.carrier.send(codec.rst_stream(self.id, reason))
            self.inflow.discard()
            self.cut()

    def cut(self) -> None:
        """For the session: the peer reset it, or has gone."""
        self.is_reset = True
        self.inflow.fail()
        self.wake()
        self._session.settle(self)

    def wake(self) -> None:
        """For the session: a window may have opened."""
        self._opened.set()

    def _changed(self, delta: int) -> None:
        self._session.held(self, delta)


class Session:
    """The server's end of one session over `carrier`."""

    def __init__(self, carrier: Carrier, opened: Opened) -> None:
        self.carrier = carrier
        self._opened = opened
        self._decoder = codec.Decoder()
        self._encoder = codec.Encoder()
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._goes_away = False
        self._is_windowed = False
        self._initial_window = WINDOW_BYTES
        self._window = WINDOW_BYTES
        self._ungranted = 0
        self._held = 0
        self._full: set[int] = set()
        self.gone = asyncio.Event()
        """Set when the session has ended."""

    def receive(self, data: Chunk) -> Iterator[None]:
        """Take what came; a `Receiver`. What is no SPDY ends the session."""
        try:
            for count, event in enumerate(self._decoder.feed(data), 1):
                self._take(event)
                if self.gone.is_set():
                    return
                if not count % EVENTS_A_SLICE:
                    yield
        except SpdyError as error:
            log.info("streaming: a client's SPDY session is ended: %s", error)
            self.carrier.send(codec.goaway(self._last_id, Reason.PROTOCOL_ERROR))
            self.lost()
            self.carrier.close()

    def close(self) -> None:
        """Say good-bye and end; idempotent."""
        if not self.gone.is_set():
            self.carrier.send(codec.goaway(self._last_id))
            self.lost()
        self.carrier.close()

    def lost(self) -> None:
        """The connection has ended; idempotent."""
        self.gone.set()
        for stream in tuple(self._streams.values()):
            stream.cut()

    # events

    def _take(self, event: codec.Event) -> None:
        match event:
            case codec.Data():
                self._data(event)
            case codec.SynStream():
                self._syn_stream(event)
            case codec.RstStream():
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.cut()
            case codec.Ping():
                if event.ping_id % 2:
                    self.carrier.answer(codec.ping(event.ping_id))
            case codec.WindowUpdate():
                self._window_update(event)
            case codec.Settings():
                self._settings(event)
            case codec.GoAway():
                self._goes_away = True
            case codec.SynReply() | codec.Headers():
                pass  # we open no streams, and nobody reads further headers

    def _syn_stream(self, event: codec.SynStream) -> None:
        stream_id = event.stream_id
        if stream_id % 2 == 0 or stream_id <= self._last_id:
            raise SpdyError(f"stream {stream_id} after {self._last_id}")
        self._last_id = stream_id
        if len(self._streams) >= MAX_STREAMS or self._goes_away:
            self.carrier.answer(codec.rst_stream(stream_id, Reason.REFUSED_STREAM))
            return
        stream = Stream(self, stream_id, event.headers, self._initial_window)
        refused = self._opened(stream)
        if refused is not None:
            self.carrier.answer(codec.rst_stream(stream_id, refused))
            return
        self._streams[stream_id] = stream
        self.carrier.answer(self._encoder.syn_reply(stream_id, {}))
        stream.is_ended = event.unidirectional
        if event.fin:
            stream.inflow.end()
            self.settle(stream)

    def _data(self, event: codec.Data) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            self._grant_session(len(event.chunk))
            if event.stream_id > self._last_id:
                raise SpdyError(f"data of stream {event.stream_id}, which was not opened")
            return  # of one that we have reset: the client has not heard of it yet
        stream.inflow.feed(event.chunk)
        if event.fin:
            stream.inflow.end()
            self.settle(stream)

    def _window_update(self, event: codec.WindowUpdate) -> None:
        self._is_windowed = True
        if event.stream_id == 0:
            self._window += event.delta
            for stream in self._streams.values():
                stream.wake()
        elif (stream := self._streams.get(event.stream_id)) is not None:
            stream.window += event.delta
            stream.wake()

    def _settings(self, event: codec.Settings) -> None:
        initial = event.values.get(codec.INITIAL_WINDOW_SETTING)
        if initial is None:
            return
        if initial > codec.MAX_STREAM_ID:
            raise SpdyError(f"an initial window of {initial} bytes")
        self._is_windowed = True
        for stream in self._streams.values():
            stream.window += initial - self._initial_window
            stream.wake()
        self._initial_window = initial

    # of streams

    def settle(self, stream: Stream) -> None:
        """Forget a stream that is over both ways."""
        if stream.is_reset or (stream.is_ended and stream.inflow.is_over):
            self._streams.pop(stream.id, None)

    def allowed(self, stream: Stream) -> int:
        """How much may be sent on a stream now."""
        return min(MAX_FRAME_BYTES, stream.window, self._window) if self._is_windowed else MAX_FRAME_BYTES

    def spend(self, stream: Stream, size: int) -> None:
        """Note what is sent."""
        stream.window -= size
        self._window -= size

    def held(self, stream: Stream, delta: int) -> None:
        """Note how much more, or less, of a stream waits here; hold the peer back, or let it go on."""
        self._held += delta
        if delta < 0:
            self._grant(stream, -delta)
        if stream.inflow.size >= STREAM_BUFFER_BYTES:
            self._full.add(stream.id)
            self.carrier.hold(STREAM_FULL)
        elif stream.id in self._full and stream.inflow.size < STREAM_BUFFER_BYTES // 2:
            self._full.discard(stream.id)
            if not self._full:
                self.carrier.resume(STREAM_FULL)
        if self._held >= SESSION_BUFFER_BYTES:
            self.carrier.hold(SESSION_FULL)
        elif self._held < SESSION_BUFFER_BYTES // 2:
            self.carrier.resume(SESSION_FULL)

    def _grant(self, stream: Stream, size: int) -> None:
        stream.ungranted += size
        if stream.ungranted >= GRANT_BYTES and not stream.inflow.is_over and not self.gone.is_set():
            self.carrier.answer(codec.window_update(stream.id, stream.ungranted))
            stream.ungranted = 0
        self._grant_session(size)

    def _grant_session(self, size: int) -> None:
        self._ungranted += size
        if self._ungranted >= GRANT_BYTES and not self.gone.is_set():
            self.carrier.answer(codec.window_update(0, self._ungranted))
            self._ungranted = 0
