"""Events reach every subscriber in order; one that is late is told, and slows nobody."""

from __future__ import annotations

import asyncio
import gc

import pytest

from atoll import errors
from atoll.engine.events import MAX_BACKLOG, Event, EventBus, EventType


def event(number: int) -> Event:
    return Event(type=EventType.CREATED, pod_id="pod", container_id=str(number), at_ns=number)


async def test_each_subscriber_gets_every_event_in_order() -> None:
    bus = EventBus()
    bus.publish(event(-1))  # before anybody listens

    async def collect() -> list[int]:
        found: list[int] = []
        async for one in bus.subscribe():
            found.append(one.at_ns)
            if len(found) == 3:
                break
        return found

    async with asyncio.TaskGroup() as group:
        listeners = [group.create_task(collect()) for _ in range(2)]
        await asyncio.sleep(0)
        for number in range(3):
            bus.publish(event(number))
    assert [one.result() for one in listeners] == [[0, 1, 2]] * 2


async def test_a_late_subscriber_reads_what_it_has_and_is_then_told() -> None:
    bus = EventBus()
    subscription = bus.subscribe()
    first = asyncio.ensure_future(anext(subscription))  # noqa: TID251  a subscription begins with its first read
    await asyncio.sleep(0)
    for number in range(MAX_BACKLOG + 2):
        bus.publish(event(number))
    assert (await first).at_ns == 0
    for number in range(1, MAX_BACKLOG):
        assert (await anext(subscription)).at_ns == number
    with pytest.raises(errors.ResourceExhausted, match="late"):
        await anext(subscription)


async def test_a_subscriber_that_left_holds_nothing() -> None:
    bus = EventBus()
    subscription = bus.subscribe()
    waiting = asyncio.ensure_future(anext(subscription))  # noqa: TID251
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del subscription, waiting
    gc.collect()
    await asyncio.sleep(0)
    bus.publish(event(0))
    assert not bus._subscribers
