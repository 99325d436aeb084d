"""Removals that one walk makes true: none ends before it, and all end as it does."""

from __future__ import annotations

import asyncio

import pytest

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.engine.together import Together, removing


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


async def test_what_cannot_go_keeps_the_others() -> None:
    kept: list[str] = []

    async def remove(key: str, together: Together) -> None:
        if key == "b":
            raise errors.FailedPrecondition("b stays")
        try:
            await together.await_walk(key)
        except errors.FailedPrecondition:
            kept.append(key)
            raise

    async with TaskOwner("removals") as owner:
        with pytest.raises(errors.FailedPrecondition, match="b stays"):
            async with removing(owner, ["a", "b"], remove):
                pytest.fail("the walk was made")
        async with removing(owner, [], remove) as none:
            assert none == []
    assert kept == ["a"]


async def test_those_that_others_remove_are_not_for_the_walk() -> None:
    async def remove(key: str, together: Together) -> None:
        if key == "a":
            await together.await_walk(key)

    async with TaskOwner("removals") as owner, removing(owner, ["a", "b"], remove) as ready:
        assert ready == ["a"]
