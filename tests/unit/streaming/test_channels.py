"""The channels of a WebSocket, against a client's own frames."""

from __future__ import annotations

import asyncio
import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import events
from wsproto.connection import Connection, ConnectionType
from wsproto.frame_protocol import CloseReason

from atoll.streaming import channels as module
from atoll.streaming.channels import Channels
from atoll.streaming.flow import Gone
from atoll.streaming.websocket import Socket
from tests.unit.streaming.wires import wired


class Peer:
    """A client and the server's channels 0 and 4, in memory."""

    def __init__(self, *, is_base64: bool = False, has_close: bool = False) -> None:
        self.wire, self.transport = wired()
        socket = Socket(self.wire, Connection(ConnectionType.SERVER))
        self.channels = Channels(socket, readable=(0, 4), is_base64=is_base64, has_close=has_close)
        self.wire.start(self.channels.receive)
        self._client = Connection(ConnectionType.CLIENT)

    def give(self, *sent: events.Event) -> None:
        for event in sent:
            self.wire.data_received(self._client.send(event))

    def got(self) -> list[bytes | str | int]:
        """Messages, and codes of closes."""
        self._client.receive_data(bytes(self.transport.written))
        self.transport.written.clear()
        found: list[bytes | str | int] = []
        for event in self._client.events():
            if isinstance(event, events.Message):
                found.append(event.data if isinstance(event.data, str) else bytes(event.data))
            elif isinstance(event, events.CloseConnection):
                found.append(int(event.code))
        return found

    def end(self) -> None:
        self.wire.connection_lost(None)


async def test_bytes_go_to_and_from_their_channels() -> None:
    peer = Peer()
    peer.give(events.BytesMessage(b"\x00in"), events.BytesMessage(b"\x04{}"), events.BytesMessage(b"\x07lost"))
    assert bytes(await peer.channels.inflow(0).read()) == b"in"
    assert bytes(await peer.channels.inflow(4).read()) == b"{}"
    await peer.channels.outlet(1).write(b"out")
    await peer.channels.outlet(1).write(b"")
    assert peer.got() == [b"\x01out", b"\x01"]
    peer.end()


async def test_base64_is_text_both_ways() -> None:
    peer = Peer(is_base64=True)
    peer.give(events.TextMessage("0" + base64.b64encode(b"\xff\x00").decode()))
    assert bytes(await peer.channels.inflow(0).read()) == b"\xff\x00"
    await peer.channels.outlet(2).write(b"\xfe")
    assert peer.got() == ["2" + base64.b64encode(b"\xfe").decode()]
    peer.end()


async def test_a_message_in_pieces_is_one() -> None:
    peer = Peer()
    peer.give(
        events.BytesMessage(b"\x00", message_finished=False),
        events.BytesMessage(b"ab", message_finished=False),
        events.BytesMessage(b"c"),
        events.BytesMessage(b"\x00d"),
    )
    assert bytes(await peer.channels.inflow(0).read()) == b"abcd"
    peer.end()


async def test_version_5_ends_a_channel_and_earlier_ones_do_not() -> None:
    for has_close in (True, False):
        peer = Peer(has_close=has_close)
        peer.give(events.BytesMessage(b"\x00last"), events.BytesMessage(b"\xff\x00"))
        assert bytes(await peer.channels.inflow(0).read()) == b"last"
        assert peer.channels.inflow(0).is_over is has_close
        peer.end()


async def test_a_close_is_answered_and_ends_what_comes_in() -> None:
    peer = Peer()
    peer.give(events.BytesMessage(b"\x00last"), events.CloseConnection(1000))
    assert peer.got() == [1000]
    assert bytes(await peer.channels.inflow(0).read()) == b"last"
    with pytest.raises(Gone):
        await peer.channels.inflow(0).read()
    with pytest.raises(Gone):
        await peer.channels.outlet(1).write(b"x")
    peer.end()


async def test_large_output_is_sent_in_messages_of_bounded_size() -> None:
    peer = Peer()
    await peer.channels.outlet(1).write(b"x" * (module.MAX_MESSAGE_BYTES + 1))
    assert [len(part) for part in peer.got() if isinstance(part, bytes)] == [module.MAX_MESSAGE_BYTES + 1, 2]
    peer.end()


async def test_a_client_is_held_back_while_too_much_waits() -> None:
    peer = Peer()
    peer.give(events.BytesMessage(b"\x00" + bytes(module.BUFFER_BYTES)))
    assert not peer.transport.reads
    while peer.channels.inflow(0).size:
        await peer.channels.inflow(0).read()
    assert peer.transport.reads
    peer.end()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("0" + "A" * (module.MAX_TEXT_MESSAGE + 1), CloseReason.MESSAGE_TOO_BIG),
        ("0A", CloseReason.INVALID_FRAME_PAYLOAD_DATA),
    ],
)
async def test_texts_that_are_too_long_or_no_base64_end_the_connection(message: str, code: int) -> None:
    peer = Peer(is_base64=True)
    peer.give(events.TextMessage(message))
    await asyncio.sleep(0)
    assert peer.got() == [code]
    assert peer.transport.state == "closed"
    peer.end()


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=80), max_size=10), st.booleans())
def test_channels_take_anything(pieces: list[bytes], is_base64: bool) -> None:
    async def scenario() -> None:
        peer = Peer(is_base64=is_base64, has_close=True)
        for piece in pieces:
            if peer.transport.state != "open":
                break
            peer.wire.data_received(piece)
            await asyncio.sleep(0)
        peer.end()

    asyncio.run(scenario())
