"""Frames and envelopes of ttrpc, without I/O.

A frame is a header of ten bytes, big endian, and a payload:

    length u32 | stream id u32 | type u8 | flags u8 | payload (length bytes, at most 4 MiB)

    type 1 request   payload ttrpc.Request   flags: remote-closed, remote-open, or 0 for a unary call
    type 2 response  payload ttrpc.Response  flags: 0
    type 3 data      payload a bare message  flags: remote-closed, no-data
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from atoll import errors
from atoll.api import ttrpc_pb2
from atoll.api.status import to_status

HEADER_BYTES: Final = 10
MAX_PAYLOAD_BYTES: Final = 4 << 20
MAX_STREAM_ID: Final = 0xFFFFFFFF

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

REMOTE_CLOSED: Final = 0x01
REMOTE_OPEN: Final = 0x02
NO_DATA: Final = 0x04

_HEADER: Final = struct.Struct(">IIBB")

Metadata: TypeAlias = Mapping[str, str | Sequence[str]]
Buffer: TypeAlias = bytes | bytearray | memoryview


class FrameReceived(NamedTuple):
    """A whole frame arrived; its type and flags are as sent, known or not."""

    stream_id: int
    type: int
    flags: int
    payload: bytes


class OversizedFrameDiscarded(NamedTuple):
    """A frame above the limit arrived and its payload was read and dropped."""

    stream_id: int
    type: int
    flags: int
    length: int


FrameEvent: TypeAlias = FrameReceived | OversizedFrameDiscarded


def encode_frame(stream_id: int, frame_type: int, flags: int, payload: bytes) -> bytes:
    """One frame as bytes; raises `ResourceExhausted` for a payload above `MAX_PAYLOAD_BYTES`."""
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise errors.ResourceExhausted(f"ttrpc message of {length} bytes is above the limit of {MAX_PAYLOAD_BYTES}")
    return _HEADER.pack(length, stream_id, frame_type, flags) + payload


class FrameDecoder:
    """Turns a byte stream, cut anywhere, into frames.

    Holds at most one incomplete frame (4 MiB); an oversized one is counted off and never held. No input
    makes it raise: every ten bytes are a valid header.
    """

    __slots__ = ("_discard_left", "_oversized", "_pending")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._oversized: OversizedFrameDiscarded | None = None
        self._discard_left = 0

    def receive_data(self, data: Buffer) -> list[FrameEvent]:
        """The frames that `data` completes, in order; `data` may be reused after the return."""
        events: list[FrameEvent] = []
        if self._oversized is not None:
            data = self._discard(data, events)
        if not self._pending:
            used = self._parse(data, events)
            if used < len(data):
                self._pending += data[used:]
            return events
        self._pending += data
        # The view must be released before the bytearray may shrink.
        with memoryview(self._pending) as view:
            used = self._parse(view, events)
        del self._pending[:used]
        return events

    def _parse(self, data: Buffer, events: list[FrameEvent]) -> int:
        """Append each whole frame of `data`; the number of bytes used up."""
        position, size = 0, len(data)
        while size - position >= HEADER_BYTES:
            length, stream_id, frame_type, flags = _HEADER.unpack_from(data, position)
            start = position + HEADER_BYTES
            end = start + length
            if length > MAX_PAYLOAD_BYTES:
                oversized = OversizedFrameDiscarded(stream_id, frame_type, flags, length)
                if end > size:
                    self._oversized, self._discard_left = oversized, end - size
                    return size
                events.append(oversized)
            elif end > size:
                break
            else:
                events.append(FrameReceived(stream_id, frame_type, flags, bytes(data[start:end])))
            position = end
        return position

    def _discard(self, data: Buffer, events: list[FrameEvent]) -> Buffer:
        dropped = min(self._discard_left, len(data))
        self._discard_left -= dropped
        if self._discard_left == 0 and self._oversized is not None:
            events.append(self._oversized)
            self._oversized = None
        return data[dropped:]


def encode_request(
    service: str, method: str, payload: bytes, *, timeout_s: float | None = None, metadata: Metadata | None = None
) -> bytes:
    """The request envelope; metadata keys are sent in lower case, a sequence repeats its key.

    A timeout below one nanosecond is sent as one, since 0 means none.
    """
    request = ttrpc_pb2.Request(service=service, method=method, payload=payload)
    if timeout_s is not None:
        request.timeout_nano = min(max(int(timeout_s * 1e9), 1), (1 << 63) - 1)
    if metadata:
        for key, values in metadata.items():
            for value in (values,) if isinstance(values, str) else values:
                request.metadata.add(key=key.lower(), value=value)
    return request.SerializeToString()


def encode_response(payload: bytes) -> bytes:
    """The envelope of a call that ended well; its status stays unset."""
    return ttrpc_pb2.Response(payload=payload).SerializeToString()


def encode_error(error: errors.AtollError) -> bytes:
    """The envelope of a call that failed; a text that is not valid unicode or too long is made to fit."""
    return ttrpc_pb2.Response(status=to_status(error)).SerializeToString()


def metadata_of(request: ttrpc_pb2.Request) -> dict[str, tuple[str, ...]]:
    """The metadata of a request: every value of a key, in the order sent, keys in lower case."""
    collected: dict[str, tuple[str, ...]] = {}
    for pair in request.metadata:
        key = pair.key.lower()
        collected[key] = (*collected.get(key, ()), pair.value)
    return collected
