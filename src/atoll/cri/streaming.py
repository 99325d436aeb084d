"""Exec, Attach and PortForward of the CRI: a URL of the streaming server for each, and what is done behind it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Awaitable, Callable

import msgspec

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.concurrency import TaskOwner
from atoll.container.status import State
from atoll.container.store import Container
from atoll.cri.selection import find
from atoll.engine import dialing
from atoll.engine.engine import Engine
from atoll.engine.execs import Exec, ExecRequest
from atoll.runtime.streams import ByteReader, ByteWriter
from atoll.sandbox.controller import State as PodState
from atoll.services.process import EXIT_DRAIN_S, Stdin, fed
from atoll.streaming.command import Options, Outlet, Streams
from atoll.streaming.flow import Gone, Inflow
from atoll.streaming.forward import MAX_PORTS
from atoll.streaming.server import Command, Forward, Server
from atoll.streaming.status import End
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

MAX_RESIZE_BYTES = 4096
CHUNKS_A_TURN = 4
LEFT_DRAIN_S = 10.0
LEFT_DRAIN_BYTES = 16 << 20


class Streaming:
    """RPCs whose answer is the URL of a stream."""

    def __init__(self, engine: Engine, server: Server) -> None:
        self._engine = engine
        self._server = server

    async def Exec(self, request: pb.ExecRequest, context: object) -> pb.ExecResponse:
        options = _options(request)
        if not request.cmd:
            raise errors.InvalidArgument("exec: the command is empty")
        container = self._running(request.container_id)
        handler = functools.partial(self._exec, container, tuple(request.cmd), options)
        command = Command(options=options, handler=handler)
        return pb.ExecResponse(url=await self._server.url("exec", command))

    async def Attach(self, request: pb.AttachRequest, context: object) -> pb.AttachResponse:
        options = _options(request)
        container = self._running(request.container_id)
        command = Command(options=options, handler=functools.partial(self._attach, container))
        return pb.AttachResponse(url=await self._server.url("attach", command))

    async def PortForward(self, request: pb.PortForwardRequest, context: object) -> pb.PortForwardResponse:
        pod = self._engine.pods.get(request.pod_sandbox_id)
        if pod.state is not PodState.READY:
            raise errors.FailedPrecondition(f"pod {pod.id[:13]}: is not ready, no port of it can be forwarded")
        ports = tuple(request.port)
        if len(ports) > MAX_PORTS or any(not 0 < port < 65536 for port in ports):
            raise errors.InvalidArgument(f"port forward: the ports must be 1 to 65535, and at most {MAX_PORTS}")
        forward = Forward(dial=functools.partial(self._dial, pod.id), ports=ports)
        return pb.PortForwardResponse(url=await self._server.url("portforward", forward))

    def _running(self, container_id: str) -> Container:
        _, container = find(self._engine, container_id)
        if container.status.get().state is not State.RUNNING:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: is not running")
        return container

    # --- exec and attach ---

    async def _exec(self, container: Container, command: tuple[str, ...], options: Options, streams: Streams) -> End:
        try:
            pod, container = find(self._engine, container.id)
            request = ExecRequest(command=command, tty=options.tty, stdin=options.stdin, bulk=True)
            async with self._engine.execs.open(pod, container, request) as running:
                return End(exit_code=await _until_end(running, streams))
        except errors.AtollError as error:
            return End(fault=f"error executing command in container: {error}")

    async def _attach(self, container: Container, streams: Streams) -> End:
        try:
            pod, container = find(self._engine, container.id)
            config = container.metadata.config
            has_stdin = config is not None and config.stdin and streams.stdin is not None
            io = await self._engine.execs.attach(pod, container, stdin=has_stdin)
            end_use = self._engine.parts.uses.begin(pod.id)
            resize = functools.partial(self._engine.execs.resize, pod, container)
            try:
                async with TaskOwner(f"attach/{container.id}") as tasks:
                    _feed(tasks, streams.stdin, io.stdin)
                    _resize(tasks, streams.resize, resize)
                    output = Output((io.stdout, streams.stdout), (io.stderr, streams.stderr))
                    copying = tasks.spawn(output.run(), name="attach/output")
                    ending = tasks.spawn(container.stopped.wait(), name="attach/end")
                    await asyncio.wait({ending, copying}, return_when=asyncio.FIRST_COMPLETED)
                    await output.drained(copying)
            finally:
                io.close()
                end_use()
        except errors.AtollError as error:
            return End(fault=f"error attaching to container: {error}")
        return End()

    # --- port forward ---

    async def _dial(self, pod_id: str, port: int) -> socket.socket:
        return await dialing.dial(self._engine, pod_id, port)


def _options(request: pb.ExecRequest | pb.AttachRequest) -> Options:
    if not request.container_id:
        raise errors.InvalidArgument("container_id: is required")
    if request.tty and request.stderr:
        raise errors.InvalidArgument("tty and stderr: a terminal has one output, ask for stdout alone")
    if not (request.stdin or request.stdout or request.stderr):
        raise errors.InvalidArgument("one of stdin, stdout and stderr must be asked for")
    return Options(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, tty=request.tty)


async def _until_end(running: Exec, streams: Streams) -> int:
    """Move the streams of a process until its end; its exit code, once all output was sent."""
    async with TaskOwner(f"exec/{running.id}") as tasks:
        _feed(tasks, streams.stdin, running.io.stdin)
        _resize(tasks, streams.resize, running.resize)
        output = Output((running.io.stdout, streams.stdout), (running.io.stderr, streams.stderr))
        copying = tasks.spawn(output.run(), name="exec/output")
        end = await running.wait()
        await output.drained(copying)
    return end.exit_status


class Output:
    """The output of a process on its way to a client. What the client does not take, or did not ask for, is dropped."""

    def __init__(self, *pairs: tuple[ByteReader | None, Outlet | None]) -> None:
        self._pairs = [(reader, outlet) for reader, outlet in pairs if reader is not None]
        self._moved = 0
        self._bytes = 0
        self._sending = 0
        self._fault: errors.AtollError | None = None

    async def run(self) -> None:
        """Copy until every stream has ended."""
        async with asyncio.TaskGroup() as group:
            for reader, outlet in self._pairs:
                group.create_task(self._copy(reader, outlet), name="output/stream")

    async def drained(self, copying: asyncio.Task[None]) -> None:
        """After the process's end: wait until all was sent, or nothing comes for a while from what it left behind.

        What it left behind may go on for ever: then until more has come than the process itself can have left in its
        pipes, or until the client has been waited for no longer than `LEFT_DRAIN_S`. Raises what reading raised.
        """
        moved, idle_s, most = -1, 0.0, self._bytes + LEFT_DRAIN_BYTES
        while not copying.done() and (self._moved != moved or self._sending):
            if idle_s >= LEFT_DRAIN_S or self._bytes >= most:
                break
            moved = self._moved
            await asyncio.wait({copying}, timeout=EXIT_DRAIN_S)
            idle_s += 0 if self._sending else EXIT_DRAIN_S
        if self._fault is not None:
            raise self._fault

    async def _copy(self, reader: ByteReader, outlet: Outlet | None) -> None:
        try:
            async for chunk in reader:
                self._moved += 1
                self._bytes += len(chunk)
                if outlet is None:
                    continue
                self._sending += 1
                try:
                    await outlet.write(chunk)
                except Gone:
                    outlet = None
                finally:
                    self._sending -= 1
                if not self._moved % CHUNKS_A_TURN:
                    await asyncio.sleep(0)
        except errors.AtollError as error:
            self._fault = error


def _feed(tasks: TaskOwner, inflow: Inflow | None, writer: ByteWriter | None) -> None:
    """Pass a client's input on; what no process takes is dropped."""
    if inflow is None:
        return
    if writer is None:
        inflow.discard()
    else:
        tasks.spawn(fed(_feeding(inflow, Stdin(writer))), name="input")


