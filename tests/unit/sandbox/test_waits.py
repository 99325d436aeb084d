"""Many who wait ask once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest

from atoll import errors
from atoll.sandbox.controller import ExitStatus
from atoll.sandbox.waits import SharedWaits

T = TypeVar("T")
ENDED = ExitStatus(exit_status=7, exited_at=datetime(2026, 1, 1, tzinfo=UTC))


def later(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


class End:
    def __init__(self) -> None:
        self.asked = 0
        self.answer: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    async def ask(self) -> ExitStatus:
        self.asked += 1
        return await asyncio.shield(self.answer)


async def test_a_thousand_share_one_question() -> None:
    end, waits = End(), SharedWaits("test")
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(waits.join("one", end.ask)) for _ in range(1000)]
        await asyncio.sleep(0)
        callers[0].cancel()
        await asyncio.sleep(0)
        end.answer.set_result(ENDED)
    assert {caller.result() for caller in callers[1:]} == {ENDED}
    assert (end.asked, len(waits)) == (1, 0)


async def test_the_question_ends_with_the_last_who_waits() -> None:
    end, waits = End(), SharedWaits("test")
    callers = [later(waits.join("one", end.ask)) for _ in range(3)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert len(waits) == 0
    end.answer.set_result(ENDED)
    assert await waits.join("one", end.ask) == ENDED
    assert end.asked == 2


async def test_an_error_reaches_all_and_the_next_asks_again() -> None:
    end, waits = End(), SharedWaits("test")
    callers = [later(waits.join("one", end.ask)) for _ in range(3)]
    await asyncio.sleep(0)
    end.answer.set_exception(errors.NotFound("gone"))
    done, _ = await asyncio.wait(callers)
    assert {type(caller.exception()) for caller in done} == {errors.NotFound}
    with pytest.raises(errors.NotFound):
        await waits.join("one", end.ask)
    assert end.asked == 2


async def test_closing_lets_all_go() -> None:
    end, waits = End(), SharedWaits("test")
    caller = later(waits.join("one", end.ask))
    await asyncio.sleep(0)
    await waits.aclose()
    with pytest.raises(errors.Unavailable):
        await caller
