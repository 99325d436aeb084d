"""Pools of ready pods: `client.pool`, and what comes out of one."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Self

from atoll import errors
from atoll.api import atoll_pools_v1_pb2 as pb
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import request, wire
from atoll.client.container import Container, command_error
from atoll.client.images import Images
from atoll.client.leases import CALL_TIMEOUT_S, seconds
from atoll.client.making import made_or_undone
from atoll.client.model import Phase
from atoll.client.pod import CREATE_TIMEOUT_S, Pod, Pull
from atoll.concurrency import TaskOwner

IDLE_S = 60.0
"""How long a pod of `acquire` outlives a client that dies."""
RENEWALS = 3
"""How often a lease is renewed in its idle time while `acquire` holds the pod."""
MAX_SIZE = 1024
READY_WITHIN_S, LONGEST_READY_S = 60.0, 180.0

_SERVICE = "atoll.pools.v1.Pools"
PUT = wire.Method(_SERVICE, "Put", pb.PutRequest, pb.Pool)
GET = wire.Method(_SERVICE, "Get", pb.GetRequest, pb.Pool)
LIST = wire.Method(_SERVICE, "List", pb.ListRequest, pb.ListResponse)
RESIZE = wire.Method(_SERVICE, "Resize", pb.ResizeRequest, pb.Pool)
DELETE = wire.Method(_SERVICE, "Delete", pb.DeleteRequest, pb.DeleteResponse)
ACQUIRE = wire.Method(_SERVICE, "Acquire", pb.AcquireRequest, pb.AcquireResponse)
START = wire.Method(_SERVICE, "Start", pb.StartRequest, pb.AcquireResponse)


class Rung(enum.StrEnum):
    """What served a start: a ready member of the pool, or a pod made for the caller."""

    POOL = "pool"
    COLD = "cold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a pod came about: `duration_s` in the daemon, and each step of it."""

    rung: Rung
    duration_s: float
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """A pool now. `generation` counts the changes of its spec; `error` is why the last member could not be made."""

    name: str
    size: int
    generation: int
    image: str
    ready: int
    booting: int
    hits: int
    misses: int
    error: str

    @property
    def hit_rate(self) -> float | None:
        """The share of acquisitions that a ready member served; None before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None

    @classmethod
    def read(cls, message: pb.Pool) -> Self:
        return cls(
            name=message.name,
            size=message.size,
            generation=message.generation,
            image=message.spec.container.image.image,
            ready=message.ready,
            booting=message.booting,
            hits=message.hits,
            misses=message.misses,
            error=message.error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """When a container is ready: once `command` has ended with 0 in it; at once where there is none."""

    command: Sequence[str] = ()
    within_s: float = READY_WITHIN_S

    def write(self, spec: pb.Spec) -> None:
        """Into a spec; raises `InvalidArgument`."""
        if not 0 < self.within_s <= LONGEST_READY_S:
            raise errors.InvalidArgument(
                f"ready_within {self.within_s:g}: must be more than 0 and at most {LONGEST_READY_S:g} seconds"
            )
        spec.ready[:] = request.words(self.command, "ready")
        spec.ready_within_s = self.within_s


class PooledPod(Pod):
    """A pod of a pool or of `Client.run`, with the container that runs in it and how it was started."""

    def __init__(self, connection: wire.Wire, answer: pb.AcquireResponse) -> None:
        super().__init__(connection, answer.pod_id, answer.pod_name, None)
        self.container = Container(connection, answer.container_id, answer.container_name, answer.pod_id)
        self.start = Start(
            rung=Rung.POOL if answer.rung == pb.AcquireResponse.POOL else Rung.COLD,
            duration_s=answer.duration_s,
            phases=tuple(Phase.read(phase) for phase in answer.phases),
        )


class Pool:
    """A pool by its name; the daemon keeps its members, whatever becomes of clients and of the daemon."""

    def __init__(self, connection: wire.Wire, name: str) -> None:
        self._wire = connection
        self.name = name

    def __repr__(self) -> str:
        return f"<Pool {self.name}>"

    async def status(self) -> PoolStatus:
        """What is known now; raises `NotFound`."""
        return PoolStatus.read(await self._wire.call(GET, pb.GetRequest(name=self.name), timeout_s=CALL_TIMEOUT_S))

    async def take(self, *, ttl: float | None = None, idle: float | None = None) -> PooledPod:
        """A running pod that nobody else gets; a ready member where there is one, else one made now.

        The daemon removes it after `ttl` seconds, or `idle` seconds without use; where neither is given, after ten
        minutes without. `pod.lease` changes that. Nothing is left where the caller is cancelled.
        """
        asked = pb.AcquireRequest(name=self.name, ttl_s=seconds(ttl or 0, "ttl"), idle_s=seconds(idle or 0, "idle"))

        async def make() -> PooledPod:
            return PooledPod(self._wire, await self._wire.call(ACQUIRE, asked, timeout_s=CREATE_TIMEOUT_S))

        return await made_or_undone(make(), PooledPod.remove, within=CREATE_TIMEOUT_S + 5)

    @contextlib.asynccontextmanager
    async def acquire(self, *, ttl: float | None = None, idle: float = IDLE_S) -> AsyncGenerator[PooledPod]:
        """`take` for `async with`: the pod is removed at the end.

        Meanwhile its lease is renewed, used or not; where this client dies the pod goes after `idle` seconds without
        use. A `ttl` is kept to: it is not renewed.
        """
        pod = await self.take(ttl=ttl, idle=idle)
        async with pod, TaskOwner(f"pool/{self.name}") as tasks:
            if ttl is None:
                tasks.spawn(_keep(pod, idle), name=f"pod/{pod.id}/lease")
            yield pod

    async def resize(self, size: int) -> PoolStatus:
        """Keep so many members ready from now on."""
        asked = pb.ResizeRequest(name=self.name, size=checked_size(size))
        return PoolStatus.read(await self._wire.call(RESIZE, asked, timeout_s=CREATE_TIMEOUT_S))

    async def drain(self) -> PoolStatus:
        """Remove its members and make none, until it is resized; each acquisition is a cold start then."""
        return await self.resize(0)

    async def delete(self) -> None:
        """Take it away with its members; what was handed out lives on. Idempotent."""
        await self._wire.call(DELETE, pb.DeleteRequest(name=self.name), timeout_s=CREATE_TIMEOUT_S)


async def _keep(pod: PooledPod, idle: float) -> None:
    """Renew until cancelled; a daemon that is away for a moment is asked again."""
    while True:
        await asyncio.sleep(idle / RENEWALS)
        with contextlib.suppress(errors.Unavailable, errors.DeadlineExceeded):
            try:
                await pod.lease.renew()
            except (errors.NotFound, errors.FailedPrecondition):
                return


async def put(
    connection: wire.Wire,
    name: str,
    spec: request.ContainerOptions,
    *,
    size: int | None,
    pod: request.PodOptions,
    runtime: str,
    pull: Pull,
    ready: Ready,
) -> Pool:
    """Make or change a pool, with its image fetched where it is missing."""
    if pull not in ("missing", "always", "never"):
        raise errors.InvalidArgument(f"pull {pull!r}: must be missing, always or never")
    asked = pb.PutRequest(name=name, spec=_spec(name, spec, pod, runtime))
    ready.write(asked.spec)
    if size is not None:
        asked.size = checked_size(size)
    images = Images(connection)
    if pull == "always" or (pull == "missing" and not await images.has(spec.image)):
        await images.pull(spec.image)
    await connection.call(PUT, asked, timeout_s=CALL_TIMEOUT_S)
    return Pool(connection, name)


async def start(connection: wire.Wire, spec: pb.Spec, pull: Pull) -> PooledPod:
    """One pod with its container running, in one call; its image is fetched where it is missing."""
    if pull not in ("missing", "always", "never"):
        raise errors.InvalidArgument(f"pull {pull!r}: must be missing, always or never")
    reference, images = spec.container.image.image, Images(connection)

    async def make() -> PooledPod:
        try:
            answer = await connection.call(START, pb.StartRequest(spec=spec), timeout_s=CREATE_TIMEOUT_S)
        except errors.AtollError as error:
            raise command_error(error) from None
        return PooledPod(connection, answer)

    if pull == "always":
        await images.pull(reference)
    try:
        return await made_or_undone(make(), PooledPod.remove, within=CREATE_TIMEOUT_S + 5)
    except errors.NotFound:
        if pull != "missing" or await images.has(reference):
            raise
    await images.pull(reference)
    return await made_or_undone(make(), PooledPod.remove, within=CREATE_TIMEOUT_S + 5)


async def every(connection: wire.Wire) -> tuple[PoolStatus, ...]:
    """Every pool, by name."""
    answer = await connection.call(LIST, pb.ListRequest(), timeout_s=CALL_TIMEOUT_S)
    return tuple(PoolStatus.read(one) for one in sorted(answer.pools, key=lambda one: one.name))


def checked_size(size: int) -> int:
    """`size` where a pool may have so many members; raises `InvalidArgument`."""
    if not isinstance(size, int) or not 0 <= size <= MAX_SIZE:  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without types
        raise errors.InvalidArgument(f"pool size {size!r}: must be a number from 0 to {MAX_SIZE}")
    return size


def _spec(name: str, options: request.ContainerOptions, pod: request.PodOptions, runtime: str) -> pb.Spec:
    """Equal arguments give equal specs: what is random in a request, or a member's own, is left out."""
    if pod.name:
        raise errors.InvalidArgument(f"pool {name}: its pods have names of their own; name none")
    pod_config = request.pod_config(pod)
    pod_config.metadata.name = pod_config.metadata.uid = ""
    pod_config.hostname = pod.hostname
    pod_config.annotations.pop(request.REQUEST, None)
    container = request.container_config(options)
    if not options.name:
        container.metadata.name = "main"
        container.log_path = "main.log"
    return whole_spec(pod_config, container, runtime)


def whole_spec(pod_config: cri.PodSandboxConfig, container: cri.ContainerConfig, runtime: str) -> pb.Spec:
    """The container in the namespaces of the pod."""
    namespaces: cri.NamespaceOption = pod_config.linux.security_context.namespace_options
    container.linux.security_context.namespace_options.CopyFrom(namespaces)
    return pb.Spec(pod=pod_config, container=container, runtime_handler=runtime)
