"""Pods that go with the last of their containers, as asked for by an annotation.

    io.atoll.pod/remove-at-end: "true"

The pod's record has it, so that a daemon that was down at the end removes the pod when it is up again. A
container that is being restarted has not ended; a pod without a container waits for its first one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from atoll import errors
from atoll.container.status import State
from atoll.engine.containers import Containers
from atoll.engine.events import Event, EventType
from atoll.engine.parts import Parts
from atoll.engine.phases import operation
from atoll.engine.pods import Pods
from atoll.engine.restarts import Restarts

log = logging.getLogger(__name__)

REMOVE_AT_END = "io.atoll.pod/remove-at-end"
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0


class SelfRemoval:
    """Removes the pods of an engine that ask for it once every container of theirs has ended."""

    def __init__(self, parts: Parts, pods: Pods, containers: Containers, restarts: Restarts) -> None:
        self._parts = parts
        self._pods = pods
        self._containers = containers
        self._restarts = restarts
        self._going: set[str] = set()
        self._is_open = False
        parts.events.tap(self._on_event)

    def recover(self) -> None:
        """Begin, with the pods whose containers ended while nobody looked; call it when all were asked about."""
        self._is_open = True
        for pod in self._pods.list():
            self._look(pod.id)

    def aclose(self) -> None:
        """Begin no removal any more; the next daemon does."""
        self._is_open = False

    def _on_event(self, event: Event) -> None:
        if event.type is EventType.STOPPED and event.container_id != event.pod_id:
            self._look(event.pod_id)

    def _look(self, pod_id: str) -> None:
        if self._is_open and pod_id not in self._going and self._asks(pod_id) and self._has_ended(pod_id):
            self._going.add(pod_id)
            with contextlib.suppress(errors.Unavailable):  # the daemon is closing: the next one looks
                self._parts.owner.spawn(self._go(pod_id), name=f"pod/{pod_id}/remove at end")

    def _asks(self, pod_id: str) -> bool:
        pod = self._pods.find(pod_id)
        return pod is not None and pod.config.annotations.get(REMOVE_AT_END) == "true"

    def _has_ended(self, pod_id: str) -> bool:
        states = [one.status.get().state for one in self._containers.list(pod_id)]
        return bool(states) and all(state is State.EXITED for state in states)

    @operation
    async def _go(self, pod_id: str) -> None:
        pause_s = FIRST_RETRY_S
        try:
            while self._is_open and await self._is_over(pod_id):
                try:
                    await self._pods.stop(pod_id)
                    await self._pods.remove(pod_id)
                except errors.AtollError as error:
                    log.warning("pod %s: its containers have ended and it is not removed yet: %s", pod_id[:13], error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, LAST_RETRY_S)
        finally:
            self._going.discard(pod_id)

    async def _is_over(self, pod_id: str) -> bool:
        """Whether the pod is there and no container of it lives, none that is being restarted either."""
        for container in self._containers.list(pod_id):
            await self._restarts.settled(container.id)
        return self._pods.find(pod_id) is not None and self._has_ended(pod_id)
