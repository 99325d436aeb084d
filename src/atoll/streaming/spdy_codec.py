"""SPDY/3.1 frames, both ways, without I/O.

Source: the SPDY protocol, drafts 3 and 3.1; where kubectl's library does otherwise, `spdy.Session` says so. A data
frame's payload is passed on as it comes, never gathered. What a peer can make us hold is bounded: one control frame,
and its inflated headers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from atoll.streaming.flow import Chunk

VERSION = 3
MAX_CONTROL_BYTES = 64 << 10
MAX_HEADER_BYTES = 4 << 10
"""Of one header block, inflated."""
MAX_HEADERS = 64
MAX_SETTINGS = 64
MAX_STREAM_ID = 0x7FFFFFFF
MAX_DATA_BYTES = 0xFFFFFF
FLAG_FIN = 1
FLAG_UNIDIRECTIONAL = 2
INITIAL_WINDOW_SETTING = 7

_HEAD = struct.Struct(">II")
_WORD = struct.Struct(">I")
_SYN_STREAM = struct.Struct(">IIBB")

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200|OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(_WORD.pack(len(one)) + one.replace("|", " ").encode() for one in _WORDS.split()) + _TAIL.encode()
"""What header blocks are compressed against: the words with their lengths, then a text."""


class Kind(IntEnum):
    """Types of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Reason(IntEnum):
    """Why a stream is reset."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


class SpdyError(Exception):
    """What came is no SPDY/3.1, or too much of it: the connection cannot go on."""


@dataclass(frozen=True, slots=True)
class SynStream:
    stream_id: int
    headers: dict[str, str]
    fin: bool = False
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class SynReply:
    stream_id: int
    headers: dict[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Headers:
    stream_id: int
    headers: dict[str, str]
    fin: bool = False


@dataclass(slots=True)  # not frozen: there are many, and those take three times as long to make
class Data:
    """A piece of a data frame; `fin` with the last one. `chunk` may be a view of what was fed."""

    stream_id: int
    chunk: Chunk
    fin: bool = False


@dataclass(frozen=True, slots=True)
class RstStream:
    stream_id: int
    reason: int


@dataclass(frozen=True, slots=True)
class Settings:
    values: dict[int, int]


@dataclass(frozen=True, slots=True)
class Ping:
    ping_id: int


@dataclass(frozen=True, slots=True)
class GoAway:
    last_stream_id: int
    reason: int


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """`stream_id` 0 is the window of the whole session."""

    stream_id: int
    delta: int


Event: TypeAlias = SynStream | SynReply | Headers | Data | RstStream | Settings | Ping | GoAway | WindowUpdate


class Decoder:
    """From bytes, cut wherever, to events."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._stream_id = 0
        self._left = 0
        self._fin = False
        self._skip = 0
        self._inflater = zlib.decompressobj(zdict=DICTIONARY)

    def feed(self, data: Chunk) -> Iterator[Event]:
        """The events of `data`; drive it to its end before the next. Raises `SpdyError`, after which it is of no use.

        An event's chunk is a view of `data`.
        """
        view = memoryview(data)
        while view:
            if self._left:
                chunk, view = view[: self._left], view[self._left :]
                self._left -= len(chunk)
                yield Data(self._stream_id, chunk, self._fin and not self._left)
            elif self._skip:
                taken = min(self._skip, len(view))
                self._skip -= taken
                view = view[taken:]
            else:
                event, view = self._frame(view)
                if event is not None:
                    yield event

    def _frame(self, view: memoryview) -> tuple[Event | None, memoryview]:
        """Take a head, or a whole control frame, from what is held and `view`; the rest of `view`."""
        view = self._hold(view, _HEAD.size)
        if len(self._held) < _HEAD.size:
            return None, view
        first, second = _HEAD.unpack_from(self._held)
        flags, length = second >> 24, second & MAX_DATA_BYTES
        if not first >> 31:
            self._held.clear()
            if first == 0:
                raise SpdyError("data of stream 0")
            self._stream_id, self._left, self._fin = first, length, bool(flags & FLAG_FIN)
            return (None if length else Data(first, b"", self._fin)), view
        if first >> 16 & 0x7FFF != VERSION:
            raise SpdyError(f"version {first >> 16 & 0x7FFF} of SPDY")
        kind = first & 0xFFFF
        if kind not in _PARSERS:
            self._held.clear()
            self._skip = length
            return None, view
        if length > MAX_CONTROL_BYTES:
            raise SpdyError(f"a control frame of {length} bytes")
        view = self._hold(view, _HEAD.size + length)
        if len(self._held) < _HEAD.size + length:
            return None, view
        body = bytes(self._held[_HEAD.size :])
        self._held.clear()
        return _PARSERS[kind](self, flags, body), view

    def _hold(self, view: memoryview, size: int) -> memoryview:
        missing = size - len(self._held)
        if missing > 0:
            self._held += view[:missing]
            view = view[missing:]
        return view

    def _syn_stream(self, flags: int, body: bytes) -> Event:
        stream_id = _SYN_STREAM.unpack(_exactly(body[:10], 10))[0] & MAX_STREAM_ID
        headers = self._headers(body[10:])
        return SynStream(_stream(stream_id), headers, bool(flags & FLAG_FIN), bool(flags & FLAG_UNIDIRECTIONAL))

    def _syn_reply(self, flags: int, body: bytes) -> Event:
        return SynReply(_stream(_word(body)), self._headers(body[4:]), bool(flags & FLAG_FIN))

    def _headers_frame(self, flags: int, body: bytes) -> Event:
        return Headers(_stream(_word(body)), self._headers(body[4:]), bool(flags & FLAG_FIN))

    def _rst_stream(self, flags: int, body: bytes) -> Event:
        stream_id, reason = _HEAD.unpack(_exactly(body, 8))
        return RstStream(_stream(stream_id & MAX_STREAM_ID), reason)

    def _settings(self, flags: int, body: bytes) -> Event:
        count = _WORD.unpack(_exactly(body[:4], 4))[0]
        if count > MAX_SETTINGS or len(body) != 4 + 8 * count:
            raise SpdyError(f"{count} settings in {len(body)} bytes")
        return Settings({key & 0xFFFFFF: value for key, value in _HEAD.iter_unpack(body[4:])})

    def _ping(self, flags: int, body: bytes) -> Event:
        return Ping(_WORD.unpack(_exactly(body, 4))[0])

    def _goaway(self, flags: int, body: bytes) -> Event:
        last, reason = _HEAD.unpack(_exactly(body, 8))
        return GoAway(last & MAX_STREAM_ID, reason)

    def _window_update(self, flags: int, body: bytes) -> Event:
        stream_id, delta = _HEAD.unpack(_exactly(body, 8))
        return WindowUpdate(stream_id & MAX_STREAM_ID, delta & MAX_STREAM_ID)

    def _headers(self, block: bytes) -> dict[str, str]:
        """Inflate a block, never past `MAX_HEADER_BYTES`, and take it apart."""
        try:
            plain = self._inflater.decompress(block, MAX_HEADER_BYTES + 1)
        except zlib.error as error:
            raise SpdyError(f"headers cannot be inflated: {error}") from error
        if len(plain) > MAX_HEADER_BYTES or self._inflater.unconsumed_tail:
            raise SpdyError(f"headers of more than {MAX_HEADER_BYTES} bytes")
        if self._inflater.eof:
            raise SpdyError("headers end their compression")
        return _fields(plain)


