"""Removals that one walk makes true: none ends before it, and all end as it does."""

from __future__ import annotations

import asyncio

import pytest

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.engine.together import Together


async def test_each_waits_for_the_walk_of_all() -> None:
    together = Together(2)
    async with TaskOwner("removals") as owner:
        removals = [owner.spawn(together.await_walk(key), name=key) for key in ("a", "b")]
        await together.all_here()
        assert together.ready == ["a", "b"]
        assert not any(removal.done() for removal in removals)
        together.end()
        await asyncio.wait(removals)
        assert all(removal.exception() is None for removal in removals)


async def test_one_that_somebody_else_removes_holds_nobody_up() -> None:
    together = Together(2)
    async with TaskOwner("removals") as owner:
        removal = owner.spawn(together.await_walk("a"), name="a")
        together.arrived("b")
        together.arrived("b")
        await together.all_here()
        assert together.ready == ["a"]
        together.end()
        await removal


async def test_a_walk_that_fails_fails_all() -> None:
    together = Together(1)
    async with TaskOwner("removals") as owner:
        removal = owner.spawn(together.await_walk("a"), name="a")
        await together.all_here()
        together.end(errors.ResourceExhausted("the disk is full"))
        with pytest.raises(errors.ResourceExhausted, match="full"):
            await removal


async def test_a_walk_that_is_cancelled_leaves_something_to_try_again() -> None:
    together = Together(1)
    together.end(asyncio.CancelledError())
    with pytest.raises(errors.Unavailable, match="try again"):
        await together.await_walk("a")
