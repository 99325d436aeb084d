"""What is done to containers that run, what they use, and connections to ports of their pods.

`Controlled` is what a `Container` can by this module; `connect` is `Pod.connect`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from atoll import errors
from atoll.api import atoll_control_v1_pb2 as pb
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import request, wire
from atoll.client.model import moment
from atoll.client.process import Outbox

CALL_TIMEOUT_S = 120.0
SEND_CHUNK_BYTES = 64 << 10
_SERVICE = "atoll.control.v1.Control"
PAUSE = wire.Method(_SERVICE, "Pause", pb.PauseRequest, pb.PauseResponse)
RESUME = wire.Method(_SERVICE, "Resume", pb.ResumeRequest, pb.ResumeResponse)
RESTART = wire.Method(_SERVICE, "Restart", pb.RestartRequest, pb.RestartResponse)
SIGNAL = wire.Method(_SERVICE, "Signal", pb.SignalRequest, pb.SignalResponse)
PROCESSES = wire.Method(_SERVICE, "Processes", pb.ProcessesRequest, pb.ProcessesResponse)
CONNECT = wire.Method(_SERVICE, "Connect", pb.ConnectRequest, pb.ConnectResponse)
EVENTS = wire.Method(_SERVICE, "Events", pb.EventsRequest, pb.Event)
_RUNTIME = "runtime.v1.RuntimeService"
UPDATE = wire.Method(
    _RUNTIME, "UpdateContainerResources", cri.UpdateContainerResourcesRequest, cri.UpdateContainerResourcesResponse
)
POD_STATS = wire.Method(
    _RUNTIME, "ListPodSandboxStats", cri.ListPodSandboxStatsRequest, cri.ListPodSandboxStatsResponse
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProcess:
    """A process of a container as the host sees it; `cpu_s` is what all its threads have used."""

    pid: int
    parent: int
    uid: int
    state: str
    cpu_s: float
    rss_bytes: int
    started_at: datetime | None
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUsage:
    """What a container has used. `memory_bytes` is what could not be given back; `memory_limit_bytes` is 0 for none."""

    id: str
    name: str
    cpu_s: float
    memory_bytes: int
    memory_limit_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PodUsage:
    """What a pod has used at `at_ns`, and each of its containers; bytes of the network are of all its interfaces."""

    id: str
    name: str
    at_ns: int
    cpu_s: float
    memory_bytes: int
    processes: int
    received_bytes: int
    sent_bytes: int
    containers: tuple[ContainerUsage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a pod, or to one of its containers: created, started, stopped or deleted.

    `cursor` is where `Client.events(after=...)` goes on behind it. Of type `lost` nothing happened: what did before
    `at` is not remembered, so list what there is.
    """

    type: str
    pod_id: str
    pod_name: str
    container_id: str
    container_name: str
    at: datetime
    cursor: str = ""


class Controlled:
    """A container that runs, and what is done to it."""

    def __init__(self, connection: wire.Wire, container_id: str) -> None:
        self._wire = connection
        self.id = container_id

    async def pause(self) -> None:
        """Freeze every process; raises `FailedPrecondition` where it does not run or is paused."""
        await self._wire.call(PAUSE, pb.PauseRequest(container_id=self.id), timeout_s=CALL_TIMEOUT_S)

    async def resume(self) -> None:
        """Let it go on; raises `FailedPrecondition` where it is not paused."""
        await self._wire.call(RESUME, pb.ResumeRequest(container_id=self.id), timeout_s=CALL_TIMEOUT_S)

    async def kill(self, signal: int = 9, *, everything: bool = False) -> None:
        """Send its main process a signal, or every process of it. Raises `FailedPrecondition` where it does not run."""
        asked = pb.SignalRequest(container_id=self.id, signal=signal, all=everything)
        await self._wire.call(SIGNAL, asked, timeout_s=CALL_TIMEOUT_S)

    async def top(self) -> tuple[HostProcess, ...]:
        """Its processes, by pid."""
        answer = await self._wire.call(PROCESSES, pb.ProcessesRequest(container_id=self.id), timeout_s=CALL_TIMEOUT_S)
        return tuple(
            HostProcess(
                pid=one.pid,
                parent=one.parent,
                uid=one.uid,
                state=one.state,
                cpu_s=one.cpu / 1e9,
                rss_bytes=one.rss_bytes,
                started_at=moment(one.started_at),
                command=one.command,
            )
            for one in answer.processes
        )

    async def update(
        self, *, cpus: float | None = None, memory: int | str | None = None, pids: int | None = None
    ) -> None:
        """Change limits while it runs; those that are not named stay."""
        limits = request.resources(cpus, memory, pids)
        if limits is None:
            raise errors.InvalidArgument("update: names no limit; give cpus, memory or pids")
        asked = cri.UpdateContainerResourcesRequest(container_id=self.id, linux=limits)
        await self._wire.call(UPDATE, asked, timeout_s=CALL_TIMEOUT_S)


