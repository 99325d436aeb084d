"""Sessions of SPDY against a client's frames: streams, their ends, windows, and what is refused."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.streaming import spdy
from atoll.streaming import spdy_codec as codec
from atoll.streaming.flow import Gone
from atoll.streaming.spdy import Session, Stream
from atoll.streaming.spdy_codec import Reason
from tests.unit.streaming.carrier import Kept


class Client:
    """The other end of a session, in memory."""

    def __init__(self) -> None:
        self.carrier = Kept()
        self.streams: list[Stream] = []
        self.refuses: Reason | None = None
        self.session = Session(self.carrier, self._opened)
        self._encoder = codec.Encoder()

    def _opened(self, stream: Stream) -> Reason | None:
        self.streams.append(stream)
        return self.refuses

    def give(self, *data: bytes) -> list[codec.Event]:
        """Let the session take bytes; what it sent then."""
        for _ in self.session.receive(b"".join(data)):
            pass
        return self.carrier.events()

    def syn(self, stream: int, *, fin: bool = False) -> bytes:
        return self._encoder.syn_stream(stream, {"streamtype": "data"}, fin=fin)

    def opened(self) -> Stream:
        self.give(self.syn(1))
        return self.streams[0]


def data(stream: int, chunk: bytes, *, fin: bool = False) -> bytes:
    return codec.data_head(stream, len(chunk), fin=fin) + chunk


async def test_a_stream_is_replied_to_read_and_written() -> None:
    client = Client()
    assert client.give(client.syn(1), data(1, b"in")) == [codec.SynReply(1, {})]
    (stream,) = client.streams
    assert stream.headers == {"streamtype": "data"}
    assert bytes(await stream.inflow.read()) == b"in"
    await stream.write(b"out")
    await stream.end()
    await stream.end()
    assert client.carrier.events() == [codec.Data(1, b"out"), codec.Data(1, b"", fin=True)]
    with pytest.raises(Gone):
        await stream.write(b"more")


async def test_each_half_ends_by_itself() -> None:
    client = Client()
    stream = client.opened()
    client.give(data(1, b"last", fin=True))
    assert bytes(await stream.inflow.read()) == b"last"
    assert await stream.inflow.read() == b""
    await stream.write(b"still")
    assert client.carrier.events() == [codec.Data(1, b"still")]


async def test_a_reset_ends_both_halves_after_what_came() -> None:
    client = Client()
    stream = client.opened()
    client.give(data(1, b"before"), codec.rst_stream(1, Reason.CANCEL))
    assert bytes(await stream.inflow.read()) == b"before"
    with pytest.raises(Gone):
        await stream.inflow.read()
    with pytest.raises(Gone):
        await stream.write(b"x")
    assert client.give(data(1, b"late")) == []


async def test_a_lost_connection_is_the_end_of_every_stream() -> None:
    client = Client()
    stream = client.opened()
    reading = asyncio.ensure_future(stream.inflow.read())  # noqa: TID251 # a reader beside the test
    await asyncio.sleep(0)
    client.session.lost()
    with pytest.raises(Gone):
        await reading
    assert client.session.gone.is_set()


async def test_a_window_is_kept_to_once_the_peer_has_shown_that_it_has_one() -> None:
    client = Client()
    stream = client.opened()
    await stream.write(bytes(100_000))  # kubectl's library grants nothing, ever
    client.carrier.events()
    client.give(codec.window_update(1, 10), codec.window_update(0, 100_000))
    writing = asyncio.ensure_future(stream.write(b"y" * 20))  # noqa: TID251 # a writer beside the test
    await asyncio.sleep(0)
    assert client.carrier.events() == []
    client.give(codec.window_update(1, 100_000 - spdy.WINDOW_BYTES))
    await asyncio.sleep(0)
    assert client.carrier.events() == [codec.Data(1, b"y" * 10)]
    client.give(codec.settings({codec.INITIAL_WINDOW_SETTING: spdy.WINDOW_BYTES + 10}))
    await writing
    assert client.carrier.events() == [codec.Data(1, b"y" * 10)]


async def test_what_is_read_is_granted_again_to_stream_and_session() -> None:
    client = Client()
    stream = client.opened()
    client.give(data(1, bytes(50_000)))
    assert client.carrier.events() == []
    await stream.inflow.read()
    assert client.carrier.events() == [codec.WindowUpdate(1, 50_000), codec.WindowUpdate(0, 50_000)]


async def test_the_peer_is_held_back_while_too_much_waits() -> None:
    client = Client()
    stream = client.opened()
    client.give(data(1, bytes(spdy.STREAM_BUFFER_BYTES - 1)))
    assert not client.carrier.holds
    client.give(data(1, b"x"))
    assert client.carrier.holds == {spdy.STREAM_FULL}
    while stream.inflow.size:
        await stream.inflow.read()
    assert not client.carrier.holds


async def test_many_streams_together_hold_the_peer_back() -> None:
    client = Client()
    half = spdy.STREAM_BUFFER_BYTES // 2
    client.give(*(client.syn(stream) for stream in range(1, 18, 2)))
    client.give(*(data(stream, bytes(half)) for stream in range(1, 16, 2)))
    assert client.carrier.holds == {spdy.SESSION_FULL}
    for stream in client.streams:
        stream.inflow.discard()
    assert not client.carrier.holds


async def test_a_stream_that_is_refused_is_reset() -> None:
    client = Client()
    client.refuses = Reason.REFUSED_STREAM
    assert client.give(client.syn(1)) == [codec.RstStream(1, Reason.REFUSED_STREAM)]


async def test_more_streams_than_the_limit_are_refused_and_ended_ones_do_not_count() -> None:
    client = Client()
    numbers = range(1, 2 * spdy.MAX_STREAMS, 2)
    assert len(client.give(*(client.syn(stream) for stream in numbers))) == spdy.MAX_STREAMS
    beyond = 2 * spdy.MAX_STREAMS + 1
    assert client.give(client.syn(beyond)) == [codec.RstStream(beyond, Reason.REFUSED_STREAM)]
    client.streams[0].reset()
    client.carrier.events()
    assert client.give(client.syn(beyond + 2)) == [codec.SynReply(beyond + 2, {})]


async def test_a_ping_comes_back_and_our_own_would_not() -> None:
    client = Client()
    assert client.give(codec.ping(7), codec.ping(8)) == [codec.Ping(7)]


@pytest.mark.parametrize("what", ["even", "again", "unopened", "garbage"])
async def test_what_breaks_the_protocol_ends_the_session(what: str) -> None:
    client = Client()
    client.give(client.syn(3))
    frames = {
        "even": client.syn(4),
        "again": client.syn(3),
        "unopened": data(5, b"x"),
        "garbage": b"\x80\x03\x00\x01\x00\x00\x00\x00",
    }
    (event,) = client.give(frames[what])
    assert isinstance(event, codec.GoAway)
    assert event.reason == Reason.PROTOCOL_ERROR
    assert client.carrier.is_closed
    assert client.session.gone.is_set()


async def test_much_at_once_gives_the_loop_back_in_between() -> None:
    client = Client()
    turns = sum(1 for _ in client.session.receive(codec.ping(1) * 1000))
    assert turns == 1000 // spdy.EVENTS_A_SLICE


@settings(max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=60), st.integers(0, 8)), max_size=30))
def test_a_session_takes_anything(steps: list[bytes | int]) -> None:
    asyncio.run(_take_anything(steps))


async def _take_anything(steps: list[bytes | int]) -> None:
    client = Client()
    frames = (
        lambda: client.syn(1),
        lambda: client.syn(9, fin=True),
        lambda: data(1, b"abc"),
        lambda: data(9, b"", fin=True),
        lambda: codec.rst_stream(1, 5),
        lambda: codec.window_update(1, codec.MAX_STREAM_ID),
        lambda: codec.settings({codec.INITIAL_WINDOW_SETTING: 0}),
        lambda: codec.goaway(0),
        lambda: codec.ping(1),
    )
    for step in steps:
        if client.session.gone.is_set():
            break
        client.give(step if isinstance(step, bytes) else frames[step]())
    client.session.close()
    assert client.carrier.is_closed
