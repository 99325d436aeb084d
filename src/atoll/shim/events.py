"""Task events on their way to the daemon.

`publish` never blocks and never fails. Events leave in the order they came, one at a time, by
`containerd.services.events.ttrpc.v1.Events/Forward`: up to `ATTEMPT_TIMEOUT_S` a try and `RETRIES` more
tries with growing pauses (1, 2, 3, ... s); the queue holds `QUEUE_LIMIT` events, later ones are dropped and counted.
An event is told after its exit record is on disk, so a lost one costs nobody the exit code.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from atoll import errors
from atoll.api import containerd_services_events_ttrpc_v1_pb2 as events_pb2
from atoll.concurrency import TaskOwner
from atoll.shim import wire
from atoll.ttrpc.client import Client

ATTEMPT_TIMEOUT_S = 5.0
RETRIES = 5
RETRY_STEP_S = 1.0
QUEUE_LIMIT = 2048

SERVICE = "containerd.services.events.ttrpc.v1.Events"

log = logging.getLogger(__name__)


class Forwarder:
    """Sends the events of one namespace to one address; without an address it sends none."""

    def __init__(self, tasks: TaskOwner) -> None:
        self._address = ""
        self._namespace = ""
        self._tasks = tasks
        self._queue: deque[events_pb2.ForwardRequest] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self.dropped = 0

    def open(self, address: str, namespace: str) -> None:
        """Send to `address` from now on; an empty one sends none."""
        self._address = address
        self._namespace = namespace

    def publish(self, topic: str, event: Message) -> None:
        """Queue an event that happened now."""
        if not self._address:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            self.dropped += 1
            log.warning("event %s dropped, the queue is full; %d so far", topic, self.dropped)
            return
        request = events_pb2.ForwardRequest()
        envelope = request.envelope
        envelope.timestamp.FromNanoseconds(time.time_ns())
        envelope.namespace = self._namespace
        envelope.topic = topic
        envelope.event.CopyFrom(wire.pack(event))
        self._queue.append(request)
        if self._worker is None or self._worker.done():
            self._worker = self._tasks.spawn(self._send_all(), name="events")

    async def flush(self, *, within: float) -> None:
        """Wait until what is queued was sent, at most `within` seconds."""
        if self._worker is not None:
            await asyncio.wait({self._worker}, timeout=within)

    async def aclose(self) -> None:
        """Close the connection; idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _send_all(self) -> None:
        while self._queue:
            request = self._queue[0]
            if not await self._send(request):
                self.dropped += 1
                log.warning("event %s dropped, the daemon does not take it", request.envelope.topic)
            self._queue.popleft()

    async def _send(self, request: events_pb2.ForwardRequest) -> bool:
        for attempt in range(RETRIES + 1):
            await asyncio.sleep(attempt * RETRY_STEP_S)
            if await self._try(request):
                return True
        return False

    async def _try(self, request: events_pb2.ForwardRequest) -> bool:
        fresh = self._client is None
        try:
            await self._forward(request)
        except errors.Unavailable:
            await self.aclose()
            if fresh:
                return False
            try:  # the daemon may have restarted since the last event
                await self._forward(request)
            except errors.AtollError as error:
                log.debug("event %s: %s", request.envelope.topic, error)
                return False
        except errors.InvalidArgument as error:
            log.warning("event %s refused: %s", request.envelope.topic, error)
        except errors.AtollError as error:
            log.debug("event %s: %s", request.envelope.topic, error)
            return False
        return True

    async def _forward(self, request: events_pb2.ForwardRequest) -> None:
        if self._client is None:
            self._client = await Client.connect(self._address, timeout=ATTEMPT_TIMEOUT_S)
        await self._client.call(SERVICE, "Forward", request, Empty, timeout=ATTEMPT_TIMEOUT_S)
