"""Several removals that one walk makes true: the containers of a pod go with it, in one commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from atoll import errors
from atoll.concurrency import TaskOwner, wait_all


class Together:
    """`count` removals, each of which prepares, says so, and waits for the end of the one walk that is made for all.

    One that ends otherwise, for it failed or somebody else had begun it, says `arrived` too.
    """

    def __init__(self, count: int) -> None:
        self._missing = count
        self._all_here = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrived: set[str] = set()
        self.ready: list[str] = []
        """The IDs of those that wait for the walk."""

    def arrived(self, key: str) -> None:
        """One has come as far as it can without the others; once counts."""
        if key not in self._arrived:
            self._arrived.add(key)
            if len(self._arrived) == self._missing:
                self._all_here.set()

    async def await_walk(self, key: str) -> None:
        """Be ready, then wait until the walk has been committed; raises what it failed with."""
        self.ready.append(key)
        self.arrived(key)
        await asyncio.shield(self._over)

    async def all_here(self) -> None:
        await self._all_here.wait()

    def end(self, error: BaseException | None = None) -> None:
        """The walk is committed, or failed with `error`."""
        if error is None:
            self._over.set_result(None)
            return
        if not isinstance(error, Exception):
            error = errors.Unavailable("the removal of its pod was stopped before it ended; try again")
        self._over.set_exception(error)
        self._over.exception()  # nobody may wait for it


SETTLE_S = 1.0
"""For those that were ready to say that they stay."""
Removal = Callable[[str, Together], Awaitable[None]]


@contextlib.asynccontextmanager
async def removing(owner: TaskOwner, keys: list[str], remove: Removal) -> AsyncGenerator[list[str]]:
    """Have everything of `keys` ready to go; inside, the caller makes the one walk for those that it is given.

    An error in there, or of one that cannot go, is what all of them fail with.
    """
    together = Together(len(keys))
    removals = [owner.spawn(_removed(key, together, remove), name=f"removal of {key} with others") for key in keys]
    try:
        if keys:
            await together.all_here()
        for removal in removals:
            if removal.done() and (failure := removal.result()) is not None:
                raise failure
        yield together.ready
    except BaseException as error:
        together.end(error)
        if removals:
            await asyncio.wait(removals, timeout=SETTLE_S)
        raise
    together.end()
    for failure in await wait_all(list[Awaitable[errors.AtollError | None]](removals)):
        if failure is not None:
            raise failure


async def _removed(key: str, together: Together, remove: Removal) -> errors.AtollError | None:
    """Remove one, or join who does; what it failed with."""
    try:
        await remove(key, together)
    except errors.AtollError as error:
        return error
    finally:
        together.arrived(key)
    return None
