"""Connections to ports of a pod, on its own localhost."""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from pathlib import Path

from atoll import errors
from atoll.engine.engine import Engine
from atoll.linux import netns

CONNECT_TIMEOUT_S = 10.0
LOCALHOST = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
"""What a port of a pod is looked for on, in this order."""


async def dial(engine: Engine, pod_id: str, port: int) -> socket.socket:
    """A connection to a port on the pod's localhost, of IPv4 or else of IPv6; it does not block.

    Raises `FailedPrecondition` for a pod that is not ready, `Unavailable` where nothing answers.
    """
    pod = engine.pods.get(pod_id)
    pod.require_open("no port of it can be forwarded")
    if not pod.netns_path and not pod.config.host_network:
        raise errors.FailedPrecondition(f"pod {pod.id[:13]}: has no network namespace that we know of")
    try:
        sockets = await engine.parts.blocking.run(_sockets, pod.netns_path)
    except OSError as error:
        raise errors.Unavailable(f"pod {pod.id[:13]}: {pod.netns_path}: {error.strerror}") from error
    loop = asyncio.get_running_loop()
    faults: list[str] = []
    try:
        for connection, (_, host) in zip(tuple(sockets), LOCALHOST, strict=False):
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await loop.sock_connect(connection, (host, port))
            except OSError as error:  # TimeoutError is one
                faults.append(f"{host}: {os.strerror(error.errno).lower() if error.errno else 'no answer'}")
            else:
                sockets.remove(connection)
                # The pod is used for as long as the connection is there; whoever copies it closes it.
                weakref.finalize(connection, engine.parts.uses.begin(pod.id))
                return connection
    finally:
        for connection in sockets:
            connection.close()
    raise errors.Unavailable(f"pod {pod.id[:13]}: nothing answers on port {port}: {', '.join(faults)}")


def _sockets(path: str) -> list[socket.socket]:
    """Sockets made in the network namespace at `path`, in the host's for none; blocks."""

    def make() -> list[socket.socket]:
        made: list[socket.socket] = []
        for family, _ in LOCALHOST:
            try:
                one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            except OSError:
                if made:  # a kernel without IPv6
                    return made
                raise
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.append(one)
        return made

    return netns.inside(Path(path), make) if path else make()
