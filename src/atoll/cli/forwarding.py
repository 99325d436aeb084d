"""`atoll port-forward`: local ports that lead to ports of a pod."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from atoll import errors
from atoll.cli import work
from atoll.cli.outcome import say
from atoll.cli.run import interruptible
from atoll.client import Client, Pod
from atoll.client.control import Connection
from atoll.concurrency import TaskOwner

READ_BYTES = 64 << 10


def parse(text: str) -> tuple[int, int]:
    """The local port, 0 for any free one, and the pod's, of `8080:80`, `:80` or `80`; raises `InvalidArgument`."""
    local, colon, remote = text.partition(":")
    if not colon:
        local, remote = text, text
    numbers = local or "0", remote
    if not all(one.isdecimal() and int(one) < 65536 for one in numbers) or int(remote) == 0:
        raise errors.InvalidArgument(f"port {text!r}: must be like 8080:80, :80 or 80")
    return int(numbers[0]), int(remote)


async def forward(client: Client, name: str, ports: Sequence[tuple[int, int]], address: str) -> int:
    """Listen until a signal ends it; each connection is one to the pod, whose errors are told and end nothing else."""
    pod = await work.pod_or_none(client, name)
    if pod is None:
        container = await work.container_of(client, name)
        pod = client.pod_by_id(container.pod_id)
    async with interruptible(), TaskOwner("forward") as tasks, contextlib.AsyncExitStack() as stack:
        for local, remote in ports:
            server = await _listen(tasks, pod, address, local, remote)
            stack.callback(server.close)
            bound = server.sockets[0].getsockname()
            print(f"{bound[0]}:{bound[1]} -> {remote}", flush=True)
        await asyncio.Event().wait()
    return 0


async def _listen(tasks: TaskOwner, pod: Pod, address: str, local: int, remote: int) -> asyncio.Server:
    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.spawn(_relay(pod, remote, reader, writer), name="forward/connection")

    try:
        return await asyncio.start_server(accept, address, local)
    except OSError as error:
        raise errors.Unavailable(
            f"{address}:{local}: cannot be listened on: {error.strerror or error}; choose another port, as in :{remote}"
        ) from error


async def _relay(pod: Pod, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with pod.connect(port) as connection, TaskOwner("forward/up") as tasks:
            tasks.spawn(_up(reader, connection), name="forward/up")
            while data := await connection.receive():
                writer.write(data)
                await writer.drain()
    except errors.AtollError as error:
        say(str(error))
    except OSError:
        return  # the local side has left
    finally:
        writer.close()


async def _up(reader: asyncio.StreamReader, connection: Connection) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_BYTES):
            await connection.send(data)
    await connection.end()
