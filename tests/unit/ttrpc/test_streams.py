"""Streaming calls between our client and our server, and their flow control."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from atoll import errors
from atoll.ttrpc import codec, transport
from atoll.ttrpc.client import Client, ClientStream
from atoll.ttrpc.server import Server
from tests.unit.ttrpc.echo import SERVICE, Echo, RawPeer, request_frame

BOUND_S = 5.0


def text(value: str) -> StringValue:
    return StringValue(value=value)


async def repeat(client: Client, count: int) -> ClientStream[StringValue]:
    return await client.stream(SERVICE, "repeat", StringValue, request=text(str(count)), server_streaming=True)


async def chat(client: Client) -> ClientStream[StringValue]:
    return await client.stream(SERVICE, "chat", StringValue, client_streaming=True, server_streaming=True)


@pytest.mark.parametrize("count", [0, 1, 500])
async def test_server_stream_gives_every_message_in_order(client: Client, count: int) -> None:
    async with await repeat(client, count) as stream:
        assert [message.value async for message in stream] == [str(number) for number in range(count)]
        assert await stream.receive() is None


async def test_client_stream_gives_one_result(client: Client) -> None:
    async with await client.stream(SERVICE, "join", StringValue, client_streaming=True) as stream:
        for value in "abc":
            await stream.send(text(value))
        assert (await stream.result()).value == "a,b,c"


async def test_empty_client_stream_gives_an_empty_result(client: Client) -> None:
    async with await client.stream(SERVICE, "join", StringValue, client_streaming=True) as stream:
        assert (await stream.result()).value == ""


async def test_zero_length_message_is_a_message(client: Client) -> None:
    async with await client.stream(SERVICE, "join", StringValue, client_streaming=True) as stream:
        for value in ("", "", "x"):
            await stream.send(text(value))
        assert (await stream.result()).value == ",,x"


async def test_both_directions_go_on_until_the_half_close(client: Client) -> None:
    async with await chat(client) as stream:
        for value in ("one", "", "two"):
            await stream.send(text(value))
            message = await stream.receive()
            assert message is not None
            assert message.value == value.upper()
        await stream.close_send()
        await stream.close_send()
        assert await stream.receive() is None


async def test_server_may_go_on_after_the_half_close(client: Client) -> None:
    async with await chat(client) as stream:
        for value in "abc":
            await stream.send(text(value))
        await stream.close_send()
        assert [message.value async for message in stream] == ["A", "B", "C"]


async def test_first_message_may_come_with_the_request(client: Client) -> None:
    stream = await client.stream(SERVICE, "join", StringValue, request=text("first"), client_streaming=True)
    async with stream:
        await stream.send(text("second"))
        assert (await stream.result()).value == "first,second"


async def test_sending_after_the_half_close_is_refused(client: Client) -> None:
    async with await chat(client) as stream:
        await stream.close_send()
        with pytest.raises(errors.FailedPrecondition):
            await stream.send(text("late"))


async def test_error_comes_after_the_messages_before_it(client: Client) -> None:
    stream = await client.stream(SERVICE, "break_off", StringValue, request=text(""), server_streaming=True)
    async with stream:
        first = await stream.receive()
        assert first is not None
        assert first.value == "first"
        for _ in range(2):
            with pytest.raises(errors.Aborted, match="lost the race"):
                await stream.receive()


async def test_unary_method_is_not_streamed(client: Client) -> None:
    with pytest.raises(errors.InvalidArgument):
        await client.stream(SERVICE, "say", StringValue)


async def test_unknown_streaming_method_is_unimplemented(client: Client) -> None:
    async with await client.stream(SERVICE, "none", StringValue, client_streaming=True) as stream:
        with pytest.raises(errors.Unimplemented):
            await stream.result()


async def test_deadline_ends_a_stream_on_both_sides(client: Client, echo: Echo) -> None:
    stream = await client.stream(
        SERVICE, "deaf", StringValue, client_streaming=True, server_streaming=True, timeout=0.05
    )
    async with stream:
        with pytest.raises(errors.DeadlineExceeded):
            await stream.receive()
        with pytest.raises(errors.DeadlineExceeded):
            await stream.send(text("late"))
    await asyncio.wait_for(echo.cancelled.wait(), BOUND_S)


async def test_message_that_cannot_be_decoded_fails_its_stream_only(client: Client) -> None:
    async with await chat(client) as bad, await chat(client) as good:
        await bad.send(b"\xff\xff")
        with pytest.raises(errors.InvalidArgument, match="decoded"):
            await bad.receive()
        await good.send(text("fine"))
        message = await good.receive()
        assert message is not None
        assert message.value == "FINE"


async def test_streams_fail_when_the_connection_ends(client: Client) -> None:
    async with await chat(client) as stream:
        client.close()
        with pytest.raises(errors.Unavailable, match=f"{transport.CLOSED}$"):
            await stream.receive()
        with pytest.raises(errors.Unavailable, match=f"{transport.CLOSED}$"):
            await stream.send(text("late"))


async def test_closed_stream_ends_its_reader_and_its_handler(client: Client) -> None:
    stream = await chat(client)
    stream.close()
    stream.close()
    with pytest.raises(errors.Cancelled):
        await stream.receive()


async def flooded(client: Client, echo: Echo, size: int) -> ClientStream[StringValue]:
    """A stream whose server sends as fast as it may, until it may no more."""
    stream = await client.stream(SERVICE, "flood", StringValue, request=text(str(size)), server_streaming=True)
    await echo.started.wait()
    sent = -1
    while sent != echo.sent:
        sent = echo.sent
        await asyncio.sleep(0.1)
    return stream


async def test_reader_that_is_late_stops_the_server(client: Client, echo: Echo) -> None:
    size = 64 << 10
    stream = await flooded(client, echo, size)
    slack = 4 << 20  # socket buffers, the server's write buffer, one read
    assert transport.UNREAD_HIGH_BYTES < echo.sent * size < transport.UNREAD_HIGH_BYTES + slack
    before = echo.sent
    for _ in range(before + 100):
        assert await stream.receive() is not None
    stream.close()
    response = await asyncio.wait_for(client.call(SERVICE, "say", text("x"), StringValue), BOUND_S)
    assert response.value == "x"


async def test_closing_an_unread_stream_frees_the_connection(client: Client, echo: Echo) -> None:
    stream = await flooded(client, echo, 64 << 10)
    stream.close()
    response = await asyncio.wait_for(client.call(SERVICE, "say", text("x"), StringValue), BOUND_S)
    assert response.value == "x"


async def test_writer_waits_for_a_handler_that_does_not_read(client: Client, echo: Echo) -> None:
    stream = await client.stream(SERVICE, "deaf", StringValue, client_streaming=True, server_streaming=True)
    chunk = text("x" * (256 << 10))
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while True:
                await stream.send(chunk)
                sent += 1
    assert transport.UNREAD_HIGH_BYTES < sent * (256 << 10) < 4 * transport.UNREAD_HIGH_BYTES


async def test_peer_that_goes_unread_still_cancels_its_handler(server: Server, socket_path: Path, echo: Echo) -> None:
    chunk = codec.encode_frame(1, codec.DATA, 0, text("x" * (1 << 20)).SerializeToString())
    with RawPeer.connect(socket_path) as peer:
        await peer.write(request_frame(1, "deaf", flags=codec.REMOTE_OPEN))
        await peer.write_until_it_stalls(chunk, for_s=0.2)
    await asyncio.wait_for(echo.cancelled.wait(), BOUND_S)


async def test_peer_that_reads_no_answers_is_not_read_from(server: Server, socket_path: Path) -> None:
    bad = codec.encode_frame(2, codec.DATA, 0, b"") * 10_000
    with RawPeer.connect(socket_path) as peer:
        await peer.write_until_it_stalls(bad, for_s=0.5)
        (connection,) = server._connections
        assert connection.must_wait
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 2 << 20


async def test_peer_that_closes_its_side_has_gone_although_answers_wait_for_it(
    server: Server, socket_path: Path, echo: Echo
) -> None:
    with RawPeer.connect(socket_path) as peer:
        await peer.write(request_frame(1, "flood", text("65536"), codec.REMOTE_CLOSED))
        await asyncio.wait_for(echo.started.wait(), BOUND_S)
        peer.close_sending()
        await asyncio.wait_for(echo.cancelled.wait(), BOUND_S)


async def test_late_reader_learns_of_the_end_after_the_messages_before_it(
    client: Client, server: Server, echo: Echo
) -> None:
    stream = await flooded(client, echo, 64 << 10)
    (connection,) = server._connections
    connection.abort()
    await asyncio.wait_for(client.closed, BOUND_S)
    received: Counter[int] = Counter()
    with pytest.raises(errors.Unavailable, match=f"{transport.CLOSED}$"):
        await count_all(stream, received)
    assert received[64 << 10] * (64 << 10) > transport.UNREAD_HIGH_BYTES


async def count_all(stream: ClientStream[StringValue], received: Counter[int]) -> None:
    """Count the messages by their length, also those before an error."""
    async for message in stream:
        received[len(message.value)] += 1