_PARSERS = {
    Kind.SYN_STREAM: Decoder._syn_stream,  # pyright: ignore[reportPrivateUsage] # the class's own table
    Kind.SYN_REPLY: Decoder._syn_reply,  # pyright: ignore[reportPrivateUsage]
    Kind.RST_STREAM: Decoder._rst_stream,  # pyright: ignore[reportPrivateUsage]
    Kind.SETTINGS: Decoder._settings,  # pyright: ignore[reportPrivateUsage]
    Kind.PING: Decoder._ping,  # pyright: ignore[reportPrivateUsage]
    Kind.GOAWAY: Decoder._goaway,  # pyright: ignore[reportPrivateUsage]
    Kind.HEADERS: Decoder._headers_frame,  # pyright: ignore[reportPrivateUsage]
    Kind.WINDOW_UPDATE: Decoder._window_update,  # pyright: ignore[reportPrivateUsage]
}


def _exactly(body: bytes, size: int) -> bytes:
    if len(body) != size:
        raise SpdyError(f"{len(body)} bytes where {size} were due")
    return body


def _word(body: bytes) -> int:
    return _WORD.unpack(_exactly(body[:4], 4))[0] & MAX_STREAM_ID


def _stream(stream_id: int) -> int:
    if stream_id == 0:
        raise SpdyError("stream 0")
    return stream_id


