"""Live output for attached clients.

A shared hub (containers) gives every client what comes from its attach on, each through a bounded
buffer; a client that does not read is dropped with a reason and slows neither the container, nor the log,
nor the others. That of a terminal keeps the first `GREETING_BYTES` for its first client, who would else miss
the prompt.
A lossless hub (execs, streams without a log) has one client at a time and holds the process back while that
client does not read, or none is there. A newer client takes the stream over, with what the older had not taken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from atoll import errors

CLIENT_BUFFER_BYTES = 1 << 20
LOSSLESS_BUFFER_BYTES = 128 << 10
GREETING_BYTES = 16 << 10


class HubClient:
    """One reader's view of a hub; made by `Hub.attach`, ended by `detach`."""

    __slots__ = ("_chunks", "_ended", "_error", "_hub", "_on_error", "_waiter", "size")

    def __init__(self, hub: Hub, on_error: Callable[[errors.AtollError], None] | None) -> None:
        self._hub = hub
        self._on_error = on_error
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._error: errors.AtollError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0

    async def read(self, limit: int) -> bytes:
        """The next bytes, at most `limit`; empty at the end of the stream.

        `ResourceExhausted` where this client was dropped because it read too slowly, `Aborted` where another took the
        stream over. One reader at a time.
        """
        while not self._chunks:
            if self._error is not None:
                raise type(self._error)(self._error.message)
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._take(limit)

    def unread(self, data: bytes) -> None:
        """Give back bytes that could not be delivered."""
        self._chunks.appendleft(data)
        self.size += len(data)

    def detach(self, error: errors.AtollError | None = None) -> None:
        """Leave the hub; a lossless hub keeps what was not read. A read that waits raises `error`. Idempotent."""
        self._hub.forget(self, error or errors.Cancelled(f"stream {self._hub.name}: detached"))

    def put(self, chunk: bytes) -> None:
        """For the hub: add a chunk."""
        self._chunks.append(chunk)
        self.size += len(chunk)
        self._wake()

    def finish(self, error: errors.AtollError | None = None) -> list[bytes]:
        """For the hub: nothing follows; after an error what is buffered is returned, not read."""
        self._ended = True
        left: list[bytes] = []
        if error is not None:
            self._error = error
            if self._on_error is not None:
                self._on_error(error)
            left = list(self._chunks)
            self._chunks.clear()
            self.size = 0
        self._wake()
        return left

    def _take(self, limit: int) -> bytes:
        chunk = self._chunks.popleft()
        if len(chunk) > limit:
            self._chunks.appendleft(chunk[limit:])
            chunk = chunk[:limit]
        elif self._chunks and len(chunk) < limit // 2:
            parts, size = [chunk], len(chunk)
            while self._chunks and size + len(self._chunks[0]) <= limit:
                parts.append(self._chunks.popleft())
                size += len(parts[-1])
            chunk = b"".join(parts)
        self.size -= len(chunk)
        self._hub.taken()
        return chunk

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hub:
    """The live end of one output stream; a `Sink`."""

    __slots__ = ("_changed", "_clients", "_ended", "_greeting_left", "_kept", "_lossless", "name")

    def __init__(self, name: str, *, lossless: bool, greets: bool = False) -> None:
        self.name = name
        self._greeting_left = GREETING_BYTES if greets and not lossless else 0
        self._lossless = lossless
        self._clients: list[HubClient] = []
        self._kept: deque[bytes] = deque()  # taken from the process, not by a client: lossless, or a greeting
        self._changed: Callable[[], None] | None = None
        self._ended = False

    @property
    def is_blocked(self) -> bool:
        if not self._lossless:
            return False
        return not self._clients or self._clients[0].size >= LOSSLESS_BUFFER_BYTES

    @property
    def is_idle(self) -> bool:
        return not self._lossless or not (self._kept or any(client.size for client in self._clients))

    @property
    def clients(self) -> int:
        """How many are attached."""
        return len(self._clients)

    @property
    def held_bytes(self) -> int:
        """How much waits for clients."""
        return sum(client.size for client in self._clients) + sum(map(len, self._kept))

    def attach(self, on_error: Callable[[errors.AtollError], None] | None = None) -> HubClient:
        """A new client; after the end of the stream it reads what is left, then the end.

        `on_error` is told at once why the client was dropped or detached, also when it does not read.
        """
        client = HubClient(self, on_error)
        if self._lossless:
            for older in self._clients:
                self._kept.extend(older.finish(errors.Aborted(f"stream {self.name}: a newer client took it over")))
            self._clients.clear()
        self._greeting_left = 0
        while self._kept:
            client.put(self._kept.popleft())
        if self._ended:
            client.finish()
        self._clients.append(client)
        self.taken()
        return client

    def forget(self, client: HubClient, error: errors.AtollError) -> None:
        """For clients: remove one."""
        if client not in self._clients:
            return
        self._clients.remove(client)
        left = client.finish(error)
        if self._lossless:
            self._kept.extend(left)
        self.taken()

    def taken(self) -> None:
        """For clients: something left a buffer."""
        if self._lossless and self._changed is not None:
            self._changed()

    def connect(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def write(self, chunk: bytes) -> None:
        if not self._clients:
            if self._lossless:
                self._kept.append(chunk)
            elif self._greeting_left:
                self._kept.append(chunk[: self._greeting_left])
                self._greeting_left -= len(self._kept[-1])
            return
        for client in tuple(self._clients):
            if not self._lossless and client.size + len(chunk) > CLIENT_BUFFER_BYTES:
                self._clients.remove(client)
                waiting = client.size
                reason = f"stream {self.name}: dropped, {waiting} bytes were not read; attach again and read faster"
                client.finish(errors.ResourceExhausted(reason))
            else:
                client.put(chunk)

    def end(self) -> None:
        self._ended = True
        for client in self._clients:
            client.finish()

    def close(self) -> None:
        """End the stream; attached clients still read what they have."""
        self.end()
        self._kept.clear()
        if not self._lossless:
            return
        # Nobody waits for them any more: the stream is over.
        self._lossless = False
