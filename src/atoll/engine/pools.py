"""Pools of ready pods: each a durable name, a spec and a size; the daemon keeps so many members ready.

A member is a pod with its container running. It is written down before it is made, is hidden from the CRI's lists until
it is handed out, and is handed out once: taking it from the pool is one step of this loop, and one commit makes it
nobody's and gives it a lease. Whoever asked and died has a pod whose lease runs out.

Members are made in the background, `MAKERS` at a time over all pools, each only once no other pod is being made, or
after `YIELD_S`: a refill gives way to whoever waits. A spec that fails is tried again after longer and longer pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass, replace

import msgspec

from atoll import errors
from atoll.concurrency import SingleFlight, wait_all
from atoll.container.store import Container
from atoll.database import Plan
from atoll.engine.containers import Containers
from atoll.engine.events import Event, EventType
from atoll.engine.execs import Execs
from atoll.engine.lease_store import IDLE, TTL, checked
from atoll.engine.parts import Parts
from atoll.engine.phases import Story, operation
from atoll.engine.pod import Pod
from atoll.engine.pods import Pods
from atoll.engine.pool import SHORT_LIFE_S, Member, Pool
from atoll.engine.pool_ready import await_ready
from atoll.engine.pool_store import GOING, MemberRecord, PoolRecord, PoolSpec, PoolStore
from atoll.engine.request import pod_name
from atoll.sandbox.config import PodConfig, PodMetadata

log = logging.getLogger(__name__)

LABEL = "io.atoll.pool"
"""On a member, with the name of its pool; a list that asks for it shows members that are not handed out too."""
MAX_SIZE = 1024
IDLE_S = 600.0
"""The idle time of what is handed out to who names no time."""
MAKERS = max(1, (os.cpu_count() or 2) // 2)
YIELD_S, LOOK_AGAIN_S = 1.0, 0.02
AFTER_CLAIM_S = 0.05
"""How long the refill waits behind a hand-out, so that the first calls on the pod go before it."""
REMOVE_AGAIN_S = 5.0
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,47}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """A pod with its running container, with a lease. `is_hit`: a ready member; else it was made for the caller."""

    pod: Pod
    container: Container
    is_hit: bool
    duration_s: float


class Pools:
    """The pools of one engine. `load` before anything is served, `recover` once the pods are."""

    def __init__(self, parts: Parts, pods: Pods, containers: Containers, execs: Execs) -> None:
        self._parts = parts
        self._pods = pods
        self._containers = containers
        self._execs = execs
        self._store = PoolStore(parts.db)
        self._pools: dict[str, Pool] = {}
        self._members: dict[str, MemberRecord] = {}
        self._changing: dict[str, asyncio.Lock] = {}
        self._makers = asyncio.Semaphore(MAKERS)
        self._making = 0
        self._is_recovered = False
        self._starts: SingleFlight[str, Acquired] = SingleFlight(parts.owner)
        parts.events.tap(self._on_event)

    # --- questions, answered from memory ---

    def get(self, name: str) -> Pool:
        """The pool of that name; raises `NotFound`."""
        pool = self._pools.get(name)
        if pool is None or pool.is_going:
            raise errors.NotFound(f"pool {name[:80]!r}: there is none; `atoll pool ls` shows what there is")
        return pool

    def list(self) -> tuple[Pool, ...]:
        return tuple(pool for pool in self._pools.values() if not pool.is_going)

    @property
    def has_hidden(self) -> bool:
        """Whether `is_hidden` may be true of any pod."""
        return bool(self._members)

    def is_hidden(self, pod_id: str) -> bool:
        """Whether the pod is a member that nobody has been given yet."""
        pod = self._pods.find(pod_id) if self._members else None
        return pod is not None and pod.name in self._members

    # --- start and end of the daemon ---

    async def load(self) -> None:
        """Read what there is; nothing is handed out yet."""
        pools, members = await self._store.load()
        self._pools = {record.name: Pool(record=record) for record in pools}
        self._members = {record.pod_name: record for record in members}

    async def recover(self) -> None:
        """Take up the members that run, remove what was half made or is broken, and begin to fill."""
        unfit: list[MemberRecord] = []
        for record in list(self._members.values()):
            pool = self._pools.get(record.pool)
            member = self._taken_up(record) if record.pod_id else None
            if pool is None or member is None or record.generation != pool.record.generation:
                unfit.append(record)
                if member is not None:
                    member.pulse.close()
            else:
                pool.ready.append(member)
        self._is_recovered = True
        for record in unfit:
            self._remove_behind(record)
        for pool in list(self._pools.values()):
            if pool.is_going:
                self._parts.owner.spawn(self._finish(pool), name=f"pool/{pool.record.name}/delete")
            else:
                self._trim(pool)
                self._fill(pool)

    def _taken_up(self, record: MemberRecord) -> Member | None:
        pod = self._pods.find(record.pod_id)
        if pod is None or not self._parts.containers.has(record.container_id):
            return None
        return Member.take_up(record, pod, self._containers.get(record.container_id))

    def aclose(self) -> None:
        """Let go of the members; they live on."""
        for pool in self._pools.values():
            while pool.ready:
                pool.ready.pop().pulse.close()

    # --- what a pool is ---

    async def put(self, name: str, spec: PoolSpec, size: int | None) -> Pool:
        """Make a pool, or change one: other members take the place of those of another spec. Idempotent.

        Raises `InvalidArgument` for what can be no pool, `NotFound` for an image that is not here.
        """
        if not _NAME.fullmatch(name):
            raise errors.InvalidArgument(f"pool name {name[:80]!r}: must be 1 to 49 of a-z, 0-9 and '-'")
        if spec.pod.port_mappings:
            raise errors.InvalidArgument(f"pool {name}: its pods cannot share ports of the host; publish none")
        if spec.container.image is None or not spec.container.image.image:
            raise errors.InvalidArgument(f"pool {name}: its container has no image")
        self._parts.images.get(spec.container.image.image)
        async with self._lock(name):
            pool = self._pools.get(name)
            if pool is not None and pool.is_going:
                raise errors.FailedPrecondition(f"pool {name}: is being deleted; try again")
            if pool is None:
                record = PoolRecord(
                    name=name, size=_size(size or 0), generation=1, spec=spec, hits=0, misses=0,
                    created_ns=time.time_ns(),
                )  # fmt: skip
                await self._store.put(record)
                pool = self._pools[name] = Pool(record=record)
            else:
                wanted = pool.record.size if size is None else _size(size)
                is_other = spec != pool.record.spec
                generation = pool.record.generation + is_other
                record = replace(pool.record, spec=spec, size=wanted, generation=generation)
                await self._store.put(record)
                pool.record = record
                if is_other:
                    pool.succeeded()
            pool.changed.set()
            self._trim(pool)
            self._fill(pool)
            return pool

    async def resize(self, name: str, size: int) -> Pool:
        """Keep so many ready from now on; with 0 it is drained, and every acquisition is a cold start."""
        async with self._lock(name):
            pool = self.get(name)
            await self._store.resize(name, _size(size))
            pool.record = replace(pool.record, size=size)
            pool.changed.set()
            going = self._trim(pool)
            self._fill(pool)
        await wait_all([self._removed(record) for record in going])
        return pool

    async def delete(self, name: str) -> None:
        """Remove the pool and its members, not what was handed out; nothing is left when it returns. Idempotent."""
        async with self._lock(name):
            pool = self._pools.get(name)
            if pool is None:
                return
            await self._store.resize(name, GOING)
            pool.record = replace(pool.record, size=GOING)
            pool.changed.set()
            await self._finish(pool)

    async def _finish(self, pool: Pool) -> None:
        name = pool.record.name
        self._trim(pool)
        while left := [record for record in self._members.values() if record.pool == name]:
            await wait_all([self._removed(record) for record in left if record.pod_id])
            await asyncio.sleep(0 if all(record.pod_id for record in left) else LOOK_AGAIN_S)
        await self._store.delete(name)
        self._pools.pop(name, None)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._changing.setdefault(name, asyncio.Lock())

    # --- handing out ---

    async def acquire(self, name: str, *, ttl_s: float = 0.0, idle_s: float = 0.0) -> Acquired:
        """A running pod that nobody else gets, with a lease of these times, or of `IDLE_S` without use.

        From the pool where a member is ready, else made now. Nothing waits but the one commit that makes it the
        caller's. Raises `NotFound`, and what the making of a pod raises.
        """
        begun = time.monotonic()
        pool = self.get(name)
        ttl, idle = checked(ttl_s, "ttl"), checked(idle_s, "idle")
        if not ttl and not idle:
            idle = IDLE_S
        while pool.ready:
            member = pool.ready.popleft()
            if not member.is_fit or member.record.generation != pool.record.generation:
                self._discard(pool, member, "was broken when it was to be handed out")
                continue
            await self._claim(pool, member, ttl, idle)
            return Acquired(
                pod=member.pod, container=member.container, is_hit=True, duration_s=time.monotonic() - begun
            )
        pod, container = await self._make_cold(pool, ttl, idle)
        return Acquired(pod=pod, container=container, is_hit=False, duration_s=time.monotonic() - begun)

    @operation
    async def _claim(self, pool: Pool, member: Member, ttl: float, idle: float) -> None:
        """Off the pool already, so that nobody else has it; where the disk refuses it goes back."""
        record = member.record
        story = self._parts.stories.begin(record.pod_id, "acquire")
        claim = Plan(self._store.plan_claim(record).change, lambda _: self._given(pool, member))
        try:
            with story.step("commit", "disk"):
                await self._parts.db.commit(claim, self._parts.leases.plan_begin(record.pod_id, ttl, idle))
        except errors.AtollError:
            pool.ready.appendleft(member)
            raise

    def _given(self, pool: Pool, member: Member) -> None:
        """After the commit, also where its caller has gone: then the lease removes the pod."""
        self._members.pop(member.record.pod_name, None)
        member.pulse.close()
        pool.record = replace(pool.record, hits=pool.record.hits + 1)
        pool.succeeded()
        asyncio.get_running_loop().call_later(AFTER_CLAIM_S, self._fill, pool)

    async def _make_cold(self, pool: Pool, ttl: float, idle: float) -> tuple[Pod, Container]:
        pool.record = replace(pool.record, misses=pool.record.misses + 1)
        with contextlib.suppress(errors.Unavailable):
            self._parts.owner.spawn(self._store.count_miss(pool.record.name), name=f"pool/{pool.record.name}/miss")
        config = _pod_config(pool.record)
        lease = {TTL: repr(ttl), IDLE: repr(idle)}
        config = msgspec.structs.replace(config, annotations={**config.annotations, **lease})
        try:
            return await self._make(config, pool.record.spec)
        finally:
            self._fill(pool)

    async def start(self, spec: PoolSpec) -> Acquired:
        """A pod of `spec` under the name that is in it, with its container running, for no pool.

        It is made to the end where the caller goes away; nothing is left of it on an error.
        """
        name = pod_name(spec.pod)

        async def make() -> Acquired:
            begun = time.monotonic()
            pod, container = await self._make(spec.pod, spec)
            return Acquired(pod=pod, container=container, is_hit=False, duration_s=time.monotonic() - begun)

        return await self._starts.run(name, make, name=f"start/{name}")

    # --- members ---

    async def _make(self, config: PodConfig, spec: PoolSpec) -> tuple[Pod, Container]:
        """A pod with its container running and ready; nothing is left of it on an error."""
        pod, container = await self._make_running(config, spec)
        try:
            await await_ready(self._execs, pod, container, spec)
        except errors.AtollError:
            await self._pods.remove(pod.id)
            raise
        return pod, container

    async def _make_running(self, config: PodConfig, spec: PoolSpec) -> tuple[Pod, Container]:
        pod = await self._pods.run(config, spec.handler)
        self._parts.expedite()  # the kernel's grace period is longer than the way from the start to the runtime
        try:
            container = await self._containers.create(pod, spec.container)
            await self._containers.start(pod, container.id)
        except errors.AtollError:
            await self._pods.remove(pod.id)
            raise
        return pod, container

    def _fill(self, pool: Pool) -> None:
        """See to it that what is missing is made, in the background."""
        while self._is_recovered and not pool.is_going and pool.workers < min(MAKERS, pool.lacks):
            pool.workers += 1
            try:
                self._parts.owner.spawn(self._work(pool), name=f"pool/{pool.record.name}/fill")
            except errors.Unavailable:  # the daemon is closing: the next one fills it
                pool.workers -= 1
                return

    async def _work(self, pool: Pool) -> None:
        try:
            while pool.lacks and not pool.is_going:
                if pool.failures:
                    pool.changed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(pool.changed.wait(), pool.pause_s)
                    if not pool.lacks or pool.is_going:
                        return
                pool.booting += 1
                try:
                    async with self._makers:
                        await self._give_way()
                        if pool.is_going:  # since then: whoever deletes it waits for what is written down, not for us
                            return
                        self._making += 1
                        try:
                            await self._boot(pool)
                        finally:
                            self._making -= 1
                finally:
                    pool.booting -= 1
        finally:
            pool.workers -= 1

    async def _give_way(self) -> None:
        """Wait while pods are made for whoever waits for them, for a bounded time."""
        until = time.monotonic() + YIELD_S
        while self._pods.making() > self._making and time.monotonic() < until:  # noqa: ASYNC110 - for a bounded time
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _boot(self, pool: Pool) -> None:
        """Make a member; where that fails it is told in the pool, and nothing is left."""
        spec, config = pool.record.spec, _pod_config(pool.record)
        record = MemberRecord(pod_name=pod_name(config), pool=pool.record.name, generation=pool.record.generation)
        try:
            self._members[record.pod_name] = record
            await self._store.enter(record)
            pod, container = await self._make_running(config, spec)
        except errors.AtollError as error:
            self._not_made(pool, record, error)
            return
        if not spec.ready:
            await self._enter(pool, record, pod, container)
            return
        # Others are made while this one is waited for.
        pool.booting += 1
        self._parts.owner.spawn(
            self._enter_ready(pool, record, pod, container, spec), name=f"pool/{pool.record.name}/ready/{pod.id}"
        )

    async def _enter_ready(
        self, pool: Pool, record: MemberRecord, pod: Pod, container: Container, spec: PoolSpec
    ) -> None:
        """It is written down as a member only now: a daemon that dies before leaves one that the next one removes."""
        try:
            await await_ready(self._execs, pod, container, spec)
            await self._enter(pool, record, pod, container)
        except errors.AtollError as error:
            self._not_made(pool, record, error)
        finally:
            pool.booting -= 1
            self._fill(pool)

    def _not_made(self, pool: Pool, record: MemberRecord, error: errors.AtollError) -> None:
        log.warning("pool %s: a member could not be made: %s", pool.record.name, error)
        pool.failed(str(error))
        self._remove_behind(record)

    async def _enter(self, pool: Pool, record: MemberRecord, pod: Pod, container: Container) -> None:
        record = replace(record, pod_id=pod.id, container_id=container.id)
        try:
            await self._store.enter(record)
        except errors.AtollError as error:
            self._not_made(pool, record, error)
            return
        self._members[record.pod_name] = record
        member = Member.take_up(record, pod, container)
        if member is None:
            pool.failed("its container ended at once; its log tells why, without the pool (`atoll run`)")
            self._remove_behind(record)
        elif record.generation != pool.record.generation or pool.is_going or len(pool.ready) >= pool.record.size:
            member.pulse.close()
            self._remove_behind(record)
        else:
            pool.ready.append(member)

    def _trim(self, pool: Pool) -> list[MemberRecord]:
        """Take off members of another spec, and those that are too many, and remove them behind this."""
        kept = [one for one in pool.ready if one.record.generation == pool.record.generation]
        kept = kept[: max(pool.record.size, 0)]
        going = [one for one in pool.ready if one not in kept]
        pool.ready.clear()
        pool.ready.extend(kept)
        for member in going:
            member.pulse.close()
            self._remove_behind(member.record)
        return [member.record for member in going]

    def _discard(self, pool: Pool, member: Member, why: str) -> None:
        member.pulse.close()
        if time.monotonic() - member.ready_at < SHORT_LIFE_S:
            pool.failed(f"a member {why}, soon after its start")
        log.info("pool %s: member %s %s", pool.record.name, member.record.pod_id[:13], why)
        self._remove_behind(member.record)
        self._fill(pool)

    def _on_event(self, event: Event) -> None:
        """A member that ends by itself is replaced at once."""
        if event.type in (EventType.CREATED, EventType.STARTED) or not self._members:
            return
        for pool in self._pools.values():
            for member in pool.ready:
                if member.record.pod_id == event.pod_id:
                    pool.ready.remove(member)
                    self._discard(pool, member, "ended")
                    return

    def _remove_behind(self, record: MemberRecord) -> None:
        with contextlib.suppress(errors.Unavailable):  # the next daemon removes what no pool has
            self._parts.owner.spawn(self._removed(record), name=f"pool/{record.pool}/remove {record.pod_name}")

    async def _removed(self, record: MemberRecord) -> None:
        """Remove a member's pod, again and again until it is; then its row."""
        while True:
            try:
                pod_id = record.pod_id or self._parts.sandboxes.named(record.pod_name)
                if pod_id:
                    await self._pods.stop(pod_id)
                    await self._pods.remove(pod_id)
                await self._store.strike(record.pod_name)
            except errors.AtollError as error:
                log.warning("pool %s: member %s is not removed yet: %s", record.pool, record.pod_name, error)
                await asyncio.sleep(REMOVE_AGAIN_S)
            else:
                self._members.pop(record.pod_name, None)
                return

    def story_of(self, acquired: Acquired) -> list[Story]:
        """What was done for an acquisition: one commit, or all that makes a pod."""
        stories = self._parts.stories.of(acquired.pod.id)
        return [one for one in stories if not acquired.is_hit or one.operation == "acquire"]


def _size(size: int) -> int:
    if not 0 <= size <= MAX_SIZE:
        raise errors.InvalidArgument(f"pool size {size}: must be 0 to {MAX_SIZE}")
    return size


def _pod_config(record: PoolRecord) -> PodConfig:
    """What one pod of the pool is asked for: with a name of its own."""
    base = record.spec.pod
    name = f"{record.name}-{secrets.token_hex(6)}"
    namespace = base.metadata.namespace if base.metadata is not None else ""
    return msgspec.structs.replace(
        base,
        metadata=PodMetadata(name=name, uid=name, namespace=namespace),
        hostname="" if base.host_network else base.hostname or name,
        labels={**base.labels, LABEL: record.name},
    )
