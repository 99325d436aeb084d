"""Waiting until a descriptor can be read, without a task or a thread."""

from __future__ import annotations

import asyncio


async def readable(fd: int) -> None:
    """Return once reading `fd` would not block: data, the end of file, or (pidfd) an exit."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