def _fields(plain: bytes) -> dict[str, str]:
    """Names, in lower case, and values of a header block; a name that comes twice is an error."""
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        piece = plain[at : at + size]
        at += size
        return _exactly(piece, size)

    count = _WORD.unpack(take(4))[0]
    if count > MAX_HEADERS:
        raise SpdyError(f"{count} headers")
    fields: dict[str, str] = {}
    for _ in range(count):
        name, value = (take(_WORD.unpack(take(4))[0]).decode("latin-1") for _ in range(2))
        if not name or name.lower() in fields:
            raise SpdyError(f"header {name!r} is empty or comes twice")
        fields[name.lower()] = value
    if at != len(plain):
        raise SpdyError("bytes after the headers")
    return fields


class Encoder:
    """Frames as bytes. Those with headers must be sent in the order in which they were made."""

    def __init__(self) -> None:
        self._deflater: zlib._Compress | None = None  # pyright: ignore[reportPrivateUsage] # zlib names its type so

    def syn_stream(self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        block = _SYN_STREAM.pack(stream_id, 0, 0, 0) + self._deflated(headers)
        return _control(Kind.SYN_STREAM, block, FLAG_FIN if fin else 0)

    def syn_reply(self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        return _control(Kind.SYN_REPLY, _WORD.pack(stream_id) + self._deflated(headers), FLAG_FIN if fin else 0)

    def headers(self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        return _control(Kind.HEADERS, _WORD.pack(stream_id) + self._deflated(headers), FLAG_FIN if fin else 0)

    def _deflated(self, headers: Mapping[str, str]) -> bytes:
        if self._deflater is None:
            # The smallest window that holds the dictionary, and the least memory: these blocks are tiny.
            self._deflater = zlib.compressobj(6, zlib.DEFLATED, 12, 1, zdict=DICTIONARY)
        plain = bytearray(_WORD.pack(len(headers)))
        for name, value in headers.items():
            for text in (name.encode("latin-1"), value.encode("latin-1")):
                plain += _WORD.pack(len(text)) + text
        return self._deflater.compress(plain) + self._deflater.flush(zlib.Z_SYNC_FLUSH)


def data_head(stream_id: int, length: int, *, fin: bool = False) -> bytes:
    """What goes before the payload of a data frame, at most `MAX_DATA_BYTES` long."""
    return _HEAD.pack(stream_id, (FLAG_FIN if fin else 0) << 24 | length)


def rst_stream(stream_id: int, reason: int) -> bytes:
    return _control(Kind.RST_STREAM, _HEAD.pack(stream_id, reason))


def settings(values: Mapping[int, int]) -> bytes:
    return _control(Kind.SETTINGS, _WORD.pack(len(values)) + b"".join(_HEAD.pack(*item) for item in values.items()))


def ping(ping_id: int) -> bytes:
    return _control(Kind.PING, _WORD.pack(ping_id))


def goaway(last_stream_id: int, reason: int = 0) -> bytes:
    return _control(Kind.GOAWAY, _HEAD.pack(last_stream_id, reason))


def window_update(stream_id: int, delta: int) -> bytes:
    return _control(Kind.WINDOW_UPDATE, _HEAD.pack(stream_id, delta))


def _control(kind: Kind, body: bytes, flags: int = 0) -> bytes:
    return _HEAD.pack(0x80000000 | VERSION << 16 | kind, flags << 24 | len(body)) + body
