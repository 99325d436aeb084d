"""Messages and windows of a byte stream over ttrpc."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf import any_pb2

from atoll import errors
from atoll.api import containerd_types_transfer_pb2 as transfer_pb2
from atoll.shim.stdio import flow


def test_messages_round_trip_under_the_bare_name() -> None:
    assert flow.data_message(b"x").type_url == "containerd.types.transfer.Data"
    assert flow.init_message("c").type_url == "containerd.services.streaming.v1.StreamInit"
    assert flow.streaming_id_of(flow.init_message("c-stdin")) == "c-stdin"
    assert flow.data_of(flow.data_message(b"\0x")) == b"\0x"
    assert flow.window_of(flow.window_message(7)) == 7


def test_a_prefixed_type_url_is_understood() -> None:
    packed = any_pb2.Any()
    packed.Pack(transfer_pb2.Data(data=b"x"))
    assert flow.data_of(packed) == b"x"


@pytest.mark.parametrize(
    "message",
    [
        any_pb2.Any(),
        flow.data_message(b"x"),
        transfer_pb2.WindowUpdate(update=1),
        any_pb2.Any(type_url="containerd.types.transfer.WindowUpdate", value=b"\xff"),
        flow.window_message(0),
        flow.window_message(-5),
    ],
)
def test_another_message_is_refused(message: any_pb2.Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="stream"):
        flow.window_of(message)


async def test_sender_waits_for_a_window() -> None:
    window = flow.Window()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(window.open())
        await asyncio.sleep(0)
        assert not waiting.done()
        window.grant(10)
    assert waiting.result() == 10
    window.spend(10)
    window.fail(errors.Cancelled("gone"))
    window.fail(errors.Internal("later"))
    with pytest.raises(errors.Cancelled):
        await window.open()
