"""Events in containerd's form: a topic, a namespace, an object; published here, read by whoever subscribes.

    /sandboxes/create   containerd.events.SandboxCreate     published by us, for every sandbox
    /sandboxes/start    containerd.events.SandboxStart
    /sandboxes/exit     containerd.events.SandboxExit       once, whoever waits, and where nobody does
    /records/quarantined    atoll.quarantine.v1.RecordQuarantined    for every record that a start could not read

Clients may publish others. Who subscribes gets what happens from then on; and of what ended while no daemon ran, or was
found damaged by its start, which nobody can have been connected to hear, all that was found in the last `LATE_S`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from atoll import errors
from atoll.api import containerd_events_pb2 as pb
from atoll.api.atoll_quarantine_v1_pb2 import RecordQuarantined
from atoll.database import Quarantined
from atoll.engine.events import Bus, Subscription
from atoll.engine.paths import NAMESPACE
from atoll.identifiers import is_identifier, require_identifier
from atoll.sandbox.controller import ExitStatus, TypedAny
from atoll.sandbox.filters import compile_with
from atoll.sandbox.wire import to_timestamp

CREATE = "/sandboxes/create"
START = "/sandboxes/start"
EXIT = "/sandboxes/exit"
QUARANTINED = "/records/quarantined"
MAX_TOPIC_LENGTH = 1024
MAX_FILTERS = 128
LATE_S = 30.0
"""How long an end that nobody can have heard of is told to whoever subscribes: clients must find us again first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One event."""

    at: datetime
    namespace: str
    topic: str
    event: TypedAny


class Topics:
    """Fans envelopes out; publishing never waits."""

    def __init__(self) -> None:
        self._bus: Bus[Envelope] = Bus()
        self._late: tuple[Envelope, ...] = ()
        self._late_until = 0.0

    @property
    def bus(self) -> Bus[Envelope]:
        """What counts events and readers."""
        return self._bus

    def publish(self, namespace: str, topic: str, event: TypedAny) -> None:
        """Publish with the time of now; raises as `forward`."""
        self.forward(Envelope(at=datetime.now(UTC), namespace=namespace, topic=topic, event=event))

    def forward(self, envelope: Envelope) -> None:
        """Publish as it is; raises `InvalidArgument` for a topic or namespace that can be none."""
        require_identifier(envelope.namespace, "namespace")
        require_topic(envelope.topic)
        self._bus.publish(envelope)

    def created(self, namespace: str, sandbox_id: str) -> None:
        self.publish(namespace, CREATE, _packed(pb.SandboxCreate(sandbox_id=sandbox_id)))

    def started(self, namespace: str, sandbox_id: str) -> None:
        self.publish(namespace, START, _packed(pb.SandboxStart(sandbox_id=sandbox_id)))

    def exited(self, namespace: str, sandbox_id: str, end: ExitStatus, *, late: bool = False) -> None:
        """`late`: while no daemon ran. It is then told to those too who subscribe within `LATE_S`."""
        event = pb.SandboxExit(
            sandbox_id=sandbox_id, exit_status=end.exit_status, exited_at=to_timestamp(end.exited_at)
        )
        envelope = Envelope(at=datetime.now(UTC), namespace=namespace, topic=EXIT, event=_packed(event))
        self._tell(envelope, late=late)

    def quarantined(self, record: Quarantined) -> None:
        """A record that this start could not read; told too to those who subscribe within `LATE_S`."""
        event = RecordQuarantined(
            source=record.source, key=record.key, reason=record.reason, at=to_timestamp(record.at)
        )
        self._tell(
            Envelope(at=datetime.now(UTC), namespace=NAMESPACE, topic=QUARANTINED, event=_packed(event)), late=True
        )

    def _tell(self, envelope: Envelope, *, late: bool) -> None:
        self.forward(envelope)
        if late:
            self._late = (*self._told_late(), envelope)
            self._late_until = time.monotonic() + LATE_S

    def _told_late(self) -> tuple[Envelope, ...]:
        if self._late and time.monotonic() >= self._late_until:
            self._late = ()
        return self._late

    def open(self, filters: Iterable[str] = ()) -> Subscription[Envelope]:
        """What any of `filters` matches, from now on, in order; its maker closes it.

        Fields: `topic`, `namespace`, and `event.<field>` of the events whose type is known. Raises `InvalidArgument`.
        """
        wanted = tuple(filters)
        if len(wanted) > MAX_FILTERS:
            raise errors.InvalidArgument(f"filters: {len(wanted)} are more than {MAX_FILTERS}")
        subscription = self._bus.open(compile_with(wanted, _lookup))
        for envelope in self._told_late():
            if subscription.wants(envelope):
                subscription.offer(envelope)
        return subscription

    def close(self) -> None:
        """Tell every reader that the daemon ends."""
        self._bus.close()


def require_topic(topic: str) -> None:
    """Raise `InvalidArgument` unless `topic` is identifiers, each with a slash before it."""
    first, *parts = topic.split("/")
    if len(topic) > MAX_TOPIC_LENGTH or first or not parts or not all(map(is_identifier, parts)):
        raise errors.InvalidArgument(f"topic {topic[:80]!r}: must be like /sandboxes/exit")


def _packed(event: Message) -> TypedAny:
    return TypedAny(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString())


def _lookup(envelope: Envelope, path: list[str]) -> str | None:
    match path:
        case ["topic"]:
            return envelope.topic
        case ["namespace"]:
            return envelope.namespace
        case ["event", *fields] if fields:
            message = _unpacked(envelope.event)
            return None if message is None else _field(message, fields)
        case _:
            return None


def _unpacked(event: TypedAny) -> Message | None:
    try:
        found = descriptor_pool.Default().FindMessageTypeByName(event.type_url.rpartition("/")[2])
        return GetMessageClass(found).FromString(event.value)
    except (KeyError, DecodeError):
        return None


def _field(message: Message, path: list[str]) -> str | None:
    """A field of text or number, at any depth; of a map of texts the rest of the path is the key."""
    field = message.DESCRIPTOR.fields_by_name.get(path[0])
    if field is None:
        return None
    value = getattr(message, path[0])
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        of_text = inner.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING
        return value.get(".".join(path[1:])) if of_text else None
    if field.is_repeated:
        return None
    if inner is not None:
        return _field(value, path[1:]) if len(path) > 1 and message.HasField(path[0]) else None
    return str(value) if len(path) == 1 and isinstance(value, str | int) else None
