"""The RPCs that list pods, containers and images, at once or as a stream: answered from memory.

Each item is encoded once and kept until it changes, and so is the whole list that is asked for without a filter.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from operator import attrgetter
from typing import Generic, TypeVar

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.container.storage import StatusStorage
from atoll.container.store import Container
from atoll.cri import views
from atoll.cri.encoded import Encoded, batches, field, whole
from atoll.cri.selection import selected
from atoll.engine.engine import Engine
from atoll.engine.events import Event, EventType
from atoll.engine.pod import Pod
from atoll.engine.pools import LABEL

T = TypeVar("T")

ITEMS = 1
"""The number of the repeated field in every answer that lists."""


class _Items(Generic[T]):
    """The encoded item of each thing, kept with what it was made of."""

    def __init__(self, make: Callable[[T], bytes]) -> None:
        self._make = make
        self._kept: dict[str, tuple[object, bytes]] = {}

    def get(self, key: str, made_of: object, thing: T) -> bytes:
        """The item; made again where `made_of` is not what it was."""
        kept = self._kept.get(key)
        if kept is not None and kept[0] == made_of:
            return kept[1]
        item = self._make(thing)
        self._kept[key] = made_of, item
        return item

    def forget(self, key: str) -> None:
        self._kept.pop(key, None)


class _Whole:
    """The answer that has everything, kept with what it was made of: the same objects, which is cheap to tell."""

    def __init__(self) -> None:
        self._made_of: list[object] = []
        self._answer = whole(())

    def get(self, made_of: list[object], make: Callable[[], list[bytes]]) -> Encoded:
        if made_of != self._made_of:
            self._answer, self._made_of = whole(make()), made_of
        return self._answer


# Five hundred pods are asked what they are at each call: in C, not in a loop.
_STATE, _SANDBOX = attrgetter("state"), attrgetter("sandbox")
_RECORD, _STATUS = attrgetter("record"), attrgetter("status")


class Lists:
    """RPCs that list."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pods: _Items[Pod] = _Items(_pod)
        self._containers: _Items[Container] = _Items(_container)
        self._all_pods, self._all_containers = _Whole(), _Whole()
        engine.parts.events.tap(self._forget)

    def _forget(self, event: Event) -> None:
        if event.type is EventType.DELETED:
            (self._pods if event.container_id == event.pod_id else self._containers).forget(event.container_id)

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest, context: object) -> Encoded:
        if request.filter.ByteSize() or self._engine.pools.has_hidden:
            return whole(self._listed_pods(request.filter))
        pods = self._engine.pods.list()
        made_of: list[object] = [*pods, *map(_STATE, pods), *map(_SANDBOX, pods)]
        return self._all_pods.get(made_of, lambda: self._listed_pods(request.filter))

    async def StreamPodSandboxes(
        self, request: pb.StreamPodSandboxesRequest, context: object
    ) -> AsyncGenerator[Encoded]:
        for batch in batches(self._listed_pods(request.filter)):
            yield batch

    def _listed_pods(self, wanted: pb.PodSandboxFilter) -> list[bytes]:
        """As they are now, whoever takes them however slowly."""
        has_state, state, labels = wanted.HasField("state"), wanted.state.state, dict(wanted.label_selector)
        hides = None if wanted.id or LABEL in labels else self._engine.pools.is_hidden
        return [
            self._pods.get(pod.id, (pod.state, pod.sandbox), pod)
            for pod in pods_named(self._engine, wanted.id)
            if (hides is None or not hides(pod.id))
            and (not has_state or views.pod_state(pod) == state)
            and (not labels or views.has_labels(pod.config.labels, labels))
        ]

    async def ListContainers(self, request: pb.ListContainersRequest, context: object) -> Encoded:
        if request.filter.ByteSize() or self._engine.pools.has_hidden:
            return whole(self._listed_containers(request.filter))
        containers = self._engine.containers.list()
        statuses = map(StatusStorage.get, map(_STATUS, containers))
        made_of: list[object] = [*containers, *statuses, *map(_RECORD, containers)]
        return self._all_containers.get(made_of, lambda: self._listed_containers(request.filter))

    async def StreamContainers(self, request: pb.StreamContainersRequest, context: object) -> AsyncGenerator[Encoded]:
        for batch in batches(self._listed_containers(request.filter)):
            yield batch

    def _listed_containers(self, wanted: pb.ContainerFilter) -> list[bytes]:
        has_state, state, labels = wanted.HasField("state"), wanted.state.state, dict(wanted.label_selector)
        is_asked_for = wanted.id or wanted.pod_sandbox_id or LABEL in labels
        found: list[bytes] = []
        for container in selected(self._engine, wanted.id, wanted.pod_sandbox_id):
            if not is_asked_for and self._engine.pools.is_hidden(container.sandbox_id):
                continue
            status = container.status.get()
            if has_state and views.CONTAINER_STATES[status.state] != state:
                continue
            if labels and not views.has_labels(container.record.labels, labels):
                continue
            found.append(self._containers.get(container.id, (status, container.record), container))
        return found


def pods_named(engine: Engine, pod_id: str) -> tuple[Pod, ...]:
    """Every pod, or the one with this ID or unique prefix; what names none names nothing."""
    if not pod_id:
        return engine.pods.list()
    try:
        return (engine.pods.get(pod_id),)
    except (errors.NotFound, errors.InvalidArgument):
        return ()


def images(items: Iterator[pb.Image]) -> Iterator[Encoded]:
    """Images as the messages of a stream."""
    return batches(field(ITEMS, item.SerializeToString()) for item in items)


def _pod(pod: Pod) -> bytes:
    return field(ITEMS, views.pod_item(pod).SerializeToString())


def _container(container: Container) -> bytes:
    return field(ITEMS, views.container_item(container).SerializeToString())
