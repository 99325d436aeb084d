"""Calls that make something: a caller that is cancelled leaves nothing behind.

The daemon finishes what was asked although the client goes away, so a cancelled caller waits for the answer
and takes back what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

from atoll import errors
from atoll.concurrency import run_to_completion

T = TypeVar("T")

UNDO_WITHIN_S = 240.0


async def made_or_undone(
    making: Coroutine[None, None, T], undo: Callable[[T], Coroutine[None, None, None]], *, within: float
) -> T:
    """The result of `making`; where the caller is cancelled meanwhile, `undo` is run on it first. Both are bounded."""
    made: list[T] = []
    failures: list[errors.AtollError] = []

    async def make() -> None:
        try:
            made.append(await making)
        except errors.AtollError as error:  # a caller that was cancelled does not want to know
            failures.append(error)

    try:
        await run_to_completion(make(), within=within)
    except asyncio.CancelledError:
        if made:
            await run_to_completion(undo(made[0]), within=UNDO_WITHIN_S)
        raise
    if failures:
        raise failures[0]
    return made[0]
