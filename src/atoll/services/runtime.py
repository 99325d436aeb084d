"""atoll.v1.Runtime on the engine: streams, waits, progress, and the story of each operation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import atoll
from atoll import errors
from atoll.api import atoll_v1_pb2 as pb
from atoll.concurrency import TaskOwner
from atoll.config.changes import Changes
from atoll.container.status import State, Status
from atoll.container.store import Container
from atoll.engine.engine import Engine
from atoll.engine.execs import Exec, ExecRequest
from atoll.engine.oom import oom_kills
from atoll.engine.pod import Pod
from atoll.engine.request import names_in_log_folder
from atoll.image.config import Auth
from atoll.image.model import Image
from atoll.image.progress import Progress
from atoll.ledger.fsck import Finding, Problem
from atoll.runtime.streams import ProcessIO
from atoll.services import logs, process

PROGRESS_INTERVAL_S = 0.1
SIGKILLED = 128 + signal.SIGKILL
TOKEN_USER = "<token>"  # noqa: S105 - the user name by which docker's clients say that the password is an identity token
Reload = Callable[[], tuple[str, Changes]]
"""Reads the configuration file again: its name, and what came of it."""


class RuntimeService:
    def __init__(self, engine: Engine, reload: Reload) -> None:
        self._engine = engine
        self._reload = reload

    async def Reload(self, request: pb.ReloadRequest, context: object) -> pb.ReloadResponse:
        file, changes = self._reload()
        return pb.ReloadResponse(file=file, applied=changes.applied, waiting=changes.waiting)

    async def Info(self, request: pb.InfoRequest, context: object) -> pb.InfoResponse:
        engine = self._engine
        config = engine.parts.config
        others = sorted(name for name in config.runtimes if name != config.default_runtime)
        return pb.InfoResponse(
            version=atoll.__version__,
            root=str(engine.parts.paths.root),
            state=str(engine.parts.paths.state),
            instance=engine.parts.paths.instance,
            pid=os.getpid(),
            started_at=engine.started_at_ns,
            pods=len(engine.pods.list()),
            containers=len(engine.containers.list()),
            debts=len(engine.parts.ledger.debts()),
            runtime_handlers=[name for name in (config.default_runtime, *others) if name not in engine.parts.problems],
        )

    def _container(self, container_id: str) -> tuple[Pod, Container]:
        """A container and its pod, for what a container without one cannot do; raises `NotFound`."""
        container = self._engine.containers.get(container_id)
        return self._engine.pods.get(container.sandbox_id), container

    # --- exec and attach ---

    async def Exec(self, requests: AsyncIterator[pb.ExecRequest], context: object) -> AsyncIterator[pb.ExecResponse]:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "start":
            raise errors.InvalidArgument("exec: the first message must be `start`")
        start = first.start
        pod, container = self._container(start.container_id)
        request = ExecRequest(
            command=tuple(start.command),
            env=tuple(start.env),
            working_dir=start.working_dir,
            user=start.user,
            tty=start.tty,
            stdin=start.stdin,
            timeout_s=process.time_limit(start.timeout_s),
            width=start.size.width,
            height=start.size.height,
        )
        kills = _Kills(self._engine, container)
        await kills.begin()
        async with self._engine.execs.open(pod, container, request) as running, TaskOwner("exec") as tasks:
            yield pb.ExecResponse(started=pb.ExecStarted(pid=running.pid))
            feeding = tasks.spawn(process.fed(_feed_exec(requests, running)), name=f"exec/{running.id}/input")
            ending = tasks.spawn(_end_of(running, start.timeout_s, kills), name=f"exec/{running.id}/wait")
            async with contextlib.aclosing(process.output(running.io, ending, feeding, tasks)) as messages:
                async for message in messages:
                    yield message
            yield pb.ExecResponse(exit=ending.result())

    async def Attach(
        self, requests: AsyncIterator[pb.AttachRequest], context: object
    ) -> AsyncIterator[pb.ExecResponse]:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "start":
            raise errors.InvalidArgument("attach: the first message must be `start`")
        pod, container = self._container(first.start.container_id)
        io = await self._engine.execs.attach(pod, container, stdin=first.start.stdin)
        end_use = self._engine.parts.uses.begin(pod.id)
        try:
            async with TaskOwner("attach") as tasks:
                name = f"attach/{container.id}"
                feed = self._feed_attach(requests, io, pod, container)
                feeding = tasks.spawn(process.fed(feed), name=f"{name}/input")
                ending = tasks.spawn(_container_exit(container), name=f"{name}/wait")
                async with contextlib.aclosing(process.output(io, ending, feeding, tasks)) as messages:
                    async for message in messages:
                        yield message
                yield pb.ExecResponse(exit=ending.result())
        finally:
            io.close()
            end_use()

    async def _feed_attach(
        self, requests: AsyncIterator[pb.AttachRequest], io: ProcessIO, pod: Pod, container: Container
    ) -> None:
        stdin = process.Stdin(io.stdin) if io.stdin is not None else None
        async for request in requests:
            match request.WhichOneof("message"):
                case "stdin" if stdin is not None:
                    await stdin.write(request.stdin)
                case "close_stdin" if stdin is not None:
                    await stdin.close()
                case "resize":
                    with contextlib.suppress(errors.NotFound):  # it has ended, which its exit says
                        await self._engine.execs.resize(pod, container, request.resize.width, request.resize.height)
                case _:
                    raise errors.InvalidArgument("attach: input for a container that was attached to without stdin")

    # --- logs and waits ---

    async def Logs(self, request: pb.LogsRequest, context: object) -> AsyncIterator[pb.LogsResponse]:
        container = self._engine.containers.get(request.container_id)
        if not container.metadata.log_path:
            raise errors.FailedPrecondition(
                f"container {container.id[:13]}: keeps no log; run it in a pod with a log directory"
            )
        reading = logs.read(
            Path(container.metadata.log_path),
            below=names_in_log_folder(container),
            follow=request.follow,
            tail=request.tail,
            since_ns=request.since,
            ended=container.stopped,
            blocking=self._engine.parts.blocking,
        )
        uses = self._engine.parts.uses.using(container.sandbox_id) if request.follow else contextlib.nullcontext()
        async with contextlib.aclosing(reading) as blocks:
            with uses:
                async for block in blocks:
                    yield pb.LogsResponse(block=block)

    async def Wait(self, request: pb.WaitRequest, context: object) -> pb.WaitResponse:
        container = self._engine.containers.get(request.container_id)
        return pb.WaitResponse(exit=await _container_exit(container))

    # --- images ---

    async def Pull(self, request: pb.PullRequest, context: object) -> AsyncIterator[pb.PullResponse]:
        auth = None
        if request.username == TOKEN_USER:
            auth = Auth(identity_token=request.password)
        elif request.username:
            auth = Auth(username=request.username, password=request.password)
        layers: dict[str, Progress] = {}

        def note(progress: Progress) -> None:
            layers[progress.digest] = progress

        async with TaskOwner("pull") as tasks:
            pulling = tasks.spawn(_tried(self._engine.pull_image(request.reference, auth, note)), name="pull")
            sent: dict[str, Progress] = {}
            while not pulling.done():
                await asyncio.wait({pulling}, timeout=PROGRESS_INTERVAL_S)
                if layers != sent:
                    sent = dict(layers)
                    yield pb.PullResponse(layers=[_layer(one) for one in sent.values()])
            image = pulling.result()
            if isinstance(image, errors.AtollError):
                raise image
            yield pb.PullResponse(layers=[_layer(one) for one in layers.values()], image_id=image.id)

    async def Import(self, request: pb.ImportRequest, context: object) -> pb.ImportResponse:
        if not request.path.startswith("/"):
            raise errors.InvalidArgument(f"import {request.path!r}: must be an absolute path on the daemon's host")
        found = await self._engine.parts.images.import_archive(Path(request.path), request.reference or None)
        return pb.ImportResponse(
            images=[pb.ImportResponse.Imported(image_id=one.image.id, references=one.names) for one in found]
        )

    # --- the story, and the account ---

    async def Phases(self, request: pb.PhasesRequest, context: object) -> pb.PhasesResponse:
        try:
            pod_id = self._engine.pods.get(request.pod_id).id
        except errors.NotFound:
            pod_id = request.pod_id  # a pod that is gone still has its story
        stories = self._engine.parts.stories.of(pod_id)
        if not stories:
            raise errors.NotFound(f"pod {request.pod_id!r}: there is no such pod, and no story of one")
        return pb.PhasesResponse(
            phases=[
                pb.Phase(
                    operation=story.operation,
                    subject=story.subject,
                    name=phase.name,
                    started_at=phase.started_at_ns,
                    duration=phase.duration_ns,
                    waits_on=phase.waits_on,
                    error=phase.error,
                )
                for story in stories
                for phase in story.phases
            ]
        )

    async def Fsck(self, request: pb.FsckRequest, context: object) -> pb.FsckResponse:
        found, left = await self._engine.fsck(repair=request.repair)
        unmended = {(one.kind, one.key, one.problem): one.detail for one in left.findings}
        return pb.FsckResponse(
            findings=[_finding(one, unmended, repair=request.repair) for one in found.findings],
            checked=len(self._engine.parts.ledger.entries()),
        )

    async def Abandon(self, request: pb.AbandonRequest, context: object) -> pb.AbandonResponse:
        return pb.AbandonResponse(owed=await self._engine.abandon(request.sandbox_id))


async def _feed_exec(requests: AsyncIterator[pb.ExecRequest], running: Exec) -> None:
    stdin = process.Stdin(running.io.stdin) if running.io.stdin is not None else None
    async for request in requests:
        match request.WhichOneof("message"):
            case "stdin" if stdin is not None:
                await stdin.write(request.stdin)
            case "close_stdin" if stdin is not None:
                await stdin.close()
            case "resize":
                with contextlib.suppress(errors.NotFound):  # it has ended, which its exit says
                    await running.resize(request.resize.width, request.resize.height)
            case "signal":
                await running.signal(request.signal)
            case _:
                raise errors.InvalidArgument("exec: input for a process that was started without stdin")


class _Kills:
    """Whether the kernel kills a process of a container for want of memory meanwhile."""

    def __init__(self, engine: Engine, container: Container) -> None:
        self._blocking = engine.parts.blocking
        self._bundle = engine.parts.paths.bundles / container.id
        self._before = 0

    async def begin(self) -> None:
        self._before = await self._blocking.run(oom_kills, self._bundle)

    async def happened(self) -> bool:
        return await self._blocking.run(oom_kills, self._bundle) > self._before


async def _end_of(running: Exec, timeout_s: float, kills: _Kills) -> pb.Exit:
    """How an exec ended; past its time its tree is killed."""
    timed_out = False
    try:
        async with asyncio.timeout(timeout_s or None):
            end = await running.wait()
    except TimeoutError:
        timed_out = True
        await running.kill_tree()
        end = await running.wait()
    reason = "OOMKilled" if end.exit_status == SIGKILLED and not timed_out and await kills.happened() else ""
    cause = pb.Exit.TIMED_OUT if timed_out else _cause(end.exit_status, reason)
    return pb.Exit(code=end.exit_status, cause=cause, exited_at=int(end.exited_at.timestamp() * 1e9))


def _cause(code: int, reason: str) -> pb.Exit.Cause:
    if reason == "OOMKilled":
        return pb.Exit.OOM_KILLED
    if reason == "Unknown":
        return pb.Exit.UNKNOWN
    if code == 128 + signal.SIGSYS:
        return pb.Exit.SECCOMP
    return pb.Exit.SIGNALLED if 128 < code <= 128 + signal.SIGRTMAX else pb.Exit.EXITED


async def _container_exit(container: Container) -> pb.Exit:
    status: Status = await container.stopped.wait()
    reason = "Unknown" if status.state is State.UNKNOWN else status.reason
    return pb.Exit(
        code=status.exit_code,
        cause=_cause(status.exit_code, reason),
        exited_at=status.finished_at,
        reason=status.reason,
        message=status.message,
    )


async def _tried(pulling: Awaitable[Image]) -> Image | errors.AtollError:
    """What came of a pull; an error is for its caller, and not for the log."""
    try:
        return await pulling
    except errors.AtollError as error:
        return error


def _layer(progress: Progress) -> pb.LayerProgress:
    return pb.LayerProgress(
        digest=progress.digest,
        current_bytes=progress.done,
        total_bytes=max(progress.total, 0),
        phase=str(progress.phase),
    )


def _finding(finding: Finding, unmended: Mapping[tuple[str, str, Problem], str], *, repair: bool) -> pb.Finding:
    key = (finding.kind, finding.key, finding.problem)
    return pb.Finding(
        kind=finding.kind,
        key=finding.key,
        owner=finding.owner,
        problem=f"{finding.problem}: {finding.detail}" if finding.detail else str(finding.problem),
        remedy=finding.remedy,
        repaired=repair and key not in unmended,
        error=unmended.get(key, "") if repair else "",
    )
