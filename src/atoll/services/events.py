"""containerd.services.events.v1.Events: what happens to sandboxes, and what clients tell one another."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from google.protobuf.empty_pb2 import Empty

from atoll import errors, rpc
from atoll.api import containerd_services_events_v1_pb2 as pb
from atoll.api import containerd_types_pb2 as types
from atoll.engine.topics import Envelope, Topics
from atoll.sandbox.service import Context, namespace_of
from atoll.sandbox.wire import from_any, from_timestamp, to_any, to_timestamp

MAX_EVENT_BYTES = 1 << 20
"""An event waits in the queue of every subscriber."""


class EventsService:
    def __init__(self, topics: Topics) -> None:
        self._topics = topics

    async def Publish(self, request: pb.PublishRequest, context: Context) -> Empty:
        namespace = namespace_of(context)
        _require_small(len(request.event.value))
        self._topics.publish(namespace, request.topic, from_any(request.event))
        return Empty()

    async def Forward(self, request: pb.ForwardRequest, context: Context) -> Empty:
        """Publish an event of somebody else, with its own time and namespace."""
        envelope = request.envelope
        if not envelope.HasField("timestamp"):
            raise errors.InvalidArgument(f"event {envelope.topic[:80]!r}: has no timestamp")
        _require_small(len(envelope.event.value))
        at = from_timestamp(envelope.timestamp, fault=errors.InvalidArgument)
        self._topics.forward(
            Envelope(at=at, namespace=envelope.namespace, topic=envelope.topic, event=from_any(envelope.event))
        )
        return Empty()

    async def Subscribe(self, request: pb.SubscribeRequest, context: rpc.Context) -> AsyncGenerator[types.Envelope]:
        """Of every namespace, as containerd has it; a filter on `namespace` gives one.

        Who has got the initial metadata misses nothing from then on.
        """
        subscription = self._topics.open(request.filters)
        try:
            await context.send_initial_metadata(())
            async for one in subscription:
                yield types.Envelope(
                    timestamp=to_timestamp(one.at), namespace=one.namespace, topic=one.topic, event=to_any(one.event)
                )
        finally:
            subscription.close()


def _require_small(size: int) -> None:
    if size > MAX_EVENT_BYTES:
        raise errors.InvalidArgument(f"event: has {size} bytes, at most {MAX_EVENT_BYTES} are allowed")
