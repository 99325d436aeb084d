"""The files of containers: which root an agent gets, and how long it may have it.

Of a running container that is the root of its init, held by a descriptor that was opened while the init was known to
be in the container's cgroup. Of one that does not run it is its snapshot, mounted where nobody else sees it and once
for all agents; a start of the container, its removal and its end each end the agents that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import shutil
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from atoll import errors
from atoll.concurrency import run_to_completion
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine import specs
from atoll.engine.events import Event, EventType
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.files.agent import Mounted, Start
from atoll.files.agents import Agents, ended, kill
from atoll.linux.userns import IDRange
from atoll.oci import spec as oci
from atoll.shim import records

MAX_AGENTS = 64
"""Of one container at a time."""
END_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _Mounted:
    """The root of a container that does not run, for so many agents."""

    lock: asyncio.Lock
    fd: int = -1
    users: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """An agent that listens at `socket`; `closed` says why it was ended, where it was."""

    socket: Path
    pidfd: int
    closed: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing of it is left, its root neither."""

    def end(self, why: str = "") -> None:
        """Have the agent killed, unless it has ended."""
        if not self.over.is_set():
            self.closed = self.closed or why
            kill(self.pidfd)

    async def wait(self) -> None:
        """Until the agent has ended; raises `Aborted` where it was ended for the container's sake."""
        await self.over.wait()
        if self.closed:
            raise errors.Aborted(self.closed)


