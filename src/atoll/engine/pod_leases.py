"""Pods that live for a time: absolute from their making or last renewal, idle from their last use.

A pod whose lease runs out is stopped and removed. First the reason is committed, so that a daemon that is killed in
the middle is followed by one that goes on; then the pod goes, and `/atoll/leases/expired` is told with the reason,
which can be asked for afterwards too.

Uses are noted on the disk as often as a quarter of the idle time at most, so that a restart shortens nobody's time by
more than that; and after a start every pod has `GRACE_S` to be used again before its idle time counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace

from atoll import errors
from atoll.api import atoll_leases_v1_pb2 as pb
from atoll.engine.events import Event, EventType
from atoll.engine.lease_store import Lease, Moment, checked
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE
from atoll.engine.phases import operation
from atoll.engine.pods import Pods
from atoll.sandbox.controller import TypedAny

log = logging.getLogger(__name__)

EXPIRED = "/atoll/leases/expired"
GRACE_S = 10.0
LONGEST_WAIT_S = 60.0
"""A timer counts CLOCK_MONOTONIC, which stands still while the machine is suspended: it is looked at this often."""
SHORTEST_WAIT_S = 0.05
NOTES = 4
"""How many times in an idle time its uses are noted."""
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0


@dataclass(slots=True, kw_only=True)
class _Watch:
    """What memory knows of a lease that runs."""

    used: Moment
    noted: Moment
    timer: asyncio.TimerHandle | None = None
    pause_s: float = FIRST_RETRY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """A lease now; `left_s` is until it runs out if nobody uses the pod, 0 where it has run out."""

    lease: Lease
    name: str
    left_s: float
    is_used: bool


class PodLeases:
    """The leases of an engine's pods."""

    def __init__(self, parts: Parts, pods: Pods) -> None:
        self._parts = parts
        self._pods = pods
        self._store = parts.leases
        self._watches: dict[str, _Watch] = {}
        self._opened = self._store.clock.now()
        self._is_closed = False
        self._store.tap(self._changed)
        parts.uses.tap(self._on_use)
        parts.events.tap(self._on_event)

    async def recover(self) -> None:
        """Take up the leases of an earlier daemon; those whose pods are gone are dropped."""
        known = {sandbox.id for sandbox in self._parts.sandboxes.pods()}
        gone = [one.pod_id for one in self._store.list() if one.pod_id not in known and not one.reason]
        if gone:
            await self._store.drop(*gone)
        for lease in self._store.list():
            if lease.pod_id in known:
                self._changed(lease)

    def status(self, pod_id: str) -> LeaseStatus:
        """The lease of a pod, also of one that it has ended; raises `NotFound` for a pod without one."""
        lease = self._store.find(pod_id)
        if lease is None:
            raise errors.NotFound(f"pod {pod_id[:13]}: has no lease; it lives until it is removed")
        pod = self._pods.find(pod_id)
        left_s = 0.0 if lease.reason else max(self._left(lease)[0], 0.0)
        name = pod.config.metadata.name if pod is not None and pod.config.metadata is not None else ""
        return LeaseStatus(lease=lease, name=name, left_s=left_s, is_used=self._parts.uses.is_used(pod_id))

    def list(self) -> tuple[LeaseStatus, ...]:
        return tuple(self.status(lease.pod_id) for lease in self._store.list())

    async def renew(self, pod_id: str, *, ttl_s: float | None = None, idle_s: float | None = None) -> LeaseStatus:
        """Begin both times anew, with other lengths where they are given; a pod without a lease gets one.

        Raises `FailedPrecondition` for a lease that has run out, `InvalidArgument` for one without any time.
        """
        pod = self._pods.get(pod_id)
        before = self._store.find(pod.id)
        if before is not None and before.reason:
            raise errors.FailedPrecondition(f"pod {pod.id[:13]}: its lease has run out ({before.reason}), it goes")
        ttl = checked(ttl_s, "ttl") if ttl_s is not None else before.ttl_s if before is not None else 0.0
        idle = checked(idle_s, "idle") if idle_s is not None else before.idle_s if before is not None else 0.0
        if not ttl and not idle:
            raise errors.InvalidArgument(f"pod {pod.id[:13]}: a lease needs a ttl or an idle time")
        await self._parts.db.commit(self._store.plan_begin(pod.id, ttl, idle))
        return self.status(pod.id)

    async def end(self, pod_id: str) -> None:
        """Take a pod's lease away: it lives until it is removed. Idempotent; raises as `renew` once it ran out."""
        lease = self._store.find(pod_id)
        if lease is not None and lease.reason and self._pods.find(pod_id) is not None:
            raise errors.FailedPrecondition(f"pod {pod_id[:13]}: its lease has run out ({lease.reason}), it goes")
        self._forget(pod_id)
        await self._store.drop(pod_id)

    def aclose(self) -> None:
        """Let the timers go; the next daemon counts on."""
        self._is_closed = True
        for pod_id in list(self._watches):
            self._forget(pod_id)

    # --- what happens to a lease ---

    def _changed(self, lease: Lease) -> None:
        if self._is_closed:
            return
        self._forget(lease.pod_id)
        watch = _Watch(used=lease.used, noted=lease.used)
        self._watches[lease.pod_id] = watch
        self._arm(lease, watch)

    def _on_use(self, pod_id: str) -> None:
        watch, lease = self._watches.get(pod_id), self._store.find(pod_id)
        if watch is not None and lease is not None and not lease.reason and lease.idle_s:
            watch.used = self._store.clock.now()
            self._note(lease, watch)

    def _on_event(self, event: Event) -> None:
        """A pod that was removed takes its lease along; one that the lease has ended leaves its reason."""
        if event.type is not EventType.DELETED or event.container_id != event.pod_id:
            return
        self._forget(event.pod_id)
        lease = self._store.find(event.pod_id)
        if lease is not None and not lease.reason:
            self._spawn(self._store.drop(event.pod_id), f"lease/{event.pod_id}/drop")

    def _note(self, lease: Lease, watch: _Watch) -> None:
        clock = self._store.clock
        if clock.since(watch.noted) - clock.since(watch.used) >= lease.idle_s / NOTES:
            watch.noted = watch.used
            self._spawn(self._store.note_use(lease.pod_id, watch.used), f"lease/{lease.pod_id}/note use")

    def _forget(self, pod_id: str) -> None:
        watch = self._watches.pop(pod_id, None)
        if watch is not None and watch.timer is not None:
            watch.timer.cancel()

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        """Behind whatever goes on now; a daemon that closes leaves it to the next."""
        with contextlib.suppress(errors.Unavailable):
            self._parts.owner.spawn(work, name=name)

    # --- time ---

    def _left(self, lease: Lease) -> tuple[float, str]:
        """Seconds until the lease runs out, and by what; a pod in use is not idle."""
        clock = self._store.clock
        found: list[tuple[float, str]] = []
        if lease.ttl_s:
            found.append((lease.ttl_s - clock.since(lease.began), f"its time to live of {lease.ttl_s:g} s is over"))
        if lease.idle_s:
            found.append((self._idle_left(lease), f"nobody used it for {lease.idle_s:g} s"))
        return min(found)

    def _idle_left(self, lease: Lease) -> float:
        if self._parts.uses.is_used(lease.pod_id):
            return lease.idle_s
        clock, watch = self._store.clock, self._watches.get(lease.pod_id)
        left = lease.idle_s - clock.since(watch.used if watch is not None else lease.used)
        return max(left, GRACE_S - clock.since(self._opened)) if self._is_of_before(lease) else left

    def _is_of_before(self, lease: Lease) -> bool:
        """Whether the pod was used last under an earlier daemon."""
        clock, watch = self._store.clock, self._watches.get(lease.pod_id)
        return clock.since(watch.used if watch is not None else lease.used) > clock.since(self._opened)

    def _arm(self, lease: Lease, watch: _Watch) -> None:
        wait = 0.0 if lease.reason else self._left(lease)[0]
        if lease.idle_s and self._parts.uses.is_used(lease.pod_id):
            wait = min(wait, lease.idle_s / NOTES)
        wait = min(max(wait, SHORTEST_WAIT_S), LONGEST_WAIT_S)
        watch.timer = asyncio.get_running_loop().call_later(wait, self._look, lease.pod_id)

    def _look(self, pod_id: str) -> None:
        watch, lease = self._watches.get(pod_id), self._store.find(pod_id)
        if watch is None or lease is None or self._is_closed:
            return
        if lease.idle_s and self._parts.uses.is_used(pod_id):
            watch.used = self._store.clock.now()
            self._note(lease, watch)
        left, why = self._left(lease)
        if lease.reason or left <= 0:
            self._spawn(self._expire(lease, lease.reason or why), f"lease/{pod_id}/expire")
        else:
            self._arm(lease, watch)

    @operation
    async def _expire(self, lease: Lease, reason: str) -> None:
        pod = self._pods.find(lease.pod_id)
        if pod is None:
            self._forget(lease.pod_id)
            if not lease.reason:
                await self._store.drop(lease.pod_id)
            return
        name = pod.config.metadata.name if pod.config.metadata is not None else ""
        watch = self._watches.get(lease.pod_id)
        try:
            if not lease.reason:
                log.info("pod %s: %s, it is removed", lease.pod_id[:13], reason)
                ended = replace(lease, reason=reason, ended_ns=time.time_ns())
                await self._parts.db.commit(self._store.plan_put(ended))
                watch = self._watches.get(lease.pod_id)
            with self._parts.stories.begin(lease.pod_id, "expire").step("remove", reason):
                await self._pods.stop(lease.pod_id)
                await self._pods.remove(lease.pod_id)
        except errors.AtollError as error:
            log.error("pod %s: its lease ran out and it is not removed yet: %s", lease.pod_id[:13], error)
            if watch is not None and not self._is_closed:
                watch.timer = asyncio.get_running_loop().call_later(watch.pause_s, self._look, lease.pod_id)
                watch.pause_s = min(2 * watch.pause_s, LAST_RETRY_S)
            return
        event = pb.Expired(pod_id=lease.pod_id, pod_name=name, reason=reason)
        any_event = TypedAny(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString())
        self._parts.topics.publish(NAMESPACE, EXPIRED, any_event)
        await self._store.forget_oldest()
