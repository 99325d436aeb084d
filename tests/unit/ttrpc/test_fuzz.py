"""Hostile peers: whatever a connection carries, the process goes on and other connections do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll import errors
from atoll.ttrpc import codec
from atoll.ttrpc.client import Client
from atoll.ttrpc.server import Server
from tests.unit.ttrpc.echo import SERVICE, Echo, RawPeer, request_frame, status_of

BOUND_S = 5.0
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
METHODS = ["say", "fail", "hang", "repeat", "join", "chat", "deaf", "none"]

stream_ids = st.one_of(st.integers(0, 9), st.integers(0, codec.MAX_STREAM_ID))
flag_sets = st.sampled_from([0, 1, 2, 3, 4, 5, 255])
valid_frames = st.one_of(
    st.builds(
        request_frame,
        stream_ids,
        st.sampled_from(METHODS),
        st.sampled_from([b"", StringValue(value="7").SerializeToString(), b"\xff"]),
        flag_sets,
    ),
    st.builds(codec.encode_frame, stream_ids, st.sampled_from([1, 2, 3, 4]), flag_sets, st.binary(max_size=40)),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid conversation, shuffled, with bytes flipped and the end cut off."""
    data = bytearray(b"".join(draw(st.permutations(draw(st.lists(valid_frames, min_size=1, max_size=10))))))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), max_size=4)):
        data[place % len(data)] = value
    return bytes(data[: draw(st.integers(0, len(data)))])


hostile = st.one_of(st.binary(max_size=300), st.lists(valid_frames, max_size=12).map(b"".join), mutated())


def run(scenario: Callable[[Path], Awaitable[None]]) -> None:
    async def bounded(path: Path) -> None:
        async with asyncio.timeout(BOUND_S):
            await scenario(path)

    with tempfile.TemporaryDirectory(prefix="atoll-ttrpc-") as folder:
        asyncio.run(bounded(Path(folder) / "s"))


@given(hostile, st.booleans())
@FUZZ
def test_server_outlives_any_client(data: bytes, reads: bool) -> None:
    async def scenario(path: Path) -> None:
        echo = Echo()
        async with Server() as server:
            server.register(SERVICE, echo.methods())
            await server.serve(path)
            async with await Client.connect(str(path)) as good:
                with RawPeer.connect(path) as bad, contextlib.suppress(ConnectionError):
                    await bad.write(data)
                    if reads:
                        with contextlib.suppress(TimeoutError, EOFError):
                            await asyncio.wait_for(bad.read_frame(), 0.005)
                    response = await good.call(SERVICE, "say", StringValue(value="ok"), StringValue, timeout=1)
                    assert response.value == "ok"
                await until(lambda: server.connections == 1)
            await until(lambda: len(server.tasks) == 0)

    run(scenario)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - the server tells nobody when a connection has ended
        await asyncio.sleep(0.001)


@given(hostile)
@FUZZ
def test_client_outlives_any_server(data: bytes) -> None:
    async def scenario(path: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            async with await Client.from_socket(ours) as client:
                outcomes = await outcomes_of(client, theirs, data)
        assert all(outcome is None or isinstance(outcome, errors.AtollError) for outcome in outcomes)

    run(scenario)


async def outcomes_of(client: Client, server: socket.socket, data: bytes) -> list[errors.AtollError | None]:
    """What three calls come to when the server answers `data` and goes."""
    outcomes: list[errors.AtollError | None] = []

    async def outcome(work: Awaitable[object]) -> None:
        try:
            await work
        except errors.AtollError as error:
            outcomes.append(error)
        else:
            outcomes.append(None)

    async def read_stream() -> None:
        stream = await client.stream(SERVICE, "chat", StringValue, client_streaming=True, server_streaming=True)
        async with stream:
            async for _ in stream:
                pass

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(outcome(client.call(SERVICE, "say", b"", StringValue, timeout=2)))
        group.create_task(outcome(read_stream()))
        await asyncio.sleep(0)
        server.sendall(data)
        server.close()
    assert client.is_closed
    assert len(outcomes) == 3
    return outcomes


@pytest.mark.parametrize(
    ("data", "stream_id", "code"),
    [
        (request_frame(2, "say"), 2, errors.InvalidArgument.code),
        (codec.encode_frame(1, codec.DATA, 0, b"x"), 1, errors.InvalidArgument.code),
        (codec.encode_frame(1, codec.REQUEST, 0, b"\xff\xff"), 1, errors.InvalidArgument.code),
        (request_frame(1, "say", b"\xff\xff"), 1, errors.InvalidArgument.code),
        (request_frame(1, "none"), 1, errors.Unimplemented.code),
        (request_frame(1, "hang") + codec.encode_frame(1, codec.DATA, 0, b"x"), 1, errors.InvalidArgument.code),
        (b"\x00\x40\x00\x01\x00\x00\x00\x01\x01\x00" + bytes((4 << 20) + 1), 1, errors.ResourceExhausted.code),
        (
            request_frame(1, "chat", flags=2) + b"\x00\x40\x00\x01\x00\x00\x00\x01\x03\x00" + bytes((4 << 20) + 1),
            1,
            errors.ResourceExhausted.code,
        ),
    ],
    ids=[
        "even",
        "no-stream",
        "bad-envelope",
        "bad-message",
        "no-method",
        "data-on-unary",
        "oversized",
        "oversized-data",
    ],
)
async def test_broken_rule_is_answered_and_the_connection_goes_on(
    server: Server, socket_path: Path, data: bytes, stream_id: int, code: int
) -> None:
    with RawPeer.connect(socket_path) as peer:
        await peer.write(data)
        frame = await peer.read_frame()
        assert (frame.stream_id, status_of(frame)) == (stream_id, code)
        await peer.write(request_frame(11, "say"))
        frame = await peer.read_frame()
        assert (frame.stream_id, status_of(frame)) == (11, 0)
