"""What happened to pods and containers, told to whoever listens.

Each subscriber of a `Bus` has a queue of `MAX_BACKLOG` events; one that does not keep up is ended with
`ResourceExhausted` and slows nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

from atoll import errors

E = TypeVar("E")

MAX_BACKLOG = 4096


class EventType(IntEnum):
    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`container_id` is the pod's own ID where the pod itself is meant. `at_ns` counts from the epoch."""

    type: EventType
    pod_id: str
    container_id: str
    at_ns: int


class Subscription(Generic[E]):
    """The wanted events from its making on, in order; close it. Made by `Bus.open`."""

    def __init__(self, bus: Bus[E], wants: Callable[[E], bool]) -> None:
        self.wants = wants
        self._bus = bus
        self._queue: asyncio.Queue[E | None] = asyncio.Queue(MAX_BACKLOG + 1)
        self._is_overrun = False

    def offer(self, event: E) -> None:
        """Queue an event, unless it or an earlier one had to be left out."""
        self._is_overrun = self._is_overrun or self._queue.qsize() >= MAX_BACKLOG
        if not self._is_overrun:
            self._queue.put_nowait(event)

    def end(self) -> None:
        """Have the reader told, behind what is queued, that no more will come."""
        if self._queue.qsize() <= MAX_BACKLOG:
            self._queue.put_nowait(None)

    def close(self) -> None:
        """Take no more; idempotent."""
        self._bus.drop(self)

    def __aiter__(self) -> Subscription[E]:
        return self

    async def __anext__(self) -> E:
        """Raises `ResourceExhausted` where one had to be left out, `Unavailable` where the daemon ends."""
        if self._is_overrun and self._queue.empty():
            raise errors.ResourceExhausted(
                f"events: the reader is more than {MAX_BACKLOG} events late; subscribe again and list"
            )
        event = await self._queue.get()
        if event is None:
            raise errors.Unavailable("events: the daemon ends; subscribe again")
        return event


def _everything(_event: object) -> bool:
    return True


class Bus(Generic[E]):
    """Fans events out; publishing never waits."""

    def __init__(self) -> None:
        self._subscribers: set[Subscription[E]] = set()

    def publish(self, event: E) -> None:
        for subscriber in self._subscribers:
            if subscriber.wants(event):
                subscriber.offer(event)

    def open(self, wants: Callable[[E], bool] = _everything) -> Subscription[E]:
        """A subscription, which its maker closes."""
        subscription = Subscription(self, wants)
        self._subscribers.add(subscription)
        return subscription

    def drop(self, subscription: Subscription[E]) -> None:
        """Take a subscription off; idempotent."""
        self._subscribers.discard(subscription)

    async def subscribe(self) -> AsyncGenerator[E]:
        """Every event from the first read on; ends as `Subscription` does."""
        subscription = self.open()
        try:
            async for event in subscription:
                yield event
        finally:
            subscription.close()

    def close(self) -> None:
        """Tell every reader that the daemon ends."""
        for subscriber in self._subscribers:
            subscriber.end()


EventBus = Bus[Event]
"""Of pods and containers."""