async def _feeding(inflow: Inflow, stdin: Stdin) -> None:
    with contextlib.suppress(Gone):  # the client has left: whoever waits for the end knows
        while chunk := await inflow.read():
            await stdin.write(chunk)
        await stdin.close()


Resize = Callable[[int, int], Awaitable[None]]


class _Size(msgspec.Struct, frozen=True):
    """What a client says of its terminal, in cells."""

    width: int = msgspec.field(name="Width", default=0)
    height: int = msgspec.field(name="Height", default=0)


def _resize(tasks: TaskOwner, inflow: Inflow | None, resize: Resize) -> None:
    if inflow is not None:
        tasks.spawn(fed(follow_sizes(inflow, resize)), name="resize")


async def follow_sizes(inflow: Inflow, resize: Resize) -> None:
    """Pass on the sizes that come, as JSON objects behind each other; a client whose objects are none is not heard.

    A size with a 0 says nothing. Returns when no more will come.
    """
    text = b""
    with contextlib.suppress(Gone):
        while chunk := await inflow.read():
            text += chunk
            while (end := text.find(b"}") + 1) and len(text) <= MAX_RESIZE_BYTES:
                document, text = text[:end], text[end:]
                try:
                    size = msgspec.json.decode(document, type=_Size)
                except UNREADABLE as error:
                    log.info("streaming: a client's size of its terminal cannot be read: %s", error)
                    inflow.discard()
                    return
                if 0 < size.width < 65536 and 0 < size.height < 65536:
                    with contextlib.suppress(errors.NotFound):  # it has ended, which its exit says
                        await resize(size.width, size.height)
            if len(text) > MAX_RESIZE_BYTES:
                inflow.discard()
                return
