"""How long pods live: `pod.lease`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from atoll import errors
from atoll.api import atoll_leases_v1_pb2 as pb
from atoll.client import wire

CALL_TIMEOUT_S = 120.0
TTL = "io.atoll.lease/ttl"
IDLE = "io.atoll.lease/idle"
"""Annotations by which a pod has a lease from the instant on at which it is ready."""
LONGEST_S = 10 * 366 * 24 * 3600.0
SHORTEST_S = 0.1

_SERVICE = "atoll.leases.v1.Leases"
GET = wire.Method(_SERVICE, "Get", pb.GetRequest, pb.Lease)
LIST = wire.Method(_SERVICE, "List", pb.ListRequest, pb.ListResponse)
RENEW = wire.Method(_SERVICE, "Renew", pb.RenewRequest, pb.Lease)
END = wire.Method(_SERVICE, "End", pb.EndRequest, pb.EndResponse)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """A lease now. Times are in seconds, 0 for none; `left_s` is until it runs out if nobody uses the pod.

    One that ran out has a `reason` and `ended_at`.
    """

    pod_id: str
    pod_name: str
    ttl_s: float
    idle_s: float
    left_s: float
    in_use: bool
    reason: str
    ended_at: datetime | None

    @classmethod
    def read(cls, message: pb.Lease) -> Self:
        ended_at = datetime.fromtimestamp(message.ended_at / 1e9, UTC) if message.ended_at else None
        return cls(
            pod_id=message.pod_id,
            pod_name=message.pod_name,
            ttl_s=message.ttl_s,
            idle_s=message.idle_s,
            left_s=message.left_s,
            in_use=message.in_use,
            reason=message.reason,
            ended_at=ended_at,
        )


class Lease:
    """The lease of one pod; the daemon keeps it, whatever becomes of clients and of the daemon."""

    def __init__(self, connection: wire.Wire, pod_id: str) -> None:
        self._wire = connection
        self._pod_id = pod_id

    async def status(self) -> LeaseStatus:
        """What is left of it, and of one that ran out why; raises `NotFound` for a pod without a lease."""
        asked = pb.GetRequest(pod_id=self._pod_id)
        return LeaseStatus.read(await self._wire.call(GET, asked, timeout_s=CALL_TIMEOUT_S))

    async def renew(self, *, ttl: float | None = None, idle: float | None = None) -> LeaseStatus:
        """Begin its times anew, with other lengths where they are given; a pod without a lease gets one.

        Raises `FailedPrecondition` for one that has run out, `NotFound` for a pod that is gone.
        """
        asked = pb.RenewRequest(pod_id=self._pod_id)
        if ttl is not None:
            asked.ttl_s = seconds(ttl, "ttl")
        if idle is not None:
            asked.idle_s = seconds(idle, "idle")
        return LeaseStatus.read(await self._wire.call(RENEW, asked, timeout_s=CALL_TIMEOUT_S))

    async def end(self) -> None:
        """Take it away: the pod lives until it is removed. Idempotent."""
        await self._wire.call(END, pb.EndRequest(pod_id=self._pod_id), timeout_s=CALL_TIMEOUT_S)


async def leases(connection: wire.Wire) -> tuple[LeaseStatus, ...]:
    """Every lease, those that ran out last too."""
    answer = await connection.call(LIST, pb.ListRequest(), timeout_s=CALL_TIMEOUT_S)
    return tuple(LeaseStatus.read(one) for one in answer.leases)


def asking(ttl: float | None, idle: float | None) -> dict[str, str]:
    """What asks for a lease with a pod's request."""
    wanted = {TTL: (ttl, "ttl"), IDLE: (idle, "idle")}
    return {name: repr(seconds(value, what)) for name, (value, what) in wanted.items() if value is not None}


def seconds(value: float, what: str) -> float:
    """A time to live, 0 for none; raises `InvalidArgument` for what is none."""
    if not isinstance(value, int | float) or not (value == 0 or SHORTEST_S <= value <= LONGEST_S):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without types
        raise errors.InvalidArgument(
            f"{what} {value!r}: must be 0 for none, or {SHORTEST_S:g} to {LONGEST_S:g} seconds"
        )
    return float(value)
