"""Many pods at once and many one after another: what `bench.soak` does with more of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from bench import soak
from bench.daemons import Atoll
from bench.places import Places, take_away
from tests.integration.leaks import Footprint

PODS_AT_ONCE = 40
PODS_IN_TURN = 60
GROWTH_LIMIT_KIB = 64.0
"""So few pods tell the allocator's steps (1 MiB) rather than a slope; what grows by pods or containers is more."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def soaked(leak_guard: Footprint) -> Iterator[Atoll]:
    """A daemon of the bench, in places that the leak guard watches; its name is that of the guard's prefix."""
    prefix = leak_guard.prefix
    try:
        with Atoll(Places(prefix=prefix, name="soak", number=3), runtimes=("runc",)) as daemon:
            yield daemon
    finally:
        take_away(prefix)


async def test_many_pods_live_at_once_and_leave_nothing(soaked: Atoll) -> None:
    result = await asyncio.to_thread(soak.alive_at_once, soaked, PODS_AT_ONCE)
    assert result.problems == []
    assert result.with_pods is not None
    assert result.with_pods.processes >= 2 * PODS_AT_ONCE
    assert result.with_pods.links == PODS_AT_ONCE


async def test_pods_in_turn_leave_the_daemon_as_it_was(soaked: Atoll) -> None:
    result = await asyncio.to_thread(soak.one_after_another, soaked, PODS_IN_TURN, every=10, limit_kib=GROWTH_LIMIT_KIB)
    assert result.problems == []
    assert result.samples[-1].pods == PODS_IN_TURN
