"""A daemon in memory, for tests of programs that use the SDK: real gRPC on a real socket, no root, no kernel.

    async with FakeDaemon(tmp_path / "atoll.sock", images=("docker.io/atoll/busybox:latest",)) as daemon:
        async with atoll.connect(daemon.socket, start=False) as client:
            ...

Pods, containers, logs, waits, execs and images behave as the daemon's do. What "runs" in a container is a
`Program`: a coroutine that is given its arguments and streams; `PROGRAMS` has a few, named as in busybox.
`calls` holds the name of each call that was made.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc.aio

from atoll import errors, rpc
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.concurrency import Latch, TaskOwner
from atoll.crilog import LogLine
from atoll.image.reference import Reference
from atoll.testing import fake_services

T = TypeVar("T")

KILLED = 128 + signal.SIGKILL


@dataclass(slots=True, kw_only=True, eq=False)
class Streams:
    """What a program reads and writes; `stdin` gives None at its end."""

    arguments: tuple[str, ...]
    env: Mapping[str, str]
    stdin: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue[bytes | None])
    output: asyncio.Queue[own.ExecResponse | None] = field(default_factory=asyncio.Queue[own.ExecResponse | None])

    ended_by: own.Exit | None = None

    def out(self, data: bytes) -> None:
        self.output.put_nowait(own.ExecResponse(stdout=data))

    def err(self, data: bytes) -> None:
        self.output.put_nowait(own.ExecResponse(stderr=data))


Program = Callable[[Streams], Awaitable[int]]


async def _echo(streams: Streams) -> int:
    streams.out(" ".join(streams.arguments).encode() + b"\n")
    return 0


async def _complain(streams: Streams) -> int:
    streams.err(" ".join(streams.arguments).encode() + b"\n")
    return 1


async def _cat(streams: Streams) -> int:
    while (data := await streams.stdin.get()) is not None:
        streams.out(data)
    return 0


async def _sleep(streams: Streams) -> int:
    await asyncio.sleep(float(streams.arguments[0]))
    return 0


async def _env(streams: Streams) -> int:
    for key, value in streams.env.items():
        streams.out(f"{key}={value}\n".encode())
    return 0


async def _exit(streams: Streams) -> int:
    return int(streams.arguments[0])


PROGRAMS: Mapping[str, Program] = {
    "echo": _echo,
    "complain": _complain,
    "cat": _cat,
    "sleep": _sleep,
    "env": _env,
    "exit": _exit,
}


@dataclass(slots=True, kw_only=True, eq=False)
class FakeContainer:
    """A container of the fake: its CRI status, its log, its end."""

    status: cri.ContainerStatus
    pod_id: str
    config: cri.ContainerConfig
    log: list[LogLine] = field(default_factory=list[LogLine])
    logged: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None
    killed_with: int = KILLED
    ended: Latch[own.Exit] = field(default_factory=Latch[own.Exit])


@dataclass(slots=True, kw_only=True, eq=False)
class FakePod:
    """A pod of the fake, as CRI shows it."""

    status: cri.PodSandboxStatus
    config: cri.PodSandboxConfig


class FakeDaemon:
    """Serves CRI and atoll.v1 on `socket`; an async context manager.

    `registry` has what can be pulled, `images` what is there from the start, both by canonical name.
    """

    def __init__(
        self,
        socket: Path,
        *,
        images: tuple[str, ...] = ("docker.io/atoll/busybox:latest",),
        registry: tuple[str, ...] = (),
        programs: Mapping[str, Program] = PROGRAMS,
    ) -> None:
        self.socket = socket
        self.programs = programs
        self.registry = set(registry)
        self.images = {name: f"sha256:{secrets.token_hex(32)}" for name in images}
        self.pods: dict[str, FakePod] = {}
        self.containers: dict[str, FakeContainer] = {}
        self.findings: list[own.Finding] = []
        self.calls: list[str] = []
        self._owner = TaskOwner("fake")
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        runtime = cri.DESCRIPTOR.services_by_name["RuntimeService"]
        images = cri.DESCRIPTOR.services_by_name["ImageService"]
        ours = own.DESCRIPTOR.services_by_name["Runtime"]
        activity = _Activity()
        self._server.add_generic_rpc_handlers(
            [
                rpc.handlers(runtime, fake_services.FakeRuntime(self), activity),
                rpc.handlers(images, fake_services.FakeImages(self), activity),
                rpc.handlers(ours, fake_services.FakeExtras(self), activity),
            ]
        )
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.die()

    async def die(self) -> None:
        """End as a killed daemon does: every call breaks. Idempotent."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        await self._owner.aclose()
        self.socket.unlink(missing_ok=True)

    # --- what the services share ---

    def pod(self, pod_id: str) -> FakePod:
        return _by_prefix(pod_id, "pod", self.pods)

    def container(self, container_id: str) -> FakeContainer:
        return _by_prefix(container_id, "container", self.containers)

    def add_pod(self, status: cri.PodSandboxStatus, config: cri.PodSandboxConfig) -> None:
        self.pods[status.id] = FakePod(status=status, config=config)

    def add_container(self, status: cri.ContainerStatus, pod_id: str, config: cri.ContainerConfig) -> None:
        self.containers[status.id] = FakeContainer(status=status, pod_id=pod_id, config=config)

    def streams(self, arguments: tuple[str, ...], env: Mapping[str, str]) -> Streams:
        return Streams(arguments=arguments, env=env)

    async def run_program(self, program: Program, streams: Streams) -> int:
        """Run it; its output ends when it does."""
        try:
            return await program(streams)
        finally:
            streams.output.put_nowait(None)

    def image_id(self, reference: str) -> str:
        """The ID of an image by its name or ID; raises `NotFound`."""
        for name, image_id in self.images.items():
            if reference in (name, image_id) or (":" not in reference and image_id[7:].startswith(reference)):
                return image_id
        name = str(Reference.parse(reference))
        if name not in self.images:
            raise errors.NotFound(f"image {reference!r}: is not here; pull it first")
        return self.images[name]

    def program(self, command: tuple[str, ...], operation: str) -> Program:
        if not command or command[0] not in self.programs:
            word = command[0] if command else ""
            raise errors.NotFound(f"command {word!r}: is not in the image ({operation}); name a program that is")
        return self.programs[command[0]]

    def start(self, container: FakeContainer) -> None:
        config = container.config
        command = (*config.command, *config.args)
        program = self.program(command, "start")
        env = {pair.key: pair.value.decode() for pair in config.envs}
        streams = Streams(arguments=command[1:], env=env)
        container.status.state, container.status.started_at = cri.CONTAINER_RUNNING, time.time_ns()
        container.task = self._owner.spawn(self._live(container, program, streams), name=container.status.id)

    async def _live(self, container: FakeContainer, program: Program, streams: Streams) -> None:
        """The life of a container: its program, its log, its end."""
        code = None
        try:
            code = await self._logging(container, program, streams)
        finally:
            status = container.status
            code = container.killed_with if code is None else code
            status.state, status.finished_at, status.exit_code = cri.CONTAINER_EXITED, time.time_ns(), code
            cause = own.Exit.SIGNALLED if code > 128 else own.Exit.EXITED
            container.ended.set(own.Exit(code=code, cause=cause, exited_at=status.finished_at))
            async with container.logged:
                container.logged.notify_all()

    async def _logging(self, container: FakeContainer, program: Program, streams: Streams) -> int:
        async with TaskOwner("program") as owner:
            running = owner.spawn(self.run_program(program, streams), name="program")
            while (answer := await streams.output.get()) is not None:
                stream = "stdout" if answer.stdout else "stderr"
                for line in (answer.stdout or answer.stderr).splitlines():
                    container.log.append(LogLine(stream=stream, time_ns=time.time_ns(), content=line))
                async with container.logged:
                    container.logged.notify_all()
            return await running

    async def stop(self, container: FakeContainer, code: int) -> None:
        """End a running container with this code. Idempotent."""
        if container.task is not None and not container.task.done():
            container.killed_with = code
            container.task.cancel()
            await asyncio.wait({container.task})


class _Activity:
    def begin(self) -> None:
        return

    def end(self) -> None:
        return


def _by_prefix(identifier: str, what: str, among: Mapping[str, T]) -> T:
    found = [one for key, one in among.items() if key.startswith(identifier)] if identifier else []
    if len(found) != 1:
        raise errors.NotFound(f"{what} {identifier!r}: there is no such {what}")
    return found[0]
