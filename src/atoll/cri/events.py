"""GetContainerEvents: what happens to pods and containers, each event with what they were like then.

An event is made into its message once, at the moment that it tells of, whoever reads it and when; where nobody reads,
none is made. A reader has all of them in order from its first answer on, or is told that it has not.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator

from atoll import errors, rpc
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.cri import views
from atoll.cri.encoded import Encoded
from atoll.engine.engine import Engine
from atoll.engine.events import Backlog, Bus, Event, EventType

log = logging.getLogger(__name__)

TYPES = {
    EventType.CREATED: pb.CONTAINER_CREATED_EVENT,
    EventType.STARTED: pb.CONTAINER_STARTED_EVENT,
    EventType.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    EventType.DELETED: pb.CONTAINER_DELETED_EVENT,
}
MAX_BACKLOG_BYTES = 8 << 20
"""Of messages that wait for one reader; they are the same ones for every reader."""
BACKLOG: Backlog[Encoded] = Backlog(weight=MAX_BACKLOG_BYTES, weigh=lambda one: len(one.data))


class Events:
    """The RPC of events."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._bus: Bus[Encoded] = Bus(BACKLOG)
        engine.parts.events.tap(self._tell)
        engine.parts.events.on_close(self._bus.close)

    def _tell(self, event: Event) -> None:
        if self._bus.is_read:
            self._bus.publish(Encoded(self._message(event).SerializeToString()))

    def _message(self, event: Event) -> pb.ContainerEventResponse:
        """With the pod, even one that is being removed, and those of its containers that are there."""
        message = pb.ContainerEventResponse(
            container_id=event.container_id, container_event_type=TYPES[event.type], created_at=event.at_ns
        )
        pod = self._engine.pods.find(event.pod_id)
        if pod is not None:
            message.pod_sandbox_status.CopyFrom(views.pod_status(pod))
        message.containers_statuses.extend(self._statuses(event.pod_id))
        return message

    def _statuses(self, pod_id: str) -> Iterator[pb.ContainerStatus]:
        """Of the pod's containers whose records can be read: an event is told whatever became of another's."""
        find = self._engine.parts.images.find
        for container in self._engine.containers.list(pod_id):
            if container.metadata.config is None:
                continue
            try:
                yield views.container_status(container, find)
            except errors.InvalidArgument as error:
                log.warning("container %s: left out of an event: %s", container.id[:13], error)

    async def GetContainerEvents(self, request: pb.GetEventsRequest, context: rpc.Context) -> AsyncGenerator[Encoded]:
        """Who has got the initial metadata misses nothing from then on.

        Ends with `ResourceExhausted` for a reader for whom more than `BACKLOG` has to wait, of which others notice
        nothing, and with `Unavailable` where the daemon ends.
        """
        subscription = self._bus.open()
        try:
            await context.send_initial_metadata(())
            async for message in subscription:
                yield message
        finally:
            subscription.close()
