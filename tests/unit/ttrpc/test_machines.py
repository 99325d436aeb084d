"""Codec and state machines: bytes in, events out, no I/O."""

from __future__ import annotations

import itertools
import struct

import pytest
from google.rpc import status_pb2  # pyright: ignore[reportMissingTypeStubs]  it ships none
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.api import ttrpc_pb2
from atoll.api.status import MAX_TEXT
from atoll.ttrpc import codec
from atoll.ttrpc.connection import (
    ClientConnection,
    HalfClosed,
    MessageReceived,
    RequestReceived,
    ResponseReceived,
    ServerConnection,
    StreamEnded,
    StreamFailed,
    StreamRejected,
)

ENVELOPE = codec.encode_request("s.S", "M", b"payload")
CLOSE = codec.REMOTE_CLOSED | codec.NO_DATA

frames = st.builds(
    codec.FrameReceived,
    st.integers(0, codec.MAX_STREAM_ID),
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=200),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def test_header_is_as_the_protocol_says() -> None:
    frame = codec.encode_frame(3, codec.DATA, CLOSE, b"ab")
    assert frame == bytes.fromhex("00000002 00000003 03 05") + b"ab"


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 1 << 16), max_size=20))
def test_frames_survive_any_cut(sent: list[codec.FrameReceived], places: list[int]) -> None:
    data = b"".join(codec.encode_frame(*frame) for frame in sent)
    decoder = codec.FrameDecoder()
    received = [event for piece in cut(data, places) for event in decoder.receive_data(memoryview(piece))]
    assert received == sent


@given(st.integers(codec.MAX_PAYLOAD_BYTES + 1, codec.MAX_PAYLOAD_BYTES + 1000), st.lists(st.integers(0, 1 << 23)))
def test_oversized_frame_is_skipped_exactly(length: int, places: list[int]) -> None:
    after = codec.encode_frame(3, codec.DATA, 0, b"after")
    data = struct.pack(">IIBB", length, 1, codec.REQUEST, 0) + bytes(length) + after
    decoder = codec.FrameDecoder()
    received = [event for piece in cut(data, places) for event in decoder.receive_data(piece)]
    assert received == [
        codec.OversizedFrameDiscarded(1, codec.REQUEST, 0, length),
        codec.FrameReceived(3, codec.DATA, 0, b"after"),
    ]


def test_discarding_holds_nothing() -> None:
    decoder = codec.FrameDecoder()
    assert decoder.receive_data(struct.pack(">IIBB", 0xFFFFFFFF, 1, codec.REQUEST, 0)) == []
    for _ in range(100):
        assert decoder.receive_data(bytes(1 << 16)) == []
    assert len(decoder._pending) == 0


def test_limit_is_exact() -> None:
    assert len(codec.encode_frame(1, codec.DATA, 0, bytes(codec.MAX_PAYLOAD_BYTES))) == codec.MAX_PAYLOAD_BYTES + 10
    with pytest.raises(errors.ResourceExhausted):
        codec.encode_frame(1, codec.DATA, 0, bytes(codec.MAX_PAYLOAD_BYTES + 1))


def test_request_envelope_carries_timeout_and_metadata() -> None:
    envelope = codec.encode_request("s.S", "M", b"p", timeout_s=1.5, metadata={"Key": ["a", "b"], "x": "c"})
    request = ttrpc_pb2.Request.FromString(envelope)
    assert (request.service, request.method, request.payload) == ("s.S", "M", b"p")
    assert request.timeout_nano == 1_500_000_000
    assert codec.metadata_of(request) == {"key": ("a", "b"), "x": ("c",)}


def test_tiny_timeout_is_not_sent_as_none() -> None:
    assert ttrpc_pb2.Request.FromString(codec.encode_request("s", "m", b"", timeout_s=1e-12)).timeout_nano == 1


def test_status_text_is_made_to_fit() -> None:
    error = errors.NotFound("bad \udcff " + "x" * codec.MAX_PAYLOAD_BYTES)
    response = ttrpc_pb2.Response.FromString(codec.encode_error(error))
    assert response.status.message.startswith("bad ? x")
    assert len(response.status.message) == MAX_TEXT


def request(stream_id: int, flags: int = 0, envelope: bytes = ENVELOPE) -> bytes:
    return codec.encode_frame(stream_id, codec.REQUEST, flags, envelope)


