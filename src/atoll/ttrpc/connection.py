"""The two ends of a ttrpc connection as state machines, without I/O.

Bytes in through `receive_data`, events out; commands (`open`, `send_data`, `respond`, ...) give the bytes
to write, in the order they must be written. What a stream goes through:

    client                                           server
    open ------------ request -------------------->  RequestReceived
    send_data ------- data ----------------------->  MessageReceived       only after remote-open
    close_send ------ data remote-closed no-data ->  HalfClosed
    MessageReceived <-------------- data ----------- send_data
    StreamEnded     <---- data remote-closed ------- end_stream            server-streaming, ended well
    ResponseReceived <----------- response --------- respond, respond_error everything else

There is no cancel frame: `forget` makes a client drop what still comes for a stream.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

from atoll import errors
from atoll.api import ttrpc_pb2
from atoll.api.status import from_status
from atoll.ttrpc import codec


class RequestReceived(NamedTuple):
    """A peer opened a stream; `more_follows` says that it will send data frames."""

    stream_id: int
    request: ttrpc_pb2.Request
    more_follows: bool


class MessageReceived(NamedTuple):
    """One message of a stream arrived, possibly of length zero."""

    stream_id: int
    payload: bytes


class HalfClosed(NamedTuple):
    """The client will send nothing more on this stream."""

    stream_id: int


class StreamRejected(NamedTuple):
    """The client broke a rule on this stream: answer `error`, and end its call if there is one."""

    stream_id: int
    error: errors.AtollError


class ResponseReceived(NamedTuple):
    """The server answered with a response frame of status OK; the stream has ended."""

    stream_id: int
    payload: bytes


class StreamEnded(NamedTuple):
    """The server ended the stream well, without a further message."""

    stream_id: int


class StreamFailed(NamedTuple):
    """The call failed: by the status of the server, or because its answer cannot be used."""

    stream_id: int
    error: errors.AtollError


ServerEvent: TypeAlias = RequestReceived | MessageReceived | HalfClosed | StreamRejected
ClientEvent: TypeAlias = ResponseReceived | MessageReceived | StreamEnded | StreamFailed


def _too_large(frame: codec.OversizedFrameDiscarded) -> errors.ResourceExhausted:
    return errors.ResourceExhausted(
        f"ttrpc message of {frame.length} bytes is above the limit of {codec.MAX_PAYLOAD_BYTES}"
    )


class ServerConnection:
    """The server's end: checks what the client sends and encodes what it is answered.

    A stream is open from its request until `respond`, `respond_error` or `end_stream`.
    """

    __slots__ = ("_decoder", "_last_id", "_sending")

    def __init__(self) -> None:
        self._decoder = codec.FrameDecoder()
        self._last_id = 0
        self._sending: dict[int, bool] = {}  # open streams: may the client still send?

    def is_open(self, stream_id: int) -> bool:
        """Whether the stream still waits for its end."""
        return stream_id in self._sending

    def receive_data(self, data: codec.Buffer) -> list[ServerEvent]:
        """What `data` means; malformed input becomes `StreamRejected`, never an exception."""
        events: list[ServerEvent] = []
        for frame in self._decoder.receive_data(data):
            if frame.type == codec.REQUEST:
                self._receive_request(frame, events)
            elif frame.type == codec.DATA:
                self._receive_message(frame, events)
        return events

    def _receive_request(self, frame: codec.FrameEvent, events: list[ServerEvent]) -> None:
        stream_id = frame.stream_id
        if stream_id % 2 == 0:
            events.append(StreamRejected(stream_id, errors.InvalidArgument("stream id must be odd")))
            return
        if stream_id <= self._last_id:
            events.append(StreamRejected(stream_id, errors.InvalidArgument("stream id must grow and is never reused")))
            return
        self._last_id = stream_id
        if isinstance(frame, codec.OversizedFrameDiscarded):
            events.append(StreamRejected(stream_id, _too_large(frame)))
            return
        try:
            request = ttrpc_pb2.Request.FromString(frame.payload)
        except DecodeError as error:
            events.append(StreamRejected(stream_id, errors.InvalidArgument(f"request cannot be decoded: {error}")))
            return
        more_follows = bool(frame.flags & codec.REMOTE_OPEN) and not frame.flags & codec.REMOTE_CLOSED
        self._sending[stream_id] = more_follows
        events.append(RequestReceived(stream_id, request, more_follows))

    def _receive_message(self, frame: codec.FrameEvent, events: list[ServerEvent]) -> None:
        stream_id = frame.stream_id
        may_send = self._sending.get(stream_id)
        if may_send is None:
            reason = "stream id must be odd" if stream_id % 2 == 0 else "stream is not open"
            events.append(StreamRejected(stream_id, errors.InvalidArgument(reason)))
        elif isinstance(frame, codec.OversizedFrameDiscarded):
            events.append(StreamRejected(stream_id, _too_large(frame)))
        elif not may_send:
            events.append(StreamRejected(stream_id, errors.InvalidArgument("data after the client closed its side")))
        else:
            # The reference server takes no data with a closing frame; taking it harms nobody.
            if not frame.flags & codec.NO_DATA and (frame.payload or not frame.flags & codec.REMOTE_CLOSED):
                events.append(MessageReceived(stream_id, frame.payload))
            if frame.flags & codec.REMOTE_CLOSED:
                self._sending[stream_id] = False
                events.append(HalfClosed(stream_id))

    def send_data(self, stream_id: int, payload: bytes) -> bytes:
        """One message of a server-streaming call."""
        return codec.encode_frame(stream_id, codec.DATA, 0, payload)

    def end_stream(self, stream_id: int) -> bytes:
        """The good end of a server-streaming call."""
        frame = codec.encode_frame(stream_id, codec.DATA, codec.REMOTE_CLOSED | codec.NO_DATA, b"")
        self._sending.pop(stream_id, None)
        return frame

    def respond(self, stream_id: int, payload: bytes) -> bytes:
        """The good end of any other call; `ResourceExhausted`, and the stream stays open, if it is too large."""
        frame = codec.encode_frame(stream_id, codec.RESPONSE, 0, codec.encode_response(payload))
        self._sending.pop(stream_id, None)
        return frame

    def respond_error(self, stream_id: int, error: errors.AtollError) -> bytes:
        """The bad end of any call, also of one that was never opened."""
        frame = codec.encode_frame(stream_id, codec.RESPONSE, 0, codec.encode_error(error))
        self._sending.pop(stream_id, None)
        return frame


class ClientConnection:
    """The client's end: numbers the streams and tells what comes back for each.

    Frames for a stream that is not open here (ended, forgotten, never opened) are dropped.
    """

    __slots__ = ("_decoder", "_next_id", "_streams")

    def __init__(self) -> None:
        self._decoder = codec.FrameDecoder()
        self._next_id = 1
        self._streams: dict[int, bool] = {}  # open streams: may the server send data frames?

    def open(
        self, request: bytes, *, client_streaming: bool = False, server_streaming: bool = False
    ) -> tuple[int, bytes]:
        """Open a stream with an encoded request: its id and the frame, to be written before any later one."""
        stream_id = self._next_id
        if stream_id > codec.MAX_STREAM_ID:
            raise errors.Unavailable("every stream id of this connection is used up: connect again")
        flags = 0
        if client_streaming:
            flags = codec.REMOTE_OPEN
        elif server_streaming:
            flags = codec.REMOTE_CLOSED
        frame = codec.encode_frame(stream_id, codec.REQUEST, flags, request)
        self._next_id = stream_id + 2
        self._streams[stream_id] = server_streaming
        return stream_id, frame

    def send_data(self, stream_id: int, payload: bytes) -> bytes:
        """One message of a client-streaming call."""
        return codec.encode_frame(stream_id, codec.DATA, 0, payload)

    def close_send(self, stream_id: int) -> bytes:
        """The client's half-close."""
        return codec.encode_frame(stream_id, codec.DATA, codec.REMOTE_CLOSED | codec.NO_DATA, b"")

    def forget(self, stream_id: int) -> None:
        """Drop whatever still comes for the stream; idempotent."""
        self._streams.pop(stream_id, None)

    def receive_data(self, data: codec.Buffer) -> list[ClientEvent]:
        """What `data` means; malformed input fails its stream and never raises."""
        events: list[ClientEvent] = []
        for frame in self._decoder.receive_data(data):
            takes_data = self._streams.get(frame.stream_id)
            if takes_data is None:
                continue
            if isinstance(frame, codec.OversizedFrameDiscarded):
                self._fail(frame.stream_id, _too_large(frame), events)
            elif frame.type == codec.RESPONSE:
                self._receive_response(frame, events)
            elif frame.type == codec.DATA:
                self._receive_message(frame, takes_data, events)
        return events

    def _fail(self, stream_id: int, error: errors.AtollError, events: list[ClientEvent]) -> None:
        self._streams.pop(stream_id, None)
        events.append(StreamFailed(stream_id, error))

    def _receive_response(self, frame: codec.FrameReceived, events: list[ClientEvent]) -> None:
        stream_id = frame.stream_id
        try:
            response = ttrpc_pb2.Response.FromString(frame.payload)
        except DecodeError as error:
            self._fail(stream_id, errors.Internal(f"response cannot be decoded: {error}"), events)
            return
        if response.status.code:
            self._fail(stream_id, from_status(response.status), events)
            return
        del self._streams[stream_id]
        events.append(ResponseReceived(stream_id, response.payload))

    def _receive_message(self, frame: codec.FrameReceived, takes_data: bool, events: list[ClientEvent]) -> None:
        stream_id = frame.stream_id
        if not takes_data:
            self._fail(stream_id, errors.Internal("the server sent data for a call with a single response"), events)
            return
        if not frame.flags & codec.NO_DATA:
            events.append(MessageReceived(stream_id, frame.payload))
        if frame.flags & codec.REMOTE_CLOSED:
            del self._streams[stream_id]
            events.append(StreamEnded(stream_id))
