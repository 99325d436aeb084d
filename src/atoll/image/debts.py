"""Disk space that could not be given back: what undoes a pull has failed, or was never come to; tried until it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

from atoll import errors
from atoll.concurrency import TaskOwner, run_to_completion

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0


class Debts:
    """Pays by `pay`, which frees all that nobody needs; where nothing is owed nothing wakes up."""

    def __init__(self, owner: TaskOwner, pay: Callable[[], Awaitable[None]]) -> None:
        self._owner = owner
        self._pay = pay
        self._paying: asyncio.Task[None] | None = None
        self._is_owed = False

    def owe(self) -> None:
        """There is something, or may be; it is freed in the background."""
        self._is_owed = True
        if self._paying is None or self._paying.done():
            self._paying = self._owner.spawn(self._pay_all(), name="images/debts")

    async def undone(self, undo: Coroutine[None, None, None], *, within: float) -> None:
        """Run what undoes to its end; what it cannot do is owed, for an error is on its way already."""
        try:
            await run_to_completion(undo, within=within)
        except (errors.AtollError, OSError) as error:
            log.warning("images: something could not be undone yet, it will be: %s", error)
            self.owe()

    async def _pay_all(self) -> None:
        pause = FIRST_PAUSE_S
        while self._is_owed:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)
            self._is_owed = False
            try:
                await self._pay()
            except (errors.AtollError, OSError) as error:
                log.warning("images: their space is not given back yet, will be retried: %s", error)
                self._is_owed = True
