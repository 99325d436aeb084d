"""One more process in a running container: with its streams, or to its end with its output.

Every exec has an ID of its own, is deleted from its shim at the end whatever happens, and where it has
a time limit its whole tree is killed when that runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from atoll import errors, faults
from atoll.concurrency import run_to_completion
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine import specs
from atoll.engine.drivers import ExecStreams
from atoll.engine.lines import shim_of, tasks_of
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.oci import spec as oci
from atoll.runtime.streams import Capture, ProcessIO
from atoll.runtime.task import TaskClient
from atoll.sandbox.controller import ExitStatus

log = logging.getLogger(__name__)

OUTPUT_LIMIT_BYTES = 16 * 1024 * 1024
"""Kept of each stream of a captured exec; the rest is read and dropped."""

DRAIN_TIMEOUT_S = 10.0
"""How long output may be held open by what an exec left behind, after its own end."""
KILLED_DRAIN_TIMEOUT_S = 1.0
"""The same where it was killed for its time limit: its caller has waited long enough."""

CLEANUP_TIMEOUT_S = 30.0
MAX_EXECS = 256
"""Execs at one time in one container."""


class Cause(StrEnum):
    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """What to run. `env` is added to the container's; `user` is `uid[:gid]` or a name of the image.

    `width` and `height` are the terminal's, in cells; 0 where they are not known. `bulk`: its streams are named pipes,
    which carry more bytes a second and cost a little more to begin with.
    """

    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    timeout_s: float = 0.0
    width: int = 0
    height: int = 0
    bulk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """How an exec ended, and its output: whole, or the first `OUTPUT_LIMIT_BYTES` of a stream."""

    exit: ExitStatus
    cause: Cause
    stdout: bytes
    stderr: bytes
    truncated: bool = False


@dataclass(slots=True, kw_only=True)
class Exec:
    """A started exec; `io` has the streams that were asked for."""

    id: str
    pid: int
    io: ProcessIO
    container_id: str
    tasks: TaskClient = field(repr=False)
    streams: ExecStreams = field(repr=False)
    ended: bool = False

    async def wait(self) -> ExitStatus:
        end = await self.tasks.wait(self.container_id, self.id)
        self.ended = True
        return end

    async def resize(self, width: int, height: int) -> None:
        await self.tasks.resize_pty(self.container_id, exec_id=self.id, width=width, height=height)

    async def signal(self, number: int) -> None:
        """Send a signal to the process; fine where it has ended."""
        with contextlib.suppress(errors.NotFound):
            await self.tasks.kill(self.container_id, number, exec_id=self.id)

    async def kill_tree(self) -> None:
        """SIGKILL the process and all it started that is still its own."""
        with contextlib.suppress(errors.NotFound):
            await self.tasks.kill(self.container_id, signal.SIGKILL, exec_id=self.id, all_processes=True)


class Execs:
    """Starts execs in the containers of an engine."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._running: dict[str, int] = {}

    @asynccontextmanager
    async def open(self, pod: Pod, container: Container, request: ExecRequest) -> AsyncGenerator[Exec]:
        """Start a process with live streams; leaving the context kills what runs and deletes it.

        Raises `FailedPrecondition` where the container does not run, `ResourceExhausted` past `MAX_EXECS`,
        `InvalidArgument` for an empty command.
        """
        if not request.command:
            raise errors.InvalidArgument("exec: the command is empty")
        if any("\0" in text for text in (*request.command, *request.env, request.working_dir)):
            raise errors.InvalidArgument("exec: a word with a zero byte in it, which no process can be given")
        if container.status.get().state is not State.RUNNING:
            raise errors.FailedPrecondition(
                f"container {container.id[:13]}: is not running, nothing can be run in it; its log tells why "
                "(`atoll logs`), a new container takes its place (`atoll run`)"
            )
        if self._running.get(container.id, 0) >= MAX_EXECS:
            raise errors.ResourceExhausted(f"container {container.id[:13]}: has {MAX_EXECS} execs already")
        self._running[container.id] = self._running.get(container.id, 0) + 1
        exec_id = secrets.token_hex(16)
        try:
            with self._parts.uses.using(pod.id):
                started = await self._start(pod, container, request, exec_id)
                try:
                    yield started
                finally:
                    started.io.close()
                    await run_to_completion(self._end(started), within=CLEANUP_TIMEOUT_S)
        finally:
            self._running[container.id] -= 1
            if not self._running[container.id]:
                del self._running[container.id]

    async def _start(self, pod: Pod, container: Container, request: ExecRequest, exec_id: str) -> Exec:
        shim = await shim_of(pod)
        tasks = shim.tasks
        user = None
        if request.user:
            user = await self._parts.blocking.run(specs.exec_user, self._parts, container, request.user)
        process = exec_process(oci.decode(container.record.spec), request, user)
        streams = self._parts.drivers.of(pod).exec_streams(
            pod,
            shim,
            container.id,
            exec_id,
            stdin=request.stdin,
            tty=request.tty,
            fifos=self._parts.paths.bundles / container.id / "fifos" if request.bulk else None,
        )
        self._parts.expedite()
        try:
            with faults.step("exec/add"):
                await tasks.exec(container.id, exec_id, spec=oci.encode(process), stdio=streams.paths)
        except BaseException:
            streams.remove()
            raise
        try:
            with faults.step("exec/start"):
                pid = await tasks.start(container.id, exec_id)
            io = await streams.open()
        except BaseException as error:
            await run_to_completion(_abandon(tasks, container.id, exec_id), within=CLEANUP_TIMEOUT_S)
            streams.remove()
            if isinstance(error, errors.AtollError):
                raise specs.explained(container, process, error) from error
            raise
        return Exec(id=exec_id, pid=pid, io=io, container_id=container.id, tasks=tasks, streams=streams)

    async def _end(self, started: Exec) -> None:
        if not started.ended:
            with contextlib.suppress(errors.NotFound, errors.Unavailable):
                await started.kill_tree()
                await started.wait()
        # Behind the answer: it takes as long as somebody left behind holds the streams, which nobody reads any more.
        self._parts.owner.spawn(
            _forget(started.tasks, started.container_id, started.id), name=f"exec/{started.id}/delete"
        )
        started.streams.remove()

    async def attach(self, pod: Pod, container: Container, *, stdin: bool) -> ProcessIO:
        """The live streams of a container's main process, from now on; close them when done.

        Raises `FailedPrecondition` where it does not run, or has no stdin and one is asked for.
        """
        config = container.metadata.config
        if config is None or container.status.get().state is not State.RUNNING:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: is not running, nothing to attach to")
        if stdin and not config.stdin:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: was made without stdin")
        return await self._parts.drivers.of(pod).attach(pod, container, config, stdin=stdin)

    async def resize(self, pod: Pod, container: Container, width: int, height: int) -> None:
        """Set the size of a container's terminal, in cells."""
        await (await tasks_of(pod)).resize_pty(container.id, width=width, height=height)

    async def sync(self, pod: Pod, container: Container, request: ExecRequest) -> ExecResult:
        """Run to the end and give all of the output.

        With a time limit that runs out, the tree is killed and the result says `TIMED_OUT` with the output
        so far. A background child that keeps the streams open is waited for `DRAIN_TIMEOUT_S` at most, and no longer
        than the time limit or `KILLED_DRAIN_TIMEOUT_S`.
        """
        begun = time.monotonic()
        async with self.open(pod, container, request) as started:
            captured = Capture(started.io, OUTPUT_LIMIT_BYTES)
            cause = Cause.EXITED
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(captured.run(), name=f"exec/{started.id}/output")
                try:
                    async with asyncio.timeout(request.timeout_s or None):
                        end = await started.wait()
                except TimeoutError:
                    cause = Cause.TIMED_OUT
                    await started.kill_tree()
                    end = await started.wait()
                drain_s = DRAIN_TIMEOUT_S
                if request.timeout_s:
                    left_s = request.timeout_s - (time.monotonic() - begun)
                    drain_s = min(drain_s, max(left_s, KILLED_DRAIN_TIMEOUT_S))
                await asyncio.wait({reading}, timeout=drain_s)
                reading.cancel()
        if cause is Cause.EXITED and end.exit_status > 128 and end.exit_status - 128 <= signal.SIGRTMAX:
            cause = Cause.SIGNALLED
        return ExecResult(
            exit=end,
            cause=cause,
            stdout=captured.stdout,
            stderr=captured.stderr,
            truncated=captured.stdout_truncated or captured.stderr_truncated,
        )


