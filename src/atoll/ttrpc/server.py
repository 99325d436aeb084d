"""The server: listening sockets, registered services, graceful shutdown.

Light to import (no gRPC, no SQLite): every shim does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.descriptor import ServiceDescriptor

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.ttrpc import address as addresses
from atoll.ttrpc.calls import ServedConnection, Services
from atoll.ttrpc.service import Method, methods_of

SHUTDOWN_TIMEOUT_S = 5.0
# After a handler was cancelled, this is how long its clean-up may take before it is left behind.
CANCEL_TIMEOUT_S = 1.0

log = logging.getLogger(__name__)


class Server:
    """Serves registered services on any number of unix sockets.

    A connection's fault (malformed frames, a crashed handler, a peer that does not read) ends at that connection. With
    `peer_uid`, a peer of another user is dropped before a byte of it is read. Leaving the context shuts down.
    """

    def __init__(self, *, peer_uid: int | None = None) -> None:
        self._services: dict[str, Mapping[str, Method]] = {}
        self._peer_uid = peer_uid
        self._tasks = TaskOwner("ttrpc server")
        self._listeners: list[asyncio.Server] = []
        self._bound: list[tuple[Path, int]] = []
        self._connections: set[ServedConnection] = set()
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def register(self, service: str, methods: Mapping[str, Method]) -> None:
        """Serve `methods` as `service` (full name), also on connections that are open; once, else `AlreadyExists`."""
        if service in self._services:
            raise errors.AlreadyExists(f"service {service} is registered")
        self._services[service] = methods

    def add_service(self, descriptor: ServiceDescriptor, implementation: object) -> None:
        """Register what `implementation` has of the service that `descriptor` declares."""
        self.register(descriptor.full_name, methods_of(descriptor, implementation))

    async def serve(self, where: socket.socket | Path | str) -> None:
        """Start to accept on a bound socket, or on a new one of mode 0600 at a path; returns at once after that.

        The server owns the socket from now on. A path it bound itself is removed at shutdown, if it is still its own.
        """
        if self._draining:
            raise errors.Unavailable("the server is shut down")
        if isinstance(where, socket.socket):
            listener = where
        else:
            path = Path(where)
            listener = addresses.bind(path)
            self._bound.append((path, addresses.inode(path)))
        try:
            listener.setblocking(False)
            serving = await asyncio.get_running_loop().create_server(
                lambda: ServedConnection(self), sock=listener, backlog=addresses.LISTEN_BACKLOG
            )
        except BaseException:
            listener.close()
            raise
        self._listeners.append(serving)

    async def shutdown(self, *, within: float = SHUTDOWN_TIMEOUT_S) -> None:
        """Stop accepting, let running calls end for `within` seconds, then cancel them and close everything.

        New requests on open connections are answered `Unavailable`. Idempotent; takes at most `within` plus
        2 * `CANCEL_TIMEOUT_S`. Not for a handler to await: it would wait for itself.
        """
        self._draining = True
        self._close_listeners()
        for connection in list(self._connections):
            if not connection.calls:
                connection.close()
        try:
            if not await self._emptied(within):
                for connection in list(self._connections):
                    connection.cancel_calls()
                await self._emptied(CANCEL_TIMEOUT_S)
        finally:
            for connection in list(self._connections):
                connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                await self._tasks.aclose()
        if self._tasks:
            log.error("ttrpc: %d handlers ignore their cancellation and are left behind", len(self._tasks))

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path, inode in self._bound:
            with contextlib.suppress(FileNotFoundError):
                if addresses.inode(path) == inode:
                    path.unlink()
        self._bound.clear()

    async def _emptied(self, within: float) -> bool:
        try:
            async with asyncio.timeout(within):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    # What a connection needs

    @property
    def services(self) -> Services:
        """The registered methods, by service."""
        return self._services

    @property
    def tasks(self) -> TaskOwner:
        """Who owns the handlers' tasks."""
        return self._tasks

    @property
    def draining(self) -> bool:
        """Whether shutdown has begun."""
        return self._draining

    @property
    def peer_uid(self) -> int | None:
        """The only user whose connections are served, if there is one."""
        return self._peer_uid

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def joined(self, connection: ServedConnection) -> None:
        """A connection was accepted."""
        self._connections.add(connection)
        self._empty.clear()
        if self._draining:
            connection.close()

    def left(self, connection: ServedConnection) -> None:
        """A connection is over."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()
