"""atoll.leases.v1.Leases on the engine."""

from __future__ import annotations

from atoll import errors
from atoll.api import atoll_leases_v1_pb2 as pb
from atoll.engine.engine import Engine
from atoll.engine.pod_leases import LeaseStatus


class LeasesService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Get(self, request: pb.GetRequest, context: object) -> pb.Lease:
        return _lease(self._engine.leases.status(self._whole(request.pod_id)))

    async def List(self, request: pb.ListRequest, context: object) -> pb.ListResponse:
        return pb.ListResponse(leases=[_lease(one) for one in self._engine.leases.list()])

    async def Renew(self, request: pb.RenewRequest, context: object) -> pb.Lease:
        status = await self._engine.leases.renew(
            request.pod_id,
            ttl_s=request.ttl_s if request.HasField("ttl_s") else None,
            idle_s=request.idle_s if request.HasField("idle_s") else None,
        )
        return _lease(status)

    async def End(self, request: pb.EndRequest, context: object) -> pb.EndResponse:
        await self._engine.leases.end(self._whole(request.pod_id))
        return pb.EndResponse()

    def _whole(self, pod_id: str) -> str:
        """The ID that a prefix stands for; as it is for a pod that is gone."""
        try:
            return self._engine.pods.get(pod_id).id
        except errors.NotFound:
            return pod_id


def _lease(status: LeaseStatus) -> pb.Lease:
    lease = status.lease
    return pb.Lease(
        pod_id=lease.pod_id,
        pod_name=status.name,
        ttl_s=lease.ttl_s,
        idle_s=lease.idle_s,
        left_s=status.left_s,
        in_use=status.is_used,
        reason=lease.reason,
        ended_at=lease.ended_ns,
    )
