"""The messages of one byte stream over ttrpc, as both ends write and read them.

Each travels as `google.protobuf.Any` whose type URL is the bare full name. Whoever receives data grants windows of
`WINDOW_BYTES`; whoever sends it starts with none.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import DecodeError, Message

from atoll import errors
from atoll.api import containerd_services_streaming_v1_pb2 as streaming_pb2
from atoll.api import containerd_types_transfer_pb2 as transfer_pb2

SERVICE = "containerd.services.streaming.v1.Streaming"
METHOD = "Stream"
MAX_DATA_BYTES = 32 << 10
WINDOW_BYTES = 64 << 10

M = TypeVar("M", bound=Message)


def init_message(streaming_id: str) -> any_pb2.Any:
    """The first message of the client."""
    return _pack(streaming_pb2.StreamInit(id=streaming_id))


def acknowledgement() -> any_pb2.Any:
    """The server's answer to it."""
    return _pack(empty_pb2.Empty())


def data_message(data: bytes) -> any_pb2.Any:
    """A piece of at most `MAX_DATA_BYTES`."""
    return _pack(transfer_pb2.Data(data=data))


def window_message(size: int) -> any_pb2.Any:
    """A grant of `size` more bytes."""
    return _pack(transfer_pb2.WindowUpdate(update=size))


def streaming_id_of(message: Message) -> str:
    """The id that a client's first message names."""
    return _unpack(message, streaming_pb2.StreamInit).id


def data_of(message: Message) -> bytes:
    """The bytes of a data message."""
    return _unpack(message, transfer_pb2.Data).data


def window_of(message: Message) -> int:
    """The size of a grant; `InvalidArgument` for one that grants nothing."""
    update = _unpack(message, transfer_pb2.WindowUpdate).update
    if update <= 0:
        raise errors.InvalidArgument(f"stream: a window update of {update} bytes")
    return update


def _pack(message: Message) -> any_pb2.Any:
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def _unpack(message: Message, kind: type[M]) -> M:
    wanted = kind.DESCRIPTOR.full_name
    if not isinstance(message, any_pb2.Any) or message.type_url.rpartition("/")[2] != wanted:
        found = message.type_url if isinstance(message, any_pb2.Any) else message.DESCRIPTOR.full_name
        raise errors.InvalidArgument(f"stream: a {found or 'nameless'} message where {wanted} was due")
    try:
        return kind.FromString(message.value)
    except DecodeError as error:
        raise errors.InvalidArgument(f"stream: {wanted} cannot be decoded: {error}") from error


class Window:
    """What a sender may still send; one waiter at a time."""

    def __init__(self) -> None:
        self._size = 0
        self._error: errors.AtollError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def grant(self, size: int) -> None:
        """Allow `size` more bytes."""
        self._size += size
        self._wake()

    def fail(self, error: errors.AtollError) -> None:
        """Let every wait from now on raise `error`; the first one stays."""
        self._error = self._error or error
        self._wake()

    def spend(self, size: int) -> None:
        """Count bytes that were sent."""
        self._size -= size

    async def open(self) -> int:
        """How much may be sent, once that is more than nothing."""
        while self._size <= 0:
            if self._error is not None:
                raise type(self._error)(self._error.message)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._size

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
