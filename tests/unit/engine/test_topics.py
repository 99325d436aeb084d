"""Envelopes reach who wants them, by topic, namespace and the fields of events."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message

from atoll import errors
from atoll.api import containerd_events_pb2 as pb
from atoll.api.atoll_quarantine_v1_pb2 import RecordQuarantined
from atoll.database import Quarantined
from atoll.engine.events import Subscription
from atoll.engine.topics import MAX_FILTERS, Envelope, Topics
from atoll.sandbox.controller import ExitStatus, TypedAny


def packed(message: Message) -> TypedAny:
    return TypedAny(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=message.SerializeToString())


EXIT = pb.SandboxExit(sandbox_id="one", exit_status=7)
CONTAINER = pb.ContainerUpdate(id="c", image="busybox", labels={"app.tier": "front", "x": ""})
CREATED = pb.ContainerCreate(id="c", runtime=pb.ContainerCreate.Runtime(name="io.r"))


@pytest.mark.parametrize(
    ("wanted", "event", "is_match"),
    [
        ("topic==/t", EXIT, True),
        ("topic==/other", EXIT, False),
        ("namespace==moby", EXIT, True),
        ("namespace!=moby", EXIT, False),
        ("event.sandbox_id==one", EXIT, True),
        ("event.sandbox_id~=^tw", EXIT, False),
        ("event.exit_status==7", EXIT, True),
        ("event.exited_at", EXIT, False),
        ("event.exited_at.seconds==0", EXIT, False),
        ("event.nothing", EXIT, False),
        ("event", EXIT, False),
        ("other", EXIT, False),
        ("event.labels.app.tier==front", CONTAINER, True),
        ('event.labels."app.tier"==front', CONTAINER, True),
        ("event.labels.y", CONTAINER, False),
        ("event.labels", CONTAINER, False),
        ("event.runtime.name==io.r", CREATED, True),
        ("event.runtime", CREATED, False),
        ("topic==/t,event.id==c", CREATED, True),
    ],
)
async def test_filters(wanted: str, event: Message, is_match: bool) -> None:
    topics = Topics()
    subscription = topics.open([wanted, "topic==/mark"])
    topics.publish("moby", "/t", packed(event))
    topics.publish("moby", "/mark", TypedAny(type_url="unknown.Type", value=b"\xff"))
    first = await anext(subscription)
    assert (first.topic == "/t") is is_match
    subscription.close()


async def test_an_event_that_cannot_be_read_has_no_fields() -> None:
    topics = Topics()
    subscription = topics.open(["event.sandbox_id", "topic==/mark"])
    topics.publish("n", "/t", TypedAny(type_url="containerd.events.SandboxExit", value=b"\xff\xff"))
    topics.publish("n", "/mark", TypedAny(type_url="", value=b""))
    assert (await anext(subscription)).topic == "/mark"


async def test_our_own_events_say_what_happened() -> None:
    topics = Topics()
    subscription = topics.open()
    at = datetime(2026, 1, 2, tzinfo=UTC)
    topics.created("n", "s")
    topics.started("n", "s")
    topics.exited("n", "s", ExitStatus(exit_status=3, exited_at=at))
    seen = [await anext(subscription) for _ in range(3)]
    assert [one.topic for one in seen] == ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"]
    event = pb.SandboxExit.FromString(seen[2].event.value)
    assert (event.exit_status, event.exited_at.ToDatetime(UTC)) == (3, at)


async def test_an_end_without_a_daemon_is_told_to_who_subscribes_later() -> None:
    topics = Topics()
    early = topics.open()
    end = ExitStatus(exit_status=3, exited_at=datetime(2026, 1, 2, tzinfo=UTC))
    topics.exited("n", "seen", end)
    topics.exited("n", "late", end, late=True)
    later, others = topics.open(["event.sandbox_id==late"]), topics.open(["event.sandbox_id==other"])
    topics.exited("n", "other", end)

    async def seen(subscription: Subscription[Envelope], count: int) -> list[str]:
        found = [(await anext(subscription)).event.value for _ in range(count)]
        return [pb.SandboxExit.FromString(value).sandbox_id for value in found]

    assert await seen(early, 3) == ["seen", "late", "other"]
    assert await seen(later, 1) == ["late"]
    assert await seen(others, 1) == ["other"]


@pytest.mark.parametrize("topic", ["", "/", "a", "a/b", "/a/", "//a", "/a b", "/..", "/" + "x" * 80, "/a" * 600])
def test_topics_that_are_none_are_refused(topic: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="topic"):
        Topics().publish("n", topic, TypedAny(type_url="x", value=b""))


def test_bad_namespaces_and_filters_are_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="namespace"):
        Topics().publish("a b", "/t", TypedAny(type_url="x", value=b""))
    with pytest.raises(errors.InvalidArgument, match="filter"):
        Topics().open(["topic=x"])
    with pytest.raises(errors.InvalidArgument, match="more than"):
        Topics().open(["a"] * (MAX_FILTERS + 1))


async def test_a_record_that_could_not_be_read_is_told_to_who_comes_late_too() -> None:
    topics = Topics()
    at = datetime(2026, 1, 2, tzinfo=UTC)
    topics.quarantined(Quarantined(source="checkpoint", key="c1", reason="cut short", at=at))
    envelope = await anext(topics.open(["event.key==c1"]))
    told = RecordQuarantined.FromString(envelope.event.value)
    assert (envelope.namespace, envelope.topic) == ("k8s.io", "/records/quarantined")
    assert (told.source, told.key, told.reason, told.at.ToDatetime(UTC)) == ("checkpoint", "c1", "cut short", at)
