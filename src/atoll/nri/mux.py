"""Several connections over one stream, without I/O.

A frame is a header of eight bytes, big endian, and a payload:

    connection u32 | length u32 | payload (length bytes, at most one whole ttrpc frame)

A connection needs no opening: both ends know its number. Source: the NRI plugin protocol; containerd's
implementation of it, which reads a frame into a buffer of `FIRST_BYTES`, or what is left of a message into one as long.
A frame that does not fit its reader's buffer ends the connection there, so `frames` cuts a message where it does.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from atoll import errors
from atoll.ttrpc import codec

PLUGIN_SERVICE: Final = 1
"""The connection on which the plugin serves `Plugin`."""
RUNTIME_SERVICE: Final = 2
"""The connection on which the runtime serves `Runtime`."""

HEADER_BYTES: Final = 8
MAX_PAYLOAD_BYTES: Final = codec.HEADER_BYTES + codec.MAX_PAYLOAD_BYTES
FIRST_BYTES: Final = 4096

_HEADER: Final = struct.Struct(">II")


class Piece(NamedTuple):
    """Bytes of one connection, as they came: a frame may arrive as several."""

    connection: int
    data: memoryview


def frames(connection: int, message: bytes) -> bytes:
    """One whole ttrpc frame as frames of the mux: one, or two where it is longer than `FIRST_BYTES`."""
    first = message[:FIRST_BYTES]
    sent = _HEADER.pack(connection, len(first)) + first
    if len(message) > FIRST_BYTES:
        sent += _HEADER.pack(connection, len(message) - FIRST_BYTES) + message[FIRST_BYTES:]
    return sent


class Demultiplexer:
    """Takes a stream, cut anywhere, apart into its connections; holds at most an incomplete header."""

    __slots__ = ("_connection", "_header", "_left")

    def __init__(self) -> None:
        self._header = bytearray()
        self._connection = 0
        self._left = 0

    def receive_data(self, data: memoryview) -> list[Piece]:
        """The pieces in `data`, in order, which are views of it.

        Raises `InvalidArgument` for a frame above `MAX_PAYLOAD_BYTES`; nothing can be read from the stream after that.
        """
        pieces: list[Piece] = []
        position, size = 0, len(data)
        while position < size:
            if self._left == 0:
                taken = min(HEADER_BYTES - len(self._header), size - position)
                self._header += data[position : position + taken]
                position += taken
                if len(self._header) < HEADER_BYTES:
                    break
                self._begin()
            taken = min(self._left, size - position)
            if taken:
                pieces.append(Piece(self._connection, data[position : position + taken]))
                position += taken
                self._left -= taken
        return pieces

    def _begin(self) -> None:
        self._connection, self._left = _HEADER.unpack(self._header)
        self._header.clear()
        if self._left > MAX_PAYLOAD_BYTES:
            raise errors.InvalidArgument(f"frame of {self._left} bytes is above the limit of {MAX_PAYLOAD_BYTES}")
