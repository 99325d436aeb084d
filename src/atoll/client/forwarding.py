"""Ports of a pod as streams here, and as ports of this host while a program runs.

    async with pod.forward(80) as (reader, writer): ...       one connection
    async with pod.listen(80) as listener: ...                http://127.0.0.1:<listener.port>

Both lead to the pod's own localhost, whatever it publishes, also in a pod without a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

from atoll import errors
from atoll.client.control import Connection
from atoll.client.wire import Wire
from atoll.concurrency import TaskOwner

READ_BYTES = 64 << 10
MAX_CONNECTIONS = 256
"""Of one listener at a time; who comes then waits."""
OnError = Callable[[errors.AtollError], None]


class Forward:
    """One connection to a port of a pod, as a stream reader and writer; leaving it closes both."""

    def __init__(self, connection: Wire, pod_id: str, port: int) -> None:
        self._connection = Connection(connection, pod_id, port)
        self._tasks = TaskOwner("forward")
        self._writer: asyncio.StreamWriter | None = None

    async def open_socket(self) -> socket.socket:
        """The connection as a socket, which is the caller's to close; raises `Unavailable` where nothing answers."""
        try:
            await self._connection.opened()
        except BaseException:
            await self.aclose()
            raise
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._tasks.spawn(_carried(self._connection, theirs), name="forward")
        return ours

    async def aclose(self) -> None:
        """Let go of the connection; idempotent."""
        await self._tasks.aclose()
        await self._connection.aclose()

    async def __aenter__(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await asyncio.open_connection(sock=await self.open_socket())
        return reader, self._writer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                with contextlib.suppress(OSError):
                    await self._writer.wait_closed()
        finally:
            await self.aclose()


async def _carried(connection: Connection, end: socket.socket) -> None:
    """Move bytes both ways until the pod has ended its side; a client's end goes to the pod, which may still answer."""
    loop = asyncio.get_running_loop()

    async def to_pod() -> None:
        with contextlib.suppress(OSError, errors.AtollError):
            while data := await loop.sock_recv(end, READ_BYTES):
                await connection.send(data)
            await connection.end()

    with end:
        async with TaskOwner("forward") as tasks:
            tasks.spawn(to_pod(), name="forward/to pod")
            with contextlib.suppress(OSError, errors.AtollError):  # its reader sees the end
                while data := await connection.receive():
                    await loop.sock_sendall(end, data)


class Listener:
    """A port of this host whose connections lead to a port of a pod; it listens from `__aenter__` to `__aexit__`."""

    def __init__(
        self, connection: Wire, pod_id: str, port: int, host: str, local_port: int, on_error: OnError | None
    ) -> None:
        self._wire = connection
        self._pod_id = pod_id
        self._pod_port = port
        self._asked = (host, local_port)
        self._server: asyncio.Server | None = None
        self._tasks = TaskOwner("listener")
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._on_error = on_error

    @property
    def host(self) -> str:
        return self._asked[0]

    @property
    def port(self) -> int:
        """The port of this host; 0 while it does not listen."""
        if self._server is None or not self._server.sockets:
            return 0
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def open(self) -> None:
        """Begin to listen; raises `AlreadyExists` for a port in use, `PermissionDenied`."""
        host, port = self._asked
        try:
            self._server = await asyncio.start_server(self._arrived, host, port)
        except PermissionError as error:
            raise errors.PermissionDenied(f"{host}:{port}: {error.strerror}") from error
        except OSError as error:
            raise errors.AlreadyExists(f"{host}:{port}: cannot be listened on: {error.strerror}") from error

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.spawn(self._serve(reader, writer), name="listener/connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: Connection | None = None
        try:
            async with self._room, TaskOwner("listener") as tasks:
                connection = Connection(self._wire, self._pod_id, self._pod_port)
                await connection.opened()
                tasks.spawn(_sent(reader, connection), name="listener/to pod")
                while data := await connection.receive():
                    writer.write(data)
                    await writer.drain()
        except errors.AtollError as error:
            if self._on_error is not None:
                self._on_error(error)
            writer.transport.abort()
        except OSError:
            writer.transport.abort()
        finally:
            writer.close()
            if connection is not None:
                await connection.aclose()

    async def aclose(self) -> None:
        """Listen no more and end what is connected; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self._tasks.aclose()
        if server is not None:
            await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _sent(reader: asyncio.StreamReader, connection: Connection) -> None:
    with contextlib.suppress(OSError, errors.AtollError):
        while data := await reader.read(READ_BYTES):
            await connection.send(data)
        await connection.end()
