"""Events reach every subscriber in order; one that is late is told, and slows nobody."""

from __future__ import annotations

import asyncio
import gc

import pytest

from atoll import errors
from atoll.engine.events import MAX_BACKLOG, Backlog, Bus, Event, EventBus, EventType


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


async def test_what_waits_is_bounded_by_weight_too() -> None:
    bus: Bus[bytes] = Bus(Backlog(weight=10, weigh=len))
    late, prompt = bus.open(), bus.open()
    for one in (b"x" * 50, b"y", b"z"):  # one is taken whatever it weighs
        bus.publish(one)
        assert await anext(prompt) == one
    assert await anext(late) == b"x" * 50
    with pytest.raises(errors.ResourceExhausted, match="late"):
        await anext(late)
    for one in (b"a" * 6, b"b" * 4):
        bus.publish(one)
    assert [await anext(prompt), await anext(prompt)] == [b"a" * 6, b"b" * 4]


async def test_a_tap_is_told_before_the_publisher_goes_on() -> None:
    bus = EventBus()
    told: list[int] = []
    bus.tap(lambda one: told.append(one.at_ns))
    bus.publish(event(1))
    bus.publish(event(2))
    assert told == [1, 2]
    assert not bus.is_read


async def test_the_end_of_the_daemon_is_told_behind_what_waits() -> None:
    bus, ended = EventBus(), list[bool]()
    subscription = bus.open()
    bus.on_close(lambda: ended.append(True))
    bus.publish(event(1))
    bus.close()
    assert (await anext(subscription)).at_ns == 1
    with pytest.raises(errors.Unavailable, match="ends"):
        await anext(subscription)
    assert ended == [True]
