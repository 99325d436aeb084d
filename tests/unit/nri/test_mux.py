"""Frames of the mux."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.nri import mux


def pieces(stream: bytes, cuts: list[int]) -> dict[int, bytes]:
    """What comes of a stream that arrives in parts, by connection."""
    demultiplexer = mux.Demultiplexer()
    found: dict[int, bytes] = {}
    position = 0
    for size in [*cuts, len(stream)]:
        view = memoryview(stream[position : position + size])
        position += size
        for piece in demultiplexer.receive_data(view):
            found[piece.connection] = found.get(piece.connection, b"") + bytes(piece.data)
    return found


def test_a_short_message_is_one_frame() -> None:
    assert mux.frames(1, b"abc") == b"\0\0\0\x01\0\0\0\x03abc"


def test_a_long_message_is_cut_where_its_reader_takes_it() -> None:
    message = bytes(10_000)
    first, rest = struct.pack(">II", 2, 4096), struct.pack(">II", 2, 10_000 - 4096)
    assert mux.frames(2, message) == first + message[:4096] + rest + message[4096:]
    assert mux.frames(2, bytes(4096)) == first + bytes(4096)


@given(
    messages=st.lists(st.tuples(st.integers(1, 3), st.binary(max_size=9000)), max_size=6),
    cuts=st.lists(st.integers(0, 50), max_size=40),
)
def test_what_was_sent_comes_out_however_it_is_cut(messages: list[tuple[int, bytes]], cuts: list[int]) -> None:
    sent: dict[int, bytes] = {}
    stream = b""
    for connection, message in messages:
        stream += mux.frames(connection, message)
        sent[connection] = sent.get(connection, b"") + message
    assert pieces(stream, cuts) == {key: value for key, value in sent.items() if value}


def test_a_part_of_a_frame_is_handed_on_at_once() -> None:
    demultiplexer = mux.Demultiplexer()
    [piece] = demultiplexer.receive_data(memoryview(struct.pack(">II", 1, 100) + b"ab"))
    assert (piece.connection, bytes(piece.data)) == (1, b"ab")


def test_a_frame_longer_than_any_message_ends_the_stream() -> None:
    header = struct.pack(">II", 1, mux.MAX_PAYLOAD_BYTES + 1)
    with pytest.raises(errors.InvalidArgument, match="above the limit"):
        mux.Demultiplexer().receive_data(memoryview(header))
    assert mux.Demultiplexer().receive_data(memoryview(struct.pack(">II", 1, mux.MAX_PAYLOAD_BYTES))) == []
