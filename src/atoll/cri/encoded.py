"""Messages that are their bytes already: a list of hundreds is put together from parts that were encoded before.

Protobuf allows it: a message is its fields one after another, and a repeated field is its items, each with the
field's tag and its length before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LENGTH_DELIMITED = 2
MAX_BATCH_BYTES = 1 << 20
"""Of one message of a stream; a single larger item is sent alone."""


class Encoded:
    """A message, for whoever only wants to serialize it."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:
        """The bytes, as a message of protobuf gives them."""
        return self.data


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or message, as it is on the wire; `number` up to 15."""
    return bytes((number << 3 | LENGTH_DELIMITED,)) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A number of protobuf, not negative."""
    if value < 0x80:
        return bytes((value,))
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def whole(items: Iterable[bytes]) -> Encoded:
    """One message of items that are fields already."""
    return Encoded(b"".join(items))


def batches(items: Iterable[bytes]) -> Iterator[Encoded]:
    """The same as messages of a stream: each item in exactly one, no message without any."""
    batch: list[bytes] = []
    size = 0
    for item in items:
        if batch and size + len(item) > MAX_BATCH_BYTES:
            yield whole(batch)
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        yield whole(batch)
