"""A bound for what a program writes into memory files while somebody waits for its end.

The files are memory, which nothing else limits: a pipe would, but a child that keeps it open would hold up its reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator

from atoll import errors

LOOK_S = 0.05
"""Between two looks at the sizes: what a program may write beyond its limit is what it writes in this time."""


@contextlib.asynccontextmanager
async def bounded(*files: int, limit_bytes: int, what: str) -> AsyncGenerator[None]:
    """Cancel the wait inside, which kills the program, once one of `files` is larger: `ResourceExhausted`, with `what`.

    What ends sooner than the first look costs nothing.
    """
    loop = asyncio.get_running_loop()
    bound = asyncio.timeout(None)
    timer: asyncio.TimerHandle | None = None
    is_flooded = False

    def look() -> None:
        nonlocal timer, is_flooded
        if any(os.fstat(fd).st_size > limit_bytes for fd in files):
            is_flooded = True
            bound.reschedule(loop.time())
        else:
            timer = loop.call_later(LOOK_S, look)

    timer = loop.call_later(LOOK_S, look)
    try:
        async with bound:
            yield
    except TimeoutError as error:
        if not is_flooded:
            raise
        raise errors.ResourceExhausted(f"{what}: wrote more than {limit_bytes} bytes and was killed") from error
    finally:
        timer.cancel()
