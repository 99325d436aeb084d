"""SPDY/3.1 frames: round trips however they are cut, and what a peer cannot make us hold or do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.streaming import spdy_codec as codec
from atoll.streaming.spdy_codec import Data, Decoder, Encoder, SpdyError

stream_ids = st.integers(1, codec.MAX_STREAM_ID)
words = st.integers(0, 0xFFFFFFFF)
names = st.text(st.characters(codec="latin-1", categories=["Ll", "Nd"]), min_size=1, max_size=12).filter(
    lambda name: name == name.lower()
)
headers = st.dictionaries(names, st.text(st.characters(codec="latin-1"), max_size=40), max_size=6)


@st.composite
def frames(draw: st.DrawFn) -> tuple[list[codec.Event], bytes]:
    """Some frames of one session, as events and as bytes."""
    encoder = Encoder()
    events: list[codec.Event] = []
    sent = b""
    for _ in range(draw(st.integers(1, 8))):
        stream, fin = draw(stream_ids), draw(st.booleans())
        match draw(st.integers(0, 8)):
            case 0:
                fields = draw(headers)
                events.append(codec.SynStream(stream, fields, fin))
                sent += encoder.syn_stream(stream, fields, fin=fin)
            case 1:
                fields = draw(headers)
                events.append(codec.SynReply(stream, fields, fin))
                sent += encoder.syn_reply(stream, fields, fin=fin)
            case 2:
                fields = draw(headers)
                events.append(codec.Headers(stream, fields, fin))
                sent += encoder.headers(stream, fields, fin=fin)
            case 3:
                reason = draw(words)
                events.append(codec.RstStream(stream, reason))
                sent += codec.rst_stream(stream, reason)
            case 4:
                values = draw(st.dictionaries(st.integers(0, 0xFFFFFF), words, max_size=4))
                events.append(codec.Settings(values))
                sent += codec.settings(values)
            case 5:
                number = draw(words)
                events.append(codec.Ping(number))
                sent += codec.ping(number)
            case 6:
                reason = draw(words)
                events.append(codec.GoAway(stream, reason))
                sent += codec.goaway(stream, reason)
            case 7:
                delta = draw(stream_ids)
                events.append(codec.WindowUpdate(stream, delta))
                sent += codec.window_update(stream, delta)
            case _:
                data = draw(st.binary(max_size=50))
                events.append(Data(stream, data, fin))
                sent += codec.data_head(stream, len(data), fin=fin) + data
    return events, sent


def cut(data: bytes, at: list[int]) -> Iterator[bytes]:
    edges = sorted({0, len(data), *(one % (len(data) + 1) for one in at)})
    return (data[begin:end] for begin, end in pairwise(edges))


def decoded(pieces: Iterator[bytes]) -> list[codec.Event]:
    """The events, with the pieces of each data frame put together again."""
    decoder = Decoder()
    found: list[codec.Event] = []
    is_open = False
    for event in (event for piece in pieces for event in decoder.feed(piece)):
        last = found[-1] if found else None
        if isinstance(event, Data) and isinstance(last, Data) and is_open and last.stream_id == event.stream_id:
            found[-1] = Data(last.stream_id, bytes(last.chunk) + bytes(event.chunk), event.fin)
        else:
            found.append(Data(event.stream_id, bytes(event.chunk), event.fin) if isinstance(event, Data) else event)
        is_open = bool(decoder._left)
    return found


@given(frames(), st.lists(st.integers(0, 10_000), max_size=12))
def test_frames_come_back_however_they_are_cut(made: tuple[list[codec.Event], bytes], at: list[int]) -> None:
    events, sent = made
    assert decoded(cut(sent, at)) == events


@given(st.binary(max_size=4000), st.lists(st.integers(0, 4000), max_size=5))
def test_garbage_is_an_error_or_events_and_nothing_else(data: bytes, at: list[int]) -> None:
    decoder = Decoder()
    try:
        for piece in cut(data, at):
            for _ in decoder.feed(piece):
                pass
    except SpdyError:
        return
    assert len(decoder._held) <= codec.MAX_CONTROL_BYTES + 8


@given(frames(), st.integers(0, 5000), st.integers(1, 255))
def test_a_flipped_bit_is_an_error_or_events_and_nothing_else(
    made: tuple[list[codec.Event], bytes], place: int, mask: int
) -> None:
    sent = bytearray(made[1])
    sent[place % len(sent)] ^= mask
    try:
        list(Decoder().feed(bytes(sent)))
    except SpdyError:
        return


def control(kind: int, body: bytes) -> bytes:
    return struct.pack(">HHI", 0x8003, kind, len(body)) + body


def block(plain: bytes) -> bytes:
    deflater = zlib.compressobj(9, zdict=codec.DICTIONARY)
    return struct.pack(">IIH", 1, 0, 0) + deflater.compress(plain) + deflater.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("more than", control(1, block(struct.pack(">II", 1, 1) + b"a" + struct.pack(">I", 1 << 20) + bytes(1 << 20)))),
        ("headers", control(1, block(struct.pack(">I", 1 << 30)))),
        ("were due", control(1, block(struct.pack(">II", 1, 1 << 30) + b"abc"))),
        ("twice", control(1, block(struct.pack(">I", 2) + (struct.pack(">I", 1) + b"a" + struct.pack(">I", 0)) * 2))),
        ("after the headers", control(1, block(struct.pack(">I", 0) + b"x"))),
        ("inflated", control(1, struct.pack(">IIH", 1, 0, 0) + b"\0" * 20)),
        ("stream 0", control(3, bytes(8))),
        ("stream 0", struct.pack(">II", 0, 5)),
        ("control frame of", struct.pack(">HHI", 0x8003, 1, 0xFFFFFF)),
        ("version 2", struct.pack(">HHI", 0x8002, 1, 10)),
        ("settings", control(4, struct.pack(">I", 0xFFFFFFFF))),
        ("were due", control(6, b"abc")),
    ],
)
def test_what_is_no_frame_is_refused(what: str, frame: bytes) -> None:
    with pytest.raises(SpdyError, match=what):
        list(Decoder().feed(frame))


def test_a_bomb_of_headers_is_never_inflated_past_the_limit() -> None:
    deflater = zlib.compressobj(9, zdict=codec.DICTIONARY)
    bomb = deflater.compress(bytes(40 << 20)) + deflater.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < codec.MAX_CONTROL_BYTES
    with pytest.raises(SpdyError, match="more than 4096 bytes"):
        list(Decoder().feed(control(1, struct.pack(">IIH", 1, 0, 0) + bomb)))


def test_a_control_frame_of_a_kind_nobody_knows_is_skipped() -> None:
    stray = control(77, bytes(100_000)) + codec.ping(5)
    decoder = Decoder()
    assert [event for at in range(0, len(stray), 999) for event in decoder.feed(stray[at : at + 999])] == [
        codec.Ping(5)
    ]


def test_a_data_frame_is_passed_on_without_being_gathered() -> None:
    decoder = Decoder()
    head = codec.data_head(1, codec.MAX_DATA_BYTES, fin=True)
    assert list(decoder.feed(head)) == []
    data = bytes(256 << 10)
    (event,) = decoder.feed(data)
    assert isinstance(event, Data)
    assert isinstance(event.chunk, memoryview)
    assert event.chunk.obj is data
    assert not event.fin


def test_the_dictionary_is_the_protocols() -> None:
    assert len(codec.DICTIONARY) == 1423
    assert zlib.adler32(codec.DICTIONARY) == 0xE3C6A7C2
