"""What has come in on a stream and waits for its reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

Chunk: TypeAlias = bytes | bytearray | memoryview


JOIN_BYTES = 256 << 10
"""What is read together where much waits."""
SMALL_BYTES = 32 << 10
"""A chunk below it is copied: it would hold all that it came with."""


class Gone(Exception):
    """The other end has left: the stream was reset, or its connection ended."""


class Inflow:
    """Bytes of one stream in their order; one reader.

    It takes whatever it is given: `changed` tells the owner by how much the amount that waits grew or fell, and the
    owner keeps the sender back.
    """

    __slots__ = ("_changed", "_chunks", "_discards", "_ended", "_gone", "_waiter", "size")

    def __init__(self, changed: Callable[[int], None]) -> None:
        self._changed = changed
        self._chunks: deque[Chunk] = deque()
        self._ended = False
        self._gone = False
        self._discards = False
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0

    def feed(self, chunk: Chunk) -> None:
        """Add what came; after `discard` it is dropped, but still told."""
        if not chunk or self._ended or self._gone:
            return
        size = len(chunk)
        if self._discards:
            self._changed(size)
            self._changed(-size)
            return
        self.size += size
        self._changed(size)
        if size >= SMALL_BYTES:
            self._chunks.append(chunk)
        elif self._chunks and isinstance(last := self._chunks[-1], bytearray) and len(last) < JOIN_BYTES:
            last += chunk
        else:
            self._chunks.append(bytearray(chunk))
        self._wake()

    def end(self) -> None:
        """Nothing follows; idempotent."""
        self._ended = True
        self._wake()

    def fail(self) -> None:
        """The sender has gone: what it sent is still read, then `Gone` is raised; idempotent."""
        self._gone = True
        self._wake()

    def discard(self) -> None:
        """Drop what waits and all that follows: nobody reads it."""
        self._discards = True
        self._chunks.clear()
        size, self.size = self.size, 0
        if size:
            self._changed(-size)
        self._wake()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come in."""
        return self._ended or self._gone

    async def read(self) -> Chunk:
        """The next bytes, never none before the end, which is empty. Raises `Gone` after the last byte."""
        chunks = await self.read_chunks()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read_chunks(self) -> list[Chunk]:
        """As `read`, in the pieces in which they wait: at most `JOIN_BYTES` where it is more than one."""
        while not self._chunks:
            if self._ended:
                return []
            if self._gone:
                raise Gone
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunks = [self._chunks.popleft()]
        size = len(chunks[0])
        while self._chunks and size + len(self._chunks[0]) <= JOIN_BYTES:
            chunks.append(self._chunks.popleft())
            size += len(chunks[-1])
        self.size -= size
        self._changed(-size)
        return chunks

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
