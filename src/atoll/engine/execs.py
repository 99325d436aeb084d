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
from datetime import UTC, datetime
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
from atoll.runtime.capture import Budget, Capture
from atoll.runtime.shim import Shim
from atoll.runtime.streams import ProcessIO
from atoll.runtime.task import TaskClient
from atoll.sandbox.controller import ExitStatus

log = logging.getLogger(__name__)

OUTPUT_LIMIT_BYTES = 16 * 1024 * 1024
"""Kept of each stream of a captured exec; the rest is read and dropped."""
OUTPUT_BUDGET_BYTES = 64 * 1024 * 1024
"""Kept of all captured execs together, beyond what little each may keep at any time."""
END_BYTES = 1000
"""Of the end of each stream, for one killed for its time limit; a client takes 8 KiB of a call's whole trailer."""

DRAIN_TIMEOUT_S = 10.0
"""How long output may be held open by what an exec left behind, after its own end."""
KILLED_DRAIN_TIMEOUT_S = 1.0
"""The same where it was killed for its time limit: its caller has waited long enough."""

CLEANUP_TIMEOUT_S = 30.0
MAX_EXECS = 256
"""Execs at one time in one container."""
ATTENDED = "call-"
"""How the names of execs begin that live as long as their caller; a daemon that starts ends those of an earlier one."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 5.0
"""Between two tries to end an exec that nobody holds."""


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
    """How an exec ended, and its output: whole, or what was kept of its beginning.

    One that was killed for its time limit has the end of each stream, `END_BYTES` at most.
    """

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
    exit_status: int = -1
    is_killed: bool = False

    @property
    def outcome(self) -> str:
        """How it has ended, in a word."""
        if not self.ended:
            return "abandoned"
        if self.is_killed:
            return Cause.TIMED_OUT
        is_signal = 128 < self.exit_status <= 128 + signal.SIGRTMAX
        return Cause.SIGNALLED if is_signal else Cause.EXITED

    async def wait(self) -> ExitStatus:
        end = await self.tasks.wait(self.container_id, self.id)
        self.ended, self.exit_status = True, end.exit_status
        return end

    async def resize(self, width: int, height: int) -> None:
        await self.tasks.resize_pty(self.container_id, exec_id=self.id, width=width, height=height)

    async def signal(self, number: int) -> None:
        """Send a signal to the process; fine where it has ended."""
        with contextlib.suppress(errors.NotFound):
            await self.tasks.kill(self.container_id, number, exec_id=self.id)

    async def kill_tree(self) -> None:
        """SIGKILL the process and all it started that is still its own."""
        self.is_killed = self.is_killed or not self.ended
        with contextlib.suppress(errors.NotFound):
            await self.tasks.kill(self.container_id, signal.SIGKILL, exec_id=self.id, all_processes=True)


class Execs:
    """Starts execs in the containers of an engine."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._running: dict[str, int] = {}
        self._held: set[str] = set()
        self._budget = Budget(OUTPUT_BUDGET_BYTES)

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
        exec_id = ATTENDED + secrets.token_hex(12)
        self._hold(container.id, exec_id)
        try:
            with self._parts.uses.using(pod.id), self._parts.stories.passing(pod.id, "exec", container.id) as story:
                started = await self._start(pod, container, request, exec_id)
                try:
                    yield started
                finally:
                    story.outcome = started.outcome
                    started.io.close()
                    await run_to_completion(self._end(started), within=CLEANUP_TIMEOUT_S)
        finally:
            self._let_go(container.id, exec_id)

    def _hold(self, container_id: str, exec_id: str) -> None:
        self._running[container_id] = self._running.get(container_id, 0) + 1
        self._held.add(exec_id)

    def _let_go(self, container_id: str, exec_id: str) -> None:
        self._held.discard(exec_id)
        self._running[container_id] -= 1
        if not self._running[container_id]:
            del self._running[container_id]

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
            # What is under way in the shim goes on there whoever leaves: it is told of its end in every case.
            await run_to_completion(_add(tasks, container.id, exec_id, process, streams), within=CLEANUP_TIMEOUT_S)
            with faults.step("exec/start"):
                pid = await tasks.start(container.id, exec_id)
            io = await streams.open()
        except BaseException as error:
            self._discard(tasks, container.id, exec_id)
            streams.remove()
            if isinstance(error, errors.AtollError):
                raise specs.explained(container, process, error) from error
            raise
        return Exec(id=exec_id, pid=pid, io=io, container_id=container.id, tasks=tasks, streams=streams)

    async def _end(self, started: Exec) -> None:
        try:
            if not started.ended:
                with contextlib.suppress(errors.NotFound, errors.Unavailable):
                    await started.kill_tree()
                    await started.wait()
        finally:
            # Behind the answer: it lasts as long as what was left behind holds the streams, which nobody reads.
            self._discard(started.tasks, started.container_id, started.id)
            started.streams.remove()

    def _discard(self, tasks: TaskClient, container_id: str, exec_id: str) -> None:
        """Have the shim forget an exec that nobody holds any more, killed where it runs or is about to."""

        async def discard() -> None:
            try:
                await _gone(tasks, container_id, exec_id)
            finally:
                self._let_go(container_id, exec_id)

        self._hold(container_id, exec_id)
        self._parts.owner.spawn(discard(), name=f"exec/{exec_id}/delete")

    async def end_lost(self, pod: Pod, container: Container) -> int:
        """Kill what callers of an earlier daemon had run in a container, which nobody can reach any more; how many."""
        shim = await shim_of(pod)
        lost = await self._lost(pod, shim, container)
        for exec_id in lost:
            log.warning("exec %s of container %s: nobody holds it, it is ended", exec_id, container.id[:13])
            self._discard(shim.tasks, container.id, exec_id)
        return len(lost)

    async def _lost(self, pod: Pod, shim: Shim, container: Container) -> tuple[str, ...]:
        found = await self._parts.drivers.of(pod).execs(shim, container.id)
        return tuple(one for one in found if one.startswith(ATTENDED) and one not in self._held)

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

        Where the time limit runs out, which covers its start, the tree is killed and the result says `TIMED_OUT`, with
        the output so far. A background child that keeps the streams open is waited for `DRAIN_TIMEOUT_S` at most, and
        no longer than the time limit or `KILLED_DRAIN_TIMEOUT_S`.
        """
        begun = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(request.timeout_s or None):
                    started = await stack.enter_async_context(self.open(pod, container, request))
            except TimeoutError:  # a start that hangs; it is ended behind the answer
                return ExecResult(exit=_killed(), cause=Cause.TIMED_OUT, stdout=b"", stderr=b"")
            captured = Capture(started.io, OUTPUT_LIMIT_BYTES, tail_bytes=END_BYTES, budget=self._budget)
            with captured:
                cause, end = await self._captured(started, captured, request.timeout_s, begun)
                out, err = captured.stdout, captured.stderr
                is_late = cause is Cause.TIMED_OUT
                return ExecResult(
                    exit=end,
                    cause=cause,
                    stdout=out.end if is_late else out.data,
                    stderr=err.end if is_late else err.data,
                    truncated=out.is_cut or err.is_cut,
                )

    @staticmethod
    async def _captured(started: Exec, captured: Capture, timeout_s: float, begun: float) -> tuple[Cause, ExitStatus]:
        cause = Cause.EXITED
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(captured.run(), name=f"exec/{started.id}/output")
            try:
                async with asyncio.timeout(max(timeout_s - (time.monotonic() - begun), 0) if timeout_s else None):
                    end = await started.wait()
            except TimeoutError:
                cause = Cause.TIMED_OUT
                await started.kill_tree()
                end = await started.wait()
            drain_s = DRAIN_TIMEOUT_S
            if timeout_s:
                left_s = timeout_s - (time.monotonic() - begun)
                drain_s = min(drain_s, max(left_s, KILLED_DRAIN_TIMEOUT_S))
            await asyncio.wait({reading}, timeout=drain_s)
            reading.cancel()
        if cause is Cause.EXITED and end.exit_status > 128 and end.exit_status - 128 <= signal.SIGRTMAX:
            cause = Cause.SIGNALLED
        return cause, end


def _killed() -> ExitStatus:
    return ExitStatus(exit_status=128 + signal.SIGKILL, exited_at=datetime.now(UTC))


async def _add(tasks: TaskClient, container_id: str, exec_id: str, process: oci.Process, streams: ExecStreams) -> None:
    with faults.step("exec/add"):
        await tasks.exec(container_id, exec_id, spec=oci.encode(process), stdio=streams.paths)


async def _gone(tasks: TaskClient, container_id: str, exec_id: str) -> None:
    """Delete an exec, until it is provably gone; where it runs, also since a moment ago, it is killed first."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            with faults.step("exec/delete"):
                await tasks.delete(container_id, exec_id)
        except (errors.NotFound, errors.Unavailable):  # the second: its shim is gone, and with it the exec's keeper
            return
        except errors.AtollError as error:
            log.info("exec %s of container %s: is not deleted yet: %s", exec_id, container_id[:13], error)
        else:
            return
        with contextlib.suppress(errors.AtollError, TimeoutError):
            faults.reached("exec/undo")
            await tasks.kill(container_id, signal.SIGKILL, exec_id=exec_id, all_processes=True)
            async with asyncio.timeout(CLEANUP_TIMEOUT_S):
                await tasks.wait(container_id, exec_id)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


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