async def _abandon(tasks: TaskClient, container_id: str, exec_id: str) -> None:
    with contextlib.suppress(errors.AtollError):
        faults.reached("exec/undo")
        await tasks.kill(container_id, signal.SIGKILL, exec_id=exec_id, all_processes=True)
    await _forget(tasks, container_id, exec_id)


async def _forget(tasks: TaskClient, container_id: str, exec_id: str) -> None:
    try:
        with faults.step("exec/delete"):
            await tasks.delete(container_id, exec_id)
    except (errors.NotFound, errors.Unavailable):
        return
    except errors.AtollError as error:
        log.warning("exec %s of container %s: is not deleted: %s", exec_id, container_id[:13], error)


def exec_process(spec: oci.Spec, request: ExecRequest, user: oci.User | None = None) -> oci.Process:
    """The container's own process with another command, and what the request adds."""
    base = spec.process
    if base is None:
        raise errors.FailedPrecondition("the container's spec has no process to take after")
    env = tuple(base.env)
    if request.env:
        names = {one.partition("=")[0] for one in request.env}
        env = (*(one for one in env if one.partition("=")[0] not in names), *request.env)
    if request.tty and not any(one.startswith("TERM=") for one in env):
        env = (*env, "TERM=xterm")
    changes: dict[str, object] = {
        "args": type(base.args)(request.command),
        "env": type(base.env)(env),
        "terminal": request.tty,
    }
    if request.tty and request.width and request.height:
        changes["console_size"] = oci.Box(height=request.height, width=request.width)
    if request.working_dir:
        changes["cwd"] = request.working_dir
    if user is not None:
        changes["user"] = user
    return msgspec.structs.replace(base, **changes)
