"""atoll.control.v1.Control: pauses, signals, processes, connections and events."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from atoll import errors
from atoll.api import atoll_control_v1_pb2 as pb
from atoll.concurrency import TaskOwner
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine import dialing
from atoll.engine.engine import Engine
from atoll.engine.events import Bus, Event
from atoll.engine.lines import tasks_of
from atoll.engine.pod import Pod
from atoll.linux import process
from atoll.services.process import fed

READ_BYTES = 64 << 10
MAX_REMEMBERED = 4096
COMMAND_BYTES = 4096
LONGEST_STOP_S = 366 * 24 * 3600.0
_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


class ControlService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._remembered: deque[pb.Event] = deque()
        self._whole_from_ns = time.time_ns()
        self._life = secrets.token_hex(4)
        self._count = 0
        self._told: Bus[pb.Event] = Bus()
        self._names: dict[str, str] = {}
        engine.parts.events.tap(self._remember)
        engine.parts.events.on_close(self._told.close)

    def _running(self, container_id: str) -> tuple[Pod, Container]:
        container = self._engine.containers.get(container_id)
        if container.status.get().state is not State.RUNNING:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: does not run")
        return self._engine.pods.get(container.sandbox_id), container

    # --- containers ---

    async def Pause(self, request: pb.PauseRequest, context: object) -> pb.PauseResponse:
        pod, container = self._running(request.container_id)
        await (await tasks_of(pod)).pause(container.id)
        container.is_paused = True
        return pb.PauseResponse()

    async def Resume(self, request: pb.ResumeRequest, context: object) -> pb.ResumeResponse:
        pod, container = self._running(request.container_id)
        await (await tasks_of(pod)).resume(container.id)
        container.is_paused = False
        return pb.ResumeResponse()

    async def Restart(self, request: pb.RestartRequest, context: object) -> pb.RestartResponse:
        if not (math.isfinite(request.timeout_s) and 0 <= request.timeout_s <= LONGEST_STOP_S):
            raise errors.InvalidArgument(f"timeout {request.timeout_s:g}: must be 0 to {LONGEST_STOP_S:g} s")
        container = self._engine.containers.get(request.container_id)
        pod = self._engine.pods.get(container.sandbox_id)
        await self._engine.restarts.restart(pod, container, request.timeout_s)
        return pb.RestartResponse()

    async def Signal(self, request: pb.SignalRequest, context: object) -> pb.SignalResponse:
        if not 0 < request.signal <= signal.SIGRTMAX:
            raise errors.InvalidArgument(f"signal {request.signal}: there is no such signal")
        pod, container = self._running(request.container_id)
        await (await tasks_of(pod)).kill(container.id, request.signal, all_processes=request.all)
        return pb.SignalResponse()

    async def Processes(self, request: pb.ProcessesRequest, context: object) -> pb.ProcessesResponse:
        pod, container = self._running(request.container_id)
        pids = await (await tasks_of(pod)).pids(container.id)
        found = await self._engine.parts.blocking.run(_processes, pids)
        return pb.ProcessesResponse(processes=found)

    # --- ports ---

    async def Connect(
        self, requests: AsyncIterator[pb.ConnectRequest], context: object
    ) -> AsyncGenerator[pb.ConnectResponse]:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "start":
            raise errors.InvalidArgument("connect: the first message must be `start`")
        if not 0 < first.start.port < 65536:
            raise errors.InvalidArgument(f"port {first.start.port}: a port is 1 to 65535")
        connection = await dialing.dial(self._engine, first.start.pod_id, first.start.port)
        loop = asyncio.get_running_loop()
        try:
            async with TaskOwner("connect") as tasks:
                tasks.spawn(fed(_send(requests, connection)), name="connect/send")
                yield pb.ConnectResponse(connected=True)
                while data := await _received(loop, connection):
                    yield pb.ConnectResponse(data=data)
        finally:
            connection.close()

    # --- events ---

    def _remember(self, event: Event) -> None:
        self._count += 1
        message = self._message(event)
        message.cursor = f"{self._life}-{self._count}"
        self._remembered.append(message)
        if len(self._remembered) > MAX_REMEMBERED:
            self._whole_from_ns = self._remembered.popleft().at + 1
        self._told.publish(message)

    def _asked(self, request: pb.EventsRequest) -> list[pb.Event]:
        """What is remembered of what is asked for, behind a mark where it is not all."""
        remembered = list(self._remembered)
        if request.after:
            life, _, number = request.after.partition("-")
            if not (number.isascii() and number.isdecimal() and len(number) < 20):
                raise errors.InvalidArgument(f"cursor {request.after[:80]!r}: is none of an event")
            missed = self._count - int(number) if life == self._life else -1
            if 0 <= missed <= len(remembered):
                return remembered[len(remembered) - missed :]
            return [self._lost(), *remembered]
        if not request.since:
            return []
        told = [one for one in remembered if one.at >= request.since]
        return told if request.since >= self._whole_from_ns else [self._lost(), *told]

    def _lost(self) -> pb.Event:
        before = self._count - len(self._remembered)
        return pb.Event(type="lost", at=self._whole_from_ns, cursor=f"{self._life}-{before}")

    def _message(self, event: Event) -> pb.Event:
        pod = self._engine.pods.find(event.pod_id)
        name = pod.config.metadata.name if pod is not None and pod.config.metadata is not None else ""
        is_pod = event.container_id == event.pod_id
        return pb.Event(
            type=event.type.name.lower(),
            pod_id=event.pod_id,
            pod_name=name,
            container_id="" if is_pod else event.container_id,
            container_name="" if is_pod else self._name_of(event),
            at=event.at_ns,
        )

    def _name_of(self, event: Event) -> str:
        """The container's name, which is remembered until the container is told to be gone."""
        found = next((one for one in self._engine.containers.list(event.pod_id) if one.id == event.container_id), None)
        if found is not None and found.metadata.config is not None and found.metadata.config.metadata is not None:
            self._names[event.container_id] = found.metadata.config.metadata.name
        name = self._names.get(event.container_id, "")
        if event.type.name == "DELETED":
            self._names.pop(event.container_id, None)
        return name

    async def Events(self, request: pb.EventsRequest, context: object) -> AsyncGenerator[pb.Event]:
        subscription = self._told.open()
        try:
            for one in self._asked(request):
                yield one
            if request.follow:
                async for one in subscription:
                    yield one
        finally:
            subscription.close()


async def _send(requests: AsyncIterator[pb.ConnectRequest], connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        async for request in requests:
            if request.WhichOneof("message") != "data":
                break
            await loop.sock_sendall(connection, request.data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the pod has closed it, which the reading side tells


async def _received(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(connection, READ_BYTES)
    except OSError:  # reset by the pod: there is no more
        return b""


def _processes(pids: tuple[int, ...]) -> list[pb.Process]:
    """Those that are still there. Blocks."""
    booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    found: list[pb.Process] = []
    for pid in sorted(pids):
        seen = process.stat(pid)
        if seen is None:
            continue
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()[:COMMAND_BYTES]
            uid = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            continue
        found.append(
            pb.Process(
                pid=pid,
                parent=seen.parent,
                uid=uid,
                state=seen.state,
                cpu=(int(fields[11]) + int(fields[12])) * _TICK_NS,
                rss_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
                started_at=booted_ns + seen.start_ticks * _TICK_NS,
                command=b" ".join(command.rstrip(b"\0").split(b"\0")).decode(errors="replace") or f"[{seen.command}]",
            )
        )
    return found
