"""Background processes of containers: execs that outlive their callers, and the daemon.

    <root>/containers/<id>/processes/<name>/process.json   what it is and how it ended; replaced atomically
                                           /stdout, stderr  what it wrote, by its shim (see `spool`)
                                           /stdin           the pipe of one that takes input, which its shim keeps open

The record is written before the process is started and after its end is known, so that a daemon that was killed finds
every one again: its shim, which the process belongs to, tells how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import SingleFlight, TaskOwner, run_to_completion
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine import pipe_input, specs
from atoll.engine.containers import Containers
from atoll.engine.events import Event, EventType
from atoll.engine.execs import ExecRequest, exec_process
from atoll.engine.lines import tasks_of
from atoll.engine.oom import oom_kills
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.engine.pods import Pods
from atoll.engine.spool import Part, Spool
from atoll.linux.files import replacing
from atoll.oci import spec as oci
from atoll.runtime.task import StdioPaths
from atoll.shim import records
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

FOLDER = "processes"
RECORD = "process.json"
PREFIX = "bg-"
"""Of their IDs as execs: none that ends with its caller."""
MAX_PROCESSES = 256
"""Of one container, ended ones too."""
CLEANUP_TIMEOUT_S = 30.0
ASK_AGAIN_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended: `code` is 255 where nobody can know, and `cause` one of Exit.Cause by name."""

    code: int
    cause: str
    at_ns: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The durable part of a process."""

    name: str
    command: tuple[str, ...]
    started_at_ns: int
    pid: int = 0
    deadline_ns: int = 0
    oom_kills: int = 0
    stdin: bool = False
    tty: bool = False
    ended: Ended | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Process:
    """A process as this daemon knows it; `over` is set once its end is recorded."""

    container_id: str
    record: Record
    spool: Spool
    over: asyncio.Event = field(default_factory=asyncio.Event)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def exec_id(self) -> str:
        return PREFIX + self.record.name


class Processes:
    """The background processes of every container of an engine."""

    def __init__(self, parts: Parts, pods: Pods, containers: Containers) -> None:
        self._parts = parts
        self._pods = pods
        self._containers = containers
        self._known: dict[str, dict[str, Process]] = {}
        self._spawns: SingleFlight[tuple[str, str], Process] = SingleFlight(parts.owner)
        parts.events.tap(self._told)

    def _told(self, event: Event) -> None:
        if event.type is EventType.DELETED:
            for process in self._known.pop(event.container_id, {}).values():
                process.over.set()

    def _folder(self, container_id: str) -> Path:
        return self._parts.paths.containers / container_id / FOLDER

    # --- what an earlier daemon left ---

    async def recover(self) -> None:
        """Take up what an earlier daemon has started, and wait for it again."""
        for container in self._containers.list():
            found = await self._parts.blocking.run(_read_all, self._folder(container.id))
            for record in found:
                process = self._enter(container.id, record)
                if record.ended is None:
                    self._watch(container, process)
                else:
                    process.over.set()

    def _enter(self, container_id: str, record: Record) -> Process:
        process = Process(
            container_id=container_id, record=record, spool=Spool(self._folder(container_id) / record.name)
        )
        self._known.setdefault(container_id, {})[record.name] = process
        return process

    # --- start ---

    async def spawn(self, pod: Pod, container: Container, request: ExecRequest, name: str = "") -> Process:
        """Start one; it goes on where the caller leaves. Raises `AlreadyExists` for a name in use, and as an exec."""
        if not request.command or any("\0" in text for text in (*request.command, *request.env, request.working_dir)):
            raise errors.InvalidArgument("process: the command is empty, or a word of it has a zero byte")
        name = name or secrets.token_hex(6)
        if not _NAME.fullmatch(name):
            raise errors.InvalidArgument(f"process {name[:80]!r}: a name is 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-'")
        if container.status.get().state is not State.RUNNING:
            raise errors.FailedPrecondition(f"container {container.id[:13]}: is not running, nothing can be run in it")
        known = self._known.get(container.id, {})
        if name in known:
            raise errors.AlreadyExists(f"process {name}: is there already; forget it first, or take another name")
        if len(known) >= MAX_PROCESSES:
            raise errors.ResourceExhausted(
                f"container {container.id[:13]}: has {MAX_PROCESSES} processes; forget those that have ended"
            )
        return await self._spawns.run(
            (container.id, name), lambda: self._spawn(pod, container, request, name), name=f"process/{name}/spawn"
        )

    async def _spawn(self, pod: Pod, container: Container, request: ExecRequest, name: str) -> Process:
        user = None
        if request.user:
            user = await self._parts.blocking.run(specs.exec_user, self._parts, container, request.user)
        spec = exec_process(oci.decode(container.record.spec), request, user)
        now = time.time_ns()
        record = Record(
            name=name,
            command=request.command,
            started_at_ns=now,
            deadline_ns=now + int(request.timeout_s * 1e9) if request.timeout_s else 0,
            oom_kills=await self._parts.blocking.run(oom_kills, self._bundle(container.id)),
            stdin=request.stdin,
            tty=request.tty,
        )
        process = self._enter(container.id, record)
        try:
            await self._parts.blocking.run(_make, process.spool.folder, record)
            tasks = await tasks_of(pod)
            out, err = (f"file://{process.spool.path(one)}" for one in ("stdout", "stderr"))
            stdio = StdioPaths(
                stdin=str(process.spool.folder / pipe_input.STDIN) if request.stdin else "",
                stdout=out,
                stderr="" if request.tty else err,
                terminal=request.tty,
            )
            await tasks.exec(container.id, process.exec_id, spec=oci.encode(spec), stdio=stdio)
            pid = await tasks.start(container.id, process.exec_id)
            process.record = msgspec.structs.replace(record, pid=pid)
            await self._parts.blocking.run(_write, process.spool.folder, process.record)
        except BaseException as error:
            await run_to_completion(self._drop(pod, process), within=CLEANUP_TIMEOUT_S)
            if isinstance(error, errors.AtollError):
                raise specs.explained(container, spec, error) from error
            raise
        self._watch(container, process)
        return process

    async def _drop(self, pod: Pod, process: Process) -> None:
        with contextlib.suppress(errors.AtollError):
            tasks = await tasks_of(pod)
            with contextlib.suppress(errors.NotFound):
                await tasks.kill(process.container_id, signal.SIGKILL, exec_id=process.exec_id, all_processes=True)
            await tasks.delete(process.container_id, process.exec_id)
        self._known.get(process.container_id, {}).pop(process.record.name, None)
        process.over.set()
        await self._parts.blocking.run(_delete, process.spool.folder)

    def _bundle(self, container_id: str) -> Path:
        return self._parts.paths.bundles / container_id

    # --- the end ---

    def _watch(self, container: Container, process: Process) -> None:
        self._parts.owner.spawn(self._settle(container, process), name=f"process/{process.record.name}/wait")

    async def _settle(self, container: Container, process: Process) -> None:
        with self._parts.uses.using(container.sandbox_id):
            async with TaskOwner("process") as tasks:
                tasks.spawn(process.spool.keep_short(self._parts.blocking), name="process/spool")
                tasks.spawn(self._end_in_time(container, process), name="process/deadline")
                ended = await self._end(container, process)
        process.record = msgspec.structs.replace(process.record, ended=ended)
        try:
            await self._parts.blocking.run(_write, process.spool.folder, process.record)
            await self._parts.blocking.run(process.spool.trim)
        except OSError as error:
            log.warning("process %s: its end is not on disk: %s", process.record.name, error)
        process.over.set()
        pod = self._pods.find(container.sandbox_id)
        if pod is not None:
            with contextlib.suppress(errors.AtollError):
                await (await tasks_of(pod)).delete(container.id, process.exec_id)

    async def _end_in_time(self, container: Container, process: Process) -> None:
        deadline_ns = process.record.deadline_ns
        if deadline_ns:
            await asyncio.sleep(max(deadline_ns - time.time_ns(), 0) / 1e9)
            with contextlib.suppress(errors.AtollError):
                await self._kill(container, process, signal.SIGKILL, tree=True)

    async def _end(self, container: Container, process: Process) -> Ended:
        """As its shim tells, or what the shim has left on disk does, or unknown where neither is there."""
        while True:
            pod = self._pods.find(container.sandbox_id)
            try:
                if pod is None:
                    raise errors.NotFound(f"pod {container.sandbox_id[:13]}: is gone")
                end = await (await tasks_of(pod)).wait(container.id, process.exec_id)
                at_ns = int(end.exited_at.timestamp() * 1e9)
                return await self._ended(process, end.exit_status, at_ns)
            except (errors.NotFound, errors.FailedPrecondition):
                return await self._left(process)
            except errors.Unavailable:
                if container.stopped.is_set or process.over.is_set():
                    return await self._left(process)
                await asyncio.sleep(ASK_AGAIN_S)

    async def _left(self, process: Process) -> Ended:
        path = records.exit_path(self._bundle(process.container_id), process.exec_id)
        try:
            record = await self._parts.blocking.run(records.read, path, records.ExitRecord)
        except errors.DataLoss:
            record = None
        if record is not None:
            return await self._ended(process, record.exit_status, record.exited_at_ns)
        return Ended(code=255, cause="UNKNOWN", at_ns=time.time_ns())

    async def _ended(self, process: Process, code: int, at_ns: int) -> Ended:
        cause = "SIGNALLED" if 128 < code <= 128 + signal.SIGRTMAX else "EXITED"
        deadline_ns = process.record.deadline_ns
        if code == 128 + signal.SIGSYS:
            cause = "SECCOMP"
        elif code == 128 + signal.SIGKILL:
            kills = await self._parts.blocking.run(oom_kills, self._bundle(process.container_id))
            if kills > process.record.oom_kills:
                cause = "OOM_KILLED"
            elif deadline_ns and at_ns >= deadline_ns:
                cause = "TIMED_OUT"
        return Ended(code=code, cause=cause, at_ns=at_ns)

    # --- its input ---

    async def write(self, process: Process, data: bytes) -> None:
        """Give it input; returns once its pipe has taken all of it, one caller at a time.

        Raises `FailedPrecondition` where it takes none, or no more.
        """
        self._require_input(process)
        async with process.writing:
            await pipe_input.write(process.spool.folder, data, process.over)

    async def close_stdin(self, container: Container, process: Process) -> None:
        """End its input behind what was written. Idempotent, also for one that has ended."""
        if process.over.is_set() or not process.record.stdin:
            return
        async with process.writing:
            with contextlib.suppress(errors.NotFound, errors.FailedPrecondition):
                await (await tasks_of(self._pods.get(container.sandbox_id))).close_io(container.id, process.exec_id)

    async def resize(self, container: Container, process: Process, width: int, height: int) -> None:
        """Set the size of its terminal, in cells; fine where it has ended."""
        if not process.record.tty:
            raise errors.FailedPrecondition(f"process {process.record.name}: has no terminal")
        if not process.over.is_set():
            tasks = await tasks_of(self._pods.get(container.sandbox_id))
            with contextlib.suppress(errors.NotFound):
                await tasks.resize_pty(container.id, exec_id=process.exec_id, width=width, height=height)

    def _require_input(self, process: Process) -> None:
        if not process.record.stdin:
            raise errors.FailedPrecondition(f"process {process.record.name}: was started without stdin")
        if process.over.is_set():
            raise errors.FailedPrecondition(f"process {process.record.name}: has ended, it takes no input")

    # --- what is asked ---

    def list(self, container_id: str = "") -> tuple[Process, ...]:
        """The oldest first."""
        groups: Iterable[dict[str, Process]] = (
            (self._known.get(container_id, {}),) if container_id else self._known.values()
        )
        found = [process for group in groups for process in group.values()]
        return tuple(sorted(found, key=lambda one: one.record.started_at_ns))

    def get(self, container_id: str, name: str) -> Process:
        """By its name; raises `NotFound`."""
        process = self._known.get(container_id, {}).get(name)
        if process is None:
            raise errors.NotFound(f"process {name[:80]!r}: container {container_id[:13]} has none of this name")
        return process

    async def kill(self, container: Container, process: Process, number: int, *, tree: bool) -> None:
        """Send a signal; fine where the process has ended."""
        if not 0 < number <= signal.SIGRTMAX:
            raise errors.InvalidArgument(f"signal {number}: is none")
        if not process.over.is_set():
            await self._kill(container, process, number, tree=tree)

    async def _kill(self, container: Container, process: Process, number: int, *, tree: bool) -> None:
        pod = self._pods.get(container.sandbox_id)
        with contextlib.suppress(errors.NotFound):
            await (await tasks_of(pod)).kill(container.id, number, exec_id=process.exec_id, all_processes=tree)

    async def follow(self, process: Process, starts: tuple[int, int], *, wait: bool) -> AsyncGenerator[Part]:
        """As `Spool.follow`."""
        parts = process.spool.follow(starts, process.over, self._parts.blocking, wait=wait)
        async with contextlib.aclosing(parts):
            async for part in parts:
                yield part

    async def forget(self, container: Container, process: Process) -> None:
        """Kill it where it runs, and take its record and output away. Idempotent."""
        if not process.over.is_set():
            await self._kill(container, process, signal.SIGKILL, tree=True)
            async with asyncio.timeout(CLEANUP_TIMEOUT_S):
                await process.over.wait()
        self._known.get(container.id, {}).pop(process.record.name, None)
        await self._parts.blocking.run(_delete, process.spool.folder)


def _make(folder: Path, record: Record) -> None:
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    _delete(folder)
    folder.mkdir(mode=0o700)
    if record.stdin:
        pipe_input.make(folder)
    _write(folder, record)


def _write(folder: Path, record: Record) -> None:
    with replacing(folder / RECORD) as file:
        file.write(msgspec.json.encode(record))


def _read_all(folder: Path) -> tuple[Record, ...]:
    found: list[Record] = []
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return ()
    for name in names:
        try:
            record = msgspec.json.decode((folder / name / RECORD).read_bytes(), type=Record)
        except FileNotFoundError:
            shutil.rmtree(folder / name, ignore_errors=True)  # it was being made, or forgotten
        except (OSError, *UNREADABLE) as error:
            log.error("%s: a process whose record cannot be read is left alone: %s", folder / name, error)
        else:
            if record.name == name:
                found.append(record)
    return tuple(found)


def _delete(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / RECORD).unlink()  # first, so that a half is none
        shutil.rmtree(folder)
