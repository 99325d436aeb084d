"""The threads of the image store, for work that takes long: they may be told to stop and are always waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, cast

from atoll.concurrency import Blocking, run_to_completion

T = TypeVar("T")
STOP_TIMEOUT_S = 60.0


class Workers(Blocking):
    """As `Blocking`, for work that cannot be left running when its caller goes."""

    async def finish(self, work: Callable[[], T], *, stop: Callable[[], None]) -> T:
        """Run `work`; a caller that is cancelled calls `stop` and waits until the thread has ended."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop()
            await run_to_completion(_ended(future), within=STOP_TIMEOUT_S)
            raise


async def _ended(future: asyncio.Future[T]) -> None:
    await asyncio.wait({future})
    if not future.cancelled():
        future.exception()  # the caller is told of the cancellation, not of what it made fail


def first_error(error: Exception) -> Exception:
    """The first error of a group: one failed layer ends the others, and only it is to blame."""
    if isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error)
        return first_error(group.exceptions[0])
    return error