def data(stream_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return codec.encode_frame(stream_id, codec.DATA, flags, payload)


def rejection(server: ServerConnection, frame: bytes) -> tuple[int, int]:
    (event,) = server.receive_data(frame)
    assert isinstance(event, StreamRejected)
    return event.stream_id, event.error.code


def test_server_checks_stream_ids() -> None:
    server = ServerConnection()
    assert rejection(server, request(2)) == (2, 3)
    (event,) = server.receive_data(request(5))
    assert isinstance(event, RequestReceived)
    assert (event.stream_id, event.request.payload, event.more_follows) == (5, b"payload", False)
    assert rejection(server, request(5)) == (5, 3)
    assert rejection(server, request(3)) == (3, 3)
    assert rejection(server, request(0)) == (0, 3)


def test_server_rejects_an_undecodable_or_oversized_request() -> None:
    server = ServerConnection()
    assert rejection(server, request(1, envelope=b"\xff\xff")) == (1, 3)
    assert not server.is_open(1)
    oversized = struct.pack(">IIBB", codec.MAX_PAYLOAD_BYTES + 1, 3, codec.REQUEST, 0)
    assert rejection(server, oversized + bytes(codec.MAX_PAYLOAD_BYTES + 1)) == (3, 8)
    assert rejection(server, request(3)) == (3, 3)


def test_server_takes_data_until_the_half_close_and_none_for_other_streams() -> None:
    server = ServerConnection()
    assert rejection(server, data(1)) == (1, 3)
    server.receive_data(request(1, codec.REMOTE_OPEN) + request(3, codec.REMOTE_CLOSED) + request(5))
    assert rejection(server, data(3)) == (3, 3)
    assert rejection(server, data(5)) == (5, 3)
    events = server.receive_data(data(1, b"a") + data(1) + data(1, flags=CLOSE))
    assert events == [MessageReceived(1, b"a"), MessageReceived(1, b""), HalfClosed(1)]
    assert rejection(server, data(1)) == (1, 3)
    server.respond(1, b"")
    assert rejection(server, data(1)) == (1, 3)


def test_server_ignores_unknown_types_and_responses() -> None:
    server = ServerConnection()
    for frame_type in (0, codec.RESPONSE, 4, 255):
        assert server.receive_data(codec.encode_frame(1, frame_type, 0xFF, b"x")) == []
    assert len(server.receive_data(request(1))) == 1


def test_server_ends_streams_by_the_rules() -> None:
    server = ServerConnection()
    server.receive_data(request(1, codec.REMOTE_CLOSED) + request(3))
    assert server.send_data(1, b"m") == data(1, b"m")
    assert server.end_stream(1) == data(1, flags=CLOSE)
    client = ClientConnection()
    client.open(ENVELOPE)
    client.open(ENVELOPE)
    assert client.receive_data(server.respond(3, b"r")) == [ResponseReceived(3, b"r")]
    assert not server.is_open(1)
    assert not server.is_open(3)


def test_client_numbers_are_odd_and_grow() -> None:
    client = ClientConnection()
    assert [client.open(ENVELOPE)[0] for _ in range(3)] == [1, 3, 5]
    client._next_id = codec.MAX_STREAM_ID
    assert client.open(ENVELOPE)[0] == codec.MAX_STREAM_ID
    with pytest.raises(errors.Unavailable):
        client.open(ENVELOPE)


def test_refused_request_uses_up_no_number() -> None:
    client = ClientConnection()
    with pytest.raises(errors.ResourceExhausted):
        client.open(bytes(codec.MAX_PAYLOAD_BYTES + 1))
    assert client.open(ENVELOPE)[0] == 1


def test_client_flags_tell_the_kind_of_call() -> None:
    client = ClientConnection()
    kinds = [(False, False), (True, False), (False, True), (True, True)]
    opened = [client.open(b"", client_streaming=sends, server_streaming=gets)[1] for sends, gets in kinds]
    assert [frame[9] for frame in opened] == [0, codec.REMOTE_OPEN, codec.REMOTE_CLOSED, codec.REMOTE_OPEN]
    assert client.close_send(3) == data(3, flags=CLOSE)


def failure(client: ClientConnection, frame: bytes) -> tuple[int, type[errors.AtollError]]:
    (event,) = client.receive_data(frame)
    assert isinstance(event, StreamFailed)
    return event.stream_id, type(event.error)


def response(stream_id: int, envelope: bytes) -> bytes:
    return codec.encode_frame(stream_id, codec.RESPONSE, 0, envelope)


def test_client_tells_every_way_a_call_fails() -> None:
    client = ClientConnection()
    for _ in range(5):
        client.open(ENVELOPE)
    assert failure(client, response(1, codec.encode_error(errors.NotFound("gone")))) == (1, errors.NotFound)
    unheard = ttrpc_pb2.Response(status=status_pb2.Status(code=77, message="?"))
    assert failure(client, response(3, unheard.SerializeToString())) == (3, errors.Unknown)
    assert failure(client, response(5, b"\xff\xff")) == (5, errors.Internal)
    assert failure(client, data(7, b"x")) == (7, errors.Internal)
    oversized = struct.pack(">IIBB", codec.MAX_PAYLOAD_BYTES + 1, 9, codec.RESPONSE, 0)
    assert failure(client, oversized + bytes(codec.MAX_PAYLOAD_BYTES + 1)) == (9, errors.ResourceExhausted)


def test_client_drops_what_it_did_not_ask_for() -> None:
    client = ClientConnection()
    stream_id, _ = client.open(ENVELOPE)
    client.forget(stream_id)
    client.forget(stream_id)
    for late in (1, 2, 99):
        assert client.receive_data(response(late, codec.encode_response(b"")) + data(late, b"x")) == []


def test_client_reads_a_stream_to_its_end() -> None:
    client = ClientConnection()
    client.open(ENVELOPE, server_streaming=True)
    client.open(ENVELOPE, server_streaming=True)
    events = client.receive_data(data(1, b"a") + data(1) + data(1, flags=CLOSE) + data(1, b"late"))
    assert events == [MessageReceived(1, b"a"), MessageReceived(1, b""), StreamEnded(1)]
    assert client.receive_data(data(3, b"last", codec.REMOTE_CLOSED)) == [MessageReceived(3, b"last"), StreamEnded(3)]


@given(st.lists(st.one_of(st.binary(max_size=100), frames.map(lambda frame: codec.encode_frame(*frame)))))
def test_no_input_makes_a_machine_raise(pieces: list[bytes]) -> None:
    server, client = ServerConnection(), ClientConnection()
    client.open(ENVELOPE)
    client.open(ENVELOPE, client_streaming=True, server_streaming=True)
    for piece in pieces:
        server.receive_data(piece)
        client.receive_data(piece)
