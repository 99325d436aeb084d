"""What happened to pods and containers, told to whoever listens.

Each subscriber of a `Bus` has a queue of bounded length; one that does not keep up is ended with
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog(Generic[E]):
    """What may wait for one subscriber: so many events, of so much weight together, such as their bytes."""

    events: int = MAX_BACKLOG
    weight: int = 0
    weigh: Callable[[E], int] | None = None

    def of(self, event: E) -> int:
        return 0 if self.weigh is None else self.weigh(event)


class Subscription(Generic[E]):
    """The wanted events from its making on, in order; close it. Made by `Bus.open`."""

    def __init__(self, bus: Bus[E], wants: Callable[[E], bool], backlog: Backlog[E]) -> None:
        self.wants = wants
        self._bus = bus
        self._backlog = backlog
        self._weight = 0
        self._queue: asyncio.Queue[E | None] = asyncio.Queue(backlog.events + 1)
        self._is_overrun = False

    def offer(self, event: E) -> None:
        """Queue an event, unless it or an earlier one had to be left out; one is taken whatever it weighs."""
        weight = self._weight + self._backlog.of(event)
        is_too_much = weight > self._backlog.weight and not self._queue.empty()
        if not self._is_overrun and (is_too_much or self._queue.qsize() >= self._backlog.events):
            self._is_overrun = True
            self._bus.overrun += 1
        if not self._is_overrun:
            self._weight = weight
            self._queue.put_nowait(event)

    def end(self) -> None:
        """Have the reader told, behind what is queued, that no more will come."""
        if self._queue.qsize() <= self._backlog.events:
            self._queue.put_nowait(None)

    def close(self) -> None:
        """Take no more; idempotent."""
        self._bus.drop(self)

    def __aiter__(self) -> Subscription[E]:
        return self

    async def __anext__(self) -> E:
        """Raises `ResourceExhausted` where one had to be left out, `Unavailable` where the daemon ends."""
        if self._is_overrun and self._queue.empty():
            raise errors.ResourceExhausted("events: the reader is too many events late; subscribe again and list")
        event = await self._queue.get()
        if event is None:
            raise errors.Unavailable("events: the daemon ends; subscribe again")
        self._weight -= self._backlog.of(event)
        return event


def _everything(_event: object) -> bool:
    return True


class Bus(Generic[E]):
    """Fans events out; publishing never waits."""

    def __init__(self, backlog: Backlog[E] | None = None) -> None:
        self._backlog: Backlog[E] = backlog or Backlog()
        self._subscribers: set[Subscription[E]] = set()
        self._taps: list[Callable[[E], None]] = []
        self._at_close: list[Callable[[], None]] = []
        self.overrun = 0
        """Readers that did not keep up, so far."""

    def tap(self, told: Callable[[E], None]) -> None:
        """Have `told` called with every event from now on, at once: before its publisher goes on. It must not raise."""
        self._taps.append(told)

    def on_close(self, told: Callable[[], None]) -> None:
        """Have `told` called when the daemon ends."""
        self._at_close.append(told)

    @property
    def is_read(self) -> bool:
        """Whether anybody has subscribed."""
        return bool(self._subscribers)

    @property
    def readers(self) -> int:
        """How many have subscribed."""
        return len(self._subscribers)

    def publish(self, event: E) -> None:
        for told in self._taps:
            told(event)
        for subscriber in self._subscribers:
            if subscriber.wants(event):
                subscriber.offer(event)

    def open(self, wants: Callable[[E], bool] = _everything) -> Subscription[E]:
        """A subscription, which its maker closes."""
        subscription = Subscription(self, wants, self._backlog)
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
        for told in self._at_close:
            told()
        for subscriber in self._subscribers:
            subscriber.end()


EventBus = Bus[Event]
"""Of pods and containers."""
