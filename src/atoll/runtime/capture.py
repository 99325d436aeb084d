"""A process's output, collected up to a limit, by many at a time within one budget."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from atoll.concurrency import wait_all
from atoll.runtime.streams import ByteReader, ProcessIO

FLOOR_BYTES = 64 * 1024
"""What of each stream is kept although the budget is used up."""


class Budget:
    """Bytes that all captures which share it may keep together, beyond `FLOOR_BYTES` of each stream."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes

    def take(self, wanted: int) -> int:
        """How many of the wanted bytes may be kept; they are given back by `give_back`."""
        granted = min(wanted, self._left)
        self._left -= granted
        return granted

    def give_back(self, count: int) -> None:
        self._left += count


class Captured:
    """One stream: its beginning, as far as there is room, and its last bytes."""

    def __init__(self, limit_bytes: int, tail_bytes: int, budget: Budget) -> None:
        self._limit = limit_bytes
        self._tail_bytes = tail_bytes
        self._budget = budget
        self._lent = 0
        self._kept = bytearray()
        self._tail = bytearray()
        self.is_cut = False
        """Whether something of it was dropped."""

    @property
    def data(self) -> bytes:
        """The beginning, a copy."""
        return bytes(self._kept)

    @property
    def end(self) -> bytes:
        """The last bytes of all that came."""
        count = self._tail_bytes
        return bytes((self._kept[-count:] + self._tail)[-count:]) if count else b""

    async def read(self, stream: ByteReader) -> None:
        """Read it to its end."""
        async for chunk in stream:
            room = self._room(len(chunk))
            self._kept += chunk[:room]
            if room < len(chunk):
                self.is_cut = True
                self._tail += chunk[max(room, len(chunk) - self._tail_bytes) :] if self._tail_bytes else b""
                del self._tail[: -self._tail_bytes or None]

    def _room(self, wanted: int) -> int:
        """How many of the next bytes are kept."""
        kept = len(self._kept)
        wanted = min(wanted, self._limit - kept)
        free = min(wanted, max(FLOOR_BYTES - kept, 0))
        lent = self._budget.take(wanted - free)
        self._lent += lent
        return free + lent

    def let_go(self) -> None:
        """Keep nothing any more; what it had of the budget is given back."""
        self._kept = bytearray()
        self._budget.give_back(self._lent)
        self._lent = 0


class Capture:
    """Collects both streams of a process, at most `limit_bytes` of each; the rest is read and dropped.

    Where the `budget` is used up less is kept; `tail_bytes` of the end of each are remembered besides. What was
    collected can be read at any time, also after a `run` that was cancelled, until the context is left.
    """

    def __init__(self, io: ProcessIO, limit_bytes: int, *, tail_bytes: int = 0, budget: Budget | None = None) -> None:
        self._io = io
        shared = budget if budget is not None else Budget(2 * limit_bytes)
        self.stdout, self.stderr = (Captured(limit_bytes, tail_bytes, shared) for _ in range(2))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self.stdout, self.stderr):
            one.let_go()

    async def run(self) -> None:
        """Read both streams to their end; raises what they raise, after both have ended."""
        streams = ((self._io.stdout, self.stdout), (self._io.stderr, self.stderr))
        await wait_all([into.read(stream) for stream, into in streams if stream is not None])
