"""atoll.pools.v1.Pools on the engine."""

from __future__ import annotations

from atoll import errors
from atoll.api import atoll_pools_v1_pb2 as pb
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.api.codec import to_message
from atoll.cri import wanted
from atoll.engine.engine import Engine
from atoll.engine.phases import Story
from atoll.engine.pool import Pool
from atoll.engine.pool_store import PoolSpec
from atoll.engine.pools import Acquired

READY_WITHIN_S, LONGEST_READY_S = 60.0, 180.0


class PoolsService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Put(self, request: pb.PutRequest, context: object) -> pb.Pool:
        size = request.size if request.HasField("size") else None
        return _pool(await self._engine.pools.put(request.name, _spec(request.spec), size))

    async def Get(self, request: pb.GetRequest, context: object) -> pb.Pool:
        return _pool(self._engine.pools.get(request.name))

    async def List(self, request: pb.ListRequest, context: object) -> pb.ListResponse:
        return pb.ListResponse(pools=[_pool(one) for one in self._engine.pools.list()])

    async def Resize(self, request: pb.ResizeRequest, context: object) -> pb.Pool:
        return _pool(await self._engine.pools.resize(request.name, request.size))

    async def Delete(self, request: pb.DeleteRequest, context: object) -> pb.DeleteResponse:
        await self._engine.pools.delete(request.name)
        return pb.DeleteResponse()

    async def Acquire(self, request: pb.AcquireRequest, context: object) -> pb.AcquireResponse:
        return self._acquired(
            await self._engine.pools.acquire(request.name, ttl_s=request.ttl_s, idle_s=request.idle_s)
        )

    async def Start(self, request: pb.StartRequest, context: object) -> pb.AcquireResponse:
        return self._acquired(await self._engine.pools.start(_spec(request.spec)))

    def _acquired(self, found: Acquired) -> pb.AcquireResponse:
        pod, container = found.pod.config.metadata, found.container.metadata.config
        if pod is None or container is None or container.metadata is None:
            raise errors.DataLoss(f"pod {found.pod.id[:13]}: its record has no name")
        return pb.AcquireResponse(
            pod_id=found.pod.id,
            pod_name=pod.name,
            container_id=found.container.id,
            container_name=container.metadata.name,
            rung=pb.AcquireResponse.POOL if found.is_hit else pb.AcquireResponse.COLD,
            duration_s=found.duration_s,
            phases=[phase for story in self._engine.pools.story_of(found) for phase in _phases(story)],
        )


def _spec(spec: pb.Spec) -> PoolSpec:
    within_s = spec.ready_within_s or READY_WITHIN_S
    if not 0 < within_s <= LONGEST_READY_S:
        raise errors.InvalidArgument(
            f"ready within {within_s:g} s: must be more than 0 and at most {LONGEST_READY_S:g} s"
        )
    if any("\0" in word for word in spec.ready):
        raise errors.InvalidArgument("ready: a word with a zero byte in it, which no process can be given")
    return PoolSpec(
        pod=wanted.pod(spec.pod),
        container=wanted.container(spec.container),
        handler=spec.runtime_handler,
        ready=tuple(spec.ready),
        ready_within_s=within_s,
    )


def _phases(story: Story) -> list[own.Phase]:
    return [
        own.Phase(
            operation=story.operation,
            subject=story.subject,
            name=phase.name,
            started_at=phase.started_at_ns,
            duration=phase.duration_ns,
            waits_on=phase.waits_on,
            error=phase.error,
        )
        for phase in story.phases
    ]


def _pool(pool: Pool) -> pb.Pool:
    record = pool.record
    return pb.Pool(
        name=record.name,
        size=max(record.size, 0),
        generation=record.generation,
        spec=pb.Spec(
            pod=to_message(record.spec.pod, cri.PodSandboxConfig()),
            container=to_message(record.spec.container, cri.ContainerConfig()),
            runtime_handler=record.spec.handler,
            ready=record.spec.ready,
            ready_within_s=record.spec.ready_within_s,
        ),
        ready=len(pool.ready),
        booting=pool.booting,
        hits=record.hits,
        misses=record.misses,
        error=pool.error,
        created_at=record.created_ns,
    )
