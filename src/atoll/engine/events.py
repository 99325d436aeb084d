"""What happened to pods and containers, told to whoever listens.

Each subscriber has a queue of `MAX_BACKLOG` events; one that does not keep up is ended with
`ResourceExhausted` and slows nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum

from atoll import errors

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


class _Subscriber:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event] = asyncio.Queue(MAX_BACKLOG)
        self.overrun = False


class EventBus:
    """Fans events out; publishing never waits."""

    def __init__(self) -> None:
        self._subscribers: set[_Subscriber] = set()

    def publish(self, event: Event) -> None:
        for subscriber in self._subscribers:
            if subscriber.queue.full():
                subscriber.overrun = True
            else:
                subscriber.queue.put_nowait(event)

    async def subscribe(self) -> AsyncIterator[Event]:
        """Every event from now on, in order; ends by `ResourceExhausted` where one had to be left out."""
        subscriber = _Subscriber()
        self._subscribers.add(subscriber)
        try:
            while True:
                if subscriber.overrun and subscriber.queue.empty():
                    raise errors.ResourceExhausted(
                        f"events: the reader is more than {MAX_BACKLOG} events late; subscribe again and list"
                    )
                yield await subscriber.queue.get()
        finally:
            self._subscribers.discard(subscriber)