class Files:
    """Starts agents for the containers of an engine."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._agents = Agents(parts.blocking)
        self._open: dict[str, set[Session]] = {}
        self._mounted: dict[str, _Mounted] = {}
        self._folder = parts.paths.state / "files"
        parts.events.tap(self._told)
        parts.at_rest.on_end(self.end)

    async def sweep(self) -> None:
        """Take away what a daemon that was killed left of its sockets."""
        await self._parts.blocking.run(_sweep, self._folder)

    def _told(self, event: Event) -> None:
        if event.type in (EventType.STOPPED, EventType.DELETED):
            self._kill(event.container_id, "it has ended")

    def _kill(self, container_id: str, why: str) -> None:
        for session in self._open.get(container_id, ()):
            session.end(f"container {container_id[:13]}: its files were let go, for {why}")

    async def end(self, container_id: str, why: str) -> None:
        """End the agents of a container and wait until they have let go of its root."""
        self._kill(container_id, why)
        for session in tuple(self._open.get(container_id, ())):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.released.wait(), END_TIMEOUT_S)

    @asynccontextmanager
    async def open(self, pod: Pod | None, container: Container, owner: str = "") -> AsyncGenerator[Session]:
        """An agent for one connection; leaving the context ends it.

        Raises `FailedPrecondition` for a container whose files are not on this host, or that is neither running nor at
        rest; `ResourceExhausted` past `MAX_AGENTS`.
        """
        if len(self._open.get(container.id, ())) >= MAX_AGENTS:
            raise errors.ResourceExhausted(f"container {container.id[:13]}: {MAX_AGENTS} work on its files already")
        session: Session | None = None
        try:
            async with AsyncExitStack() as held:
                whose = await self._owner(container, owner)
                path = self._folder / secrets.token_hex(8)
                with await self._parts.blocking.run(_listen, path) as listener:
                    held.callback(path.unlink, missing_ok=True)
                    start, fds = await self._root(pod, container, whose, held)
                    session = Session(socket=path, pidfd=await self._agents.start(start, [listener.fileno(), *fds]))
                await held.enter_async_context(self._kept(container.id, session))
                yield session
        finally:
            if session is not None:
                session.released.set()

    @asynccontextmanager
    async def _kept(self, container_id: str, session: Session) -> AsyncGenerator[None]:
        """The session among those of its container; at the end its agent is killed."""
        self._open.setdefault(container_id, set()).add(session)
        waiting = self._parts.owner.spawn(_watch(session), name=f"files/{container_id}")
        try:
            yield
        finally:
            session.end()
            await asyncio.wait({waiting}, timeout=END_TIMEOUT_S)
            self._open[container_id].discard(session)
            if not self._open[container_id]:
                del self._open[container_id]

    async def _root(
        self, pod: Pod | None, container: Container, whose: tuple[int, int], held: AsyncExitStack
    ) -> tuple[Start, list[int]]:
        """What an agent is to be, and its descriptors, which `held` closes."""
        status = container.status.get()
        number = self._agents.next_number()
        if status.state is State.RUNNING:
            fds = await self._parts.blocking.run(_root_of, self._parts.paths.bundles / container.id, container.id)
            for fd in fds:
                held.callback(os.close, fd)
            return Start(number=number, owner=whose), fds
        if status.starting or status.removing or status.state is State.UNKNOWN:
            raise errors.FailedPrecondition(
                f"container {container.id[:13]}: is neither running nor at rest now; look at its status, and try again"
            )
        users = pod.config.users if pod is not None else None
        uids, gids = (_ranges(users.uids), _ranges(users.gids)) if users is not None else ((), ())
        root = await held.enter_async_context(self._mount(container))
        return Start(number=number, owner=whose, uids=uids, gids=gids), [root]

    @asynccontextmanager
    async def _mount(self, container: Container) -> AsyncGenerator[int]:
        """The root of a container that does not run, mounted once for all who want it at the same time."""
        mounted = self._mounted.setdefault(container.id, _Mounted(asyncio.Lock()))
        mounted.users += 1
        try:
            async with mounted.lock:
                if mounted.fd < 0:
                    mounted.fd = await self._mount_now(container)
            yield mounted.fd
        finally:
            mounted.users -= 1
            if not mounted.users:
                del self._mounted[container.id]
                if mounted.fd >= 0:
                    # The last reference: an overlay is unmounted by it.
                    await run_to_completion(self._parts.blocking.run(os.close, mounted.fd), within=END_TIMEOUT_S)

    async def _mount_now(self, container: Container) -> int:
        mounts = await self._parts.snapshotter.mounts(container.record.snapshot_key)
        at = str(self._folder / "root")
        mounted = tuple(
            Mounted(type=one.type, source=one.source, at=os.path.join(at, one.target), options=one.options)
            for one in mounts
        )
        await self._parts.blocking.run(lambda: Path(at).mkdir(parents=True, exist_ok=True))
        return await self._agents.start(Start(number=self._agents.next_number(), mounted=mounted), [])

    async def _owner(self, container: Container, owner: str) -> tuple[int, int]:
        if owner:
            user = await self._parts.blocking.run(specs.exec_user, self._parts, container, owner)
            return user.uid, user.gid
        process = oci.decode(container.record.spec).process
        return (process.user.uid, process.user.gid) if process is not None else (0, 0)

    async def aclose(self) -> None:
        """End every agent. Idempotent."""
        await self._agents.aclose()


async def _watch(session: Session) -> None:
    try:
        await ended(session.pidfd)
    finally:
        session.over.set()
        os.close(session.pidfd)


def _ranges(ranges: tuple[IDRange, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple((one.container_id, one.host_id, one.length) for one in ranges)


def _sweep(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def _root_of(bundle: Path, container_id: str) -> list[int]:
    """Descriptors of the root of a container's init, and of its user namespace where that is not ours.

    Raises `FailedPrecondition` where the init is not a process of this host in the container's cgroup.
    """
    task = records.read(bundle / records.TASK, records.TaskRecord)
    gone = errors.FailedPrecondition(
        f"container {container_id[:13]}: its init is no process of this host now; its files cannot be reached"
    )
    if task is None or not task.pid:
        raise gone
    with contextlib.ExitStack() as opened:
        try:
            pidfd = os.pidfd_open(task.pid)
            opened.callback(os.close, pidfd)
            root = os.open(f"/proc/{task.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, root)
            users = os.open(f"/proc/{task.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, users)
            # The pid is that of the process held, and that one is the container's: what was opened is its own.
            if not _is_inside(task.pid, task.cgroups) or _has_ended(pidfd):
                raise gone
        except OSError as error:
            raise gone from error
        is_ours = os.path.samestat(os.fstat(users), os.stat("/proc/self/ns/user"))
        return [os.dup(fd) for fd in ((root,) if is_ours else (root, users))]


def _is_inside(pid: int, cgroups: tuple[str, ...]) -> bool:
    """Whether a process is in one of these cgroups, or in one that it made below (cgroups(7), /proc/PID/cgroup)."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        path = Path(line.split(":", 2)[2])
        above = [str(one) for one in (path, *path.parents) if one != Path("/")]
        if any(folder.endswith(one) for folder in cgroups for one in above):
            return True
    return False


def _has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])