class Connection:
    """A connection to a port of a pod; `aclose` closes it."""

    def __init__(self, connection: wire.Wire, pod_id: str, port: int) -> None:
        self._outbox = Outbox[pb.ConnectRequest]()
        start = pb.ConnectRequest(start=pb.ConnectStart(pod_id=pod_id, port=port))
        self._call = connection.duplex(CONNECT, _led_by(start, self._outbox))

    async def opened(self) -> None:
        """Wait until the port has answered; raises `Unavailable` where nothing does. Call it once, first."""
        await self._call.receive()

    async def send(self, data: bytes) -> None:
        """Send; returns when it is on its way."""
        for at in range(0, len(data), SEND_CHUNK_BYTES):
            await self._outbox.put(pb.ConnectRequest(data=data[at : at + SEND_CHUNK_BYTES]))

    async def end(self) -> None:
        """Say that no more will be sent; the pod may still answer."""
        await self._outbox.put(pb.ConnectRequest(end=True))

    async def receive(self) -> bytes:
        """What has come, waiting for some; empty at the end."""
        answer = await self._call.receive()
        return answer.data if answer is not None else b""

    async def aclose(self) -> None:
        """Close it; idempotent."""
        self._call.cancel()
        await self._outbox.end()


async def _led_by(first: pb.ConnectRequest, outbox: Outbox[pb.ConnectRequest]) -> AsyncIterator[pb.ConnectRequest]:
    yield first
    async for message in outbox.messages():
        yield message


async def stats(connection: wire.Wire, pod_ids: Sequence[str] = ()) -> tuple[PodUsage, ...]:
    """What pods use now, all of them or those named."""
    answer = await connection.call(POD_STATS, cri.ListPodSandboxStatsRequest(), timeout_s=CALL_TIMEOUT_S)
    wanted = set(pod_ids)
    return tuple(_pod_usage(one) for one in answer.stats if not wanted or one.attributes.id in wanted)


def _pod_usage(one: cri.PodSandboxStats) -> PodUsage:
    used = one.linux
    interfaces = used.network.interfaces or [used.network.default_interface]
    return PodUsage(
        id=one.attributes.id,
        name=one.attributes.metadata.name,
        at_ns=used.cpu.timestamp,
        cpu_s=used.cpu.usage_core_nano_seconds.value / 1e9,
        memory_bytes=used.memory.working_set_bytes.value,
        processes=used.process.process_count.value,
        received_bytes=sum(link.rx_bytes.value for link in interfaces),
        sent_bytes=sum(link.tx_bytes.value for link in interfaces),
        containers=tuple(
            ContainerUsage(
                id=inside.attributes.id,
                name=inside.attributes.metadata.name,
                cpu_s=inside.cpu.usage_core_nano_seconds.value / 1e9,
                memory_bytes=inside.memory.working_set_bytes.value,
                memory_limit_bytes=_limit(inside.memory),
                disk_bytes=inside.writable_layer.used_bytes.value,
            )
            for inside in used.containers
        ),
    )


def _limit(memory: cri.MemoryUsage) -> int:
    if not memory.HasField("available_bytes") or not memory.available_bytes.value:
        return 0
    return memory.available_bytes.value + memory.working_set_bytes.value


async def events(
    connection: wire.Wire, *, since: datetime | None = None, after: str = "", follow: bool = True
) -> AsyncGenerator[Event]:
    """What happens from now on, and first what the daemon remembers from `since` on, or behind the cursor `after`."""
    since_ns = int(since.timestamp() * 1e9) if since is not None else 0
    asked = pb.EventsRequest(since=max(since_ns, 1) if since is not None else 0, after=after, follow=follow)
    answers = connection.stream(EVENTS, asked)
    try:
        async for one in answers:
            yield Event(
                type=one.type,
                pod_id=one.pod_id,
                pod_name=one.pod_name,
                container_id=one.container_id,
                container_name=one.container_name,
                at=datetime.fromtimestamp(one.at / 1e9, UTC),
                cursor=one.cursor,
            )
    finally:
        await answers.aclose()
