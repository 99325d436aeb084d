"""Frames: any message comes back, with its descriptors; what is none is refused."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.files import wire

PATHS = st.binary(max_size=50)
ITEMS = st.builds(
    wire.Item,
    path=PATHS,
    kind=st.integers(0, 3),
    mode=st.integers(0, 0o7777),
    mtime_ns=st.integers(0, 2**62),
    size=st.integers(0, 2**62),
    data=st.binary(max_size=100),
)
MESSAGES = st.one_of(
    st.builds(wire.Stat, PATHS, st.booleans()),
    st.builds(wire.Read, PATHS, st.integers(0, 2**62), st.integers(0, 2**62)),
    st.builds(wire.Upload, PATHS, PATHS, st.booleans()),
    st.builds(wire.Items, st.lists(ITEMS, max_size=5)),
    st.builds(wire.Data, st.binary(max_size=500), st.booleans()),
    st.builds(wire.Failed, st.integers(0, 16), st.text(max_size=30)),
)


@given(MESSAGES)
def test_a_message_comes_back(message: wire.Message) -> None:
    frame = wire.encode(message)
    assert wire.sizes(frame[: wire.HEADER.size]) == (len(frame) - wire.HEADER.size, 0)
    assert wire.decode(frame[wire.HEADER.size :]) == message


@given(st.binary(max_size=200))
def test_what_is_no_message_is_refused(data: bytes) -> None:
    try:
        wire.decode(data)
    except errors.InvalidArgument:
        pass


def test_descriptors_come_with_their_frames() -> None:
    ours, theirs = socket.socketpair()
    one, other = wire.Channel(ours), wire.Channel(theirs)
    reader, writer = os.pipe()
    one.send(wire.Data(b"a"))
    one.send(wire.Items([]), [reader, writer])
    one.send(wire.Data(b"b", more=False))
    os.close(reader)
    os.close(writer)
    one.close()
    first, second, third = (other.receive() for _ in range(3))
    assert first == (wire.Data(b"a"), [])
    assert second is not None
    assert third == (wire.Data(b"b", more=False), [])
    os.write(second[1][1], b"through")
    assert os.read(second[1][0], 10) == b"through"
    for fd in second[1]:
        os.close(fd)
    assert other.receive() is None
    other.close()


def test_a_frame_that_is_too_big_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="too big"):
        wire.sizes(wire.HEADER.pack(wire.MAX_FRAME_BYTES + 1, 0))
    with pytest.raises(errors.InvalidArgument, match="too big"):
        wire.sizes(wire.HEADER.pack(0, wire.MAX_FDS + 1))
