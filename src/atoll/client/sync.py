"""The SDK for programs without an event loop: the same objects and methods, each of which waits.

    with atoll.connect_sync() as client, client.run_pod() as pod:
        container = pod.run("atoll/busybox", ["sleep", "60"])
        print(container.exec(["uname", "-a"]).text)

There is nothing here but the way to the loop: every method is that of the class of the same name without `Sync`, with
its arguments, its errors and its guarantees; where its text says `async with` or `async for`, leave out `async`. The
loop has a thread of its own (`atoll.client.portal`). Any thread may use these objects, many at a time. An interrupt
(Ctrl-C) ends the call as a cancellation does. A callback, as that of `pull`, runs on the loop's thread; keep it short.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from atoll import errors
from atoll.client.background import BackgroundProcess
from atoll.client.branches import Cost, Snapshot
from atoll.client.client import Client, connect
from atoll.client.container import Container
from atoll.client.files import Files
from atoll.client.forwarding import Forward, Listener
from atoll.client.leases import Lease
from atoll.client.model import ExecResult, Exit
from atoll.client.pod import Pod
from atoll.client.pools import IDLE_S, Pool, PooledPod, Start
from atoll.client.portal import Portal
from atoll.client.process import STREAM_LIMIT_BYTES, AttachedProcess, ExecProcess, Output
from atoll.client.registries import Registries

X = TypeVar("X")
Y = TypeVar("Y")
F = TypeVar("F")
T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R", ExecProcess, AttachedProcess)


class Face(Generic[X]):
    """An object of the SDK, and the loop that it lives on."""

    def __init__(self, portal: Portal, inner: X) -> None:
        self.portal = portal
        self.inner = inner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.inner!r}>"

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.portal.run(work)


def _waits(method: Callable[Concatenate[X, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Face[X], P], T]:
    """The method as one that waits for its answer."""

    @functools.wraps(method)
    def call(self: Face[X], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.portal.run(method(self.inner, *args, **kwargs))

    return call


def _makes(
    method: Callable[Concatenate[X, P], Coroutine[Any, Any, Y]], face: Callable[[Portal, Y], F]
) -> Callable[Concatenate[Face[X], P], F]:
    """The same for one whose answer is an object with methods."""

    @functools.wraps(method)
    def call(self: Face[X], *args: P.args, **kwargs: P.kwargs) -> F:
        return face(self.portal, self.portal.run(method(self.inner, *args, **kwargs)))

    return call


def _opens(
    method: Callable[Concatenate[X, P], Y], face: Callable[[Portal, Y], F]
) -> Callable[Concatenate[Face[X], P], F]:
    """The same for a plain method, which is called on the loop because what it makes begins to work there."""

    @functools.wraps(method)
    def call(self: Face[X], *args: P.args, **kwargs: P.kwargs) -> F:
        async def on_the_loop() -> Y:
            return method(self.inner, *args, **kwargs)

        return face(self.portal, self.portal.run(on_the_loop()))

    return call


def _yields(
    method: Callable[Concatenate[X, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Face[X], P], Generator[T, None, None]]:
    """An asynchronous generator as a plain one; closing the one closes the other."""

    @functools.wraps(method)
    def call(self: Face[X], *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        items = method(self.inner, *args, **kwargs)
        try:
            while found := self.portal.run(_next(items)):
                yield found[0]
        finally:
            with contextlib.suppress(errors.Unavailable):  # a client that is closed has closed it
                self.portal.run(items.aclose())

    return call


async def _next(items: AsyncGenerator[T, None]) -> tuple[T] | None:
    try:
        return (await anext(items),)
    except StopAsyncIteration:
        return None


class SyncOutput(Face[Output]):
    """One stream of a process: an iterator of non-empty chunks, in order, that ends with the stream."""

    read = _waits(Output.read)
    read_all = _waits(Output.read_all)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = self.read()
        if not data:
            raise StopIteration
        return data


class SyncProcess(Face[R]):
    """A running process with live streams; a context manager that lets go of them at its end."""

    @property
    def stdout(self) -> SyncOutput:
        return SyncOutput(self.portal, self.inner.stdout)

    @property
    def stderr(self) -> SyncOutput:
        """Empty for a terminal, which has one stream."""
        return SyncOutput(self.portal, self.inner.stderr)

    @property
    def pid(self) -> int:
        """On the host; 0 until `started`, and for an attach."""
        return self.inner.pid

    def started(self) -> int:
        """Wait until the process runs; its pid. Raises what the daemon says where it cannot be run."""
        return self._run(self.inner.started())

    def write(self, data: bytes) -> None:
        """Send input; returns when it is on its way. After the process's end it goes nowhere."""
        self._run(self.inner.write(data))

    def close_stdin(self) -> None:
        """End the input; idempotent."""
        self._run(self.inner.close_stdin())

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal its size in characters."""
        self._run(self.inner.resize(width, height))

    def wait(self) -> Exit:
        """Wait for the end and let output come in meanwhile; the same answer each time."""
        return self._run(self.inner.wait())

    def read_some(self) -> tuple[bytes, bytes]:
        """What both streams have, waiting for some; two empty values at the end."""
        return self._run(self.inner.read_some())

    def close(self) -> None:
        """Let go of the streams: an exec ends then, what was attached to does not. Idempotent."""
        self._run(self.inner.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncExecProcess(SyncProcess[ExecProcess]):
    """An exec; it ends when this lets go of it."""

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        self._run(self.inner.signal(number))

    def collect(self, limit_bytes: int = STREAM_LIMIT_BYTES) -> ExecResult:
        """All output and the end; `ResourceExhausted`, and the exec is ended, for more than `limit_bytes` a stream."""
        return self._run(self.inner.collect(limit_bytes))


class SyncAttachedProcess(SyncProcess[AttachedProcess]):
    """The live stdio of a container's main process; letting go changes nothing for it."""


class SyncFiles(Face[Files]):
    """What may be done with the files of one container."""

    read = _waits(Files.read)
    read_text = _waits(Files.read_text)
    write = _waits(Files.write)
    stat = _waits(Files.stat)
    exists = _waits(Files.exists)
    list = _waits(Files.list)
    mkdir = _waits(Files.mkdir)
    remove = _waits(Files.remove)
    rename = _waits(Files.rename)
    upload = _waits(Files.upload)
    download = _waits(Files.download)
    watch = _yields(Files.watch)


class SyncBackgroundProcess(Face[BackgroundProcess]):
    """A background process, by its container and its ID; holds no state of its own."""

    @property
    def id(self) -> str:
        return self.inner.id

    @property
    def container_id(self) -> str:
        return self.inner.container_id

    status = _waits(BackgroundProcess.status)
    follow = _yields(BackgroundProcess.follow)
    output = _waits(BackgroundProcess.output)
    wait = _waits(BackgroundProcess.wait)
    write = _waits(BackgroundProcess.write)
    close_stdin = _waits(BackgroundProcess.close_stdin)
    resize = _waits(BackgroundProcess.resize)
    signal = _waits(BackgroundProcess.signal)
    kill = _waits(BackgroundProcess.kill)
    forget = _waits(BackgroundProcess.forget)


def _container(portal: Portal, made: Container) -> SyncContainer:
    return SyncContainer(portal, made)


def _each_container(portal: Portal, made: tuple[Container, ...]) -> tuple[SyncContainer, ...]:
    return tuple(SyncContainer(portal, one) for one in made)


class SyncSnapshot(Face[Snapshot]):
    """A container's files as they were."""

    @property
    def id(self) -> str:
        return self.inner.id

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def cost(self) -> Cost | None:
        return self.inner.cost

    status = _waits(Snapshot.status)
    fork = _makes(Snapshot.fork, _each_container)
    remove = _waits(Snapshot.remove)


class SyncContainer(Face[Container]):
    """A container in a pod, by its ID; holds no state of its own, each question asks the daemon."""

    @property
    def id(self) -> str:
        return self.inner.id

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def pod_id(self) -> str:
        return self.inner.pod_id

    @property
    def files(self) -> SyncFiles:
        """Read, write, move and watch its files, also where it does not run."""
        return SyncFiles(self.portal, self.inner.files)

    status = _waits(Container.status)
    start = _waits(Container.start)
    exec = _waits(Container.exec)
    exec_stream = _opens(Container.exec_stream, SyncExecProcess)
    spawn = _makes(Container.spawn, SyncBackgroundProcess)
    processes = _waits(Container.processes)
    process = _opens(Container.process, SyncBackgroundProcess)
    attach = _opens(Container.attach, SyncAttachedProcess)
    snapshot = _makes(Container.snapshot, SyncSnapshot)
    rollback = _makes(Container.rollback, _container)
    diff = _waits(Container.diff)
    diff_tar = _yields(Container.diff_tar)
    commit = _waits(Container.commit)
    wait = _waits(Container.wait)
    logs = _yields(Container.logs)
    pause = _waits(Container.pause)
    resume = _waits(Container.resume)
    kill = _waits(Container.kill)
    top = _waits(Container.top)
    update = _waits(Container.update)
    stop = _waits(Container.stop)
    restart = _waits(Container.restart)
    remove = _waits(Container.remove)


class SyncLease(Face[Lease]):
    """How long a pod may live."""

    status = _waits(Lease.status)
    renew = _waits(Lease.renew)
    end = _waits(Lease.end)


class SyncForward(Face[Forward]):
    """One connection to a port of a pod, as a socket; leaving it closes both."""

    def open_socket(self) -> socket.socket:
        """The connection as a socket, which is the caller's to close; raises `Unavailable` where nothing answers."""
        return self._run(self.inner.open_socket())

    def close(self) -> None:
        """Let go of the connection; idempotent."""
        self._run(self.inner.aclose())

    def __enter__(self) -> socket.socket:
        self._socket = self.open_socket()
        return self._socket

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self.close()


class SyncListener(Face[Listener]):
    """A port of this host whose connections lead to a port of a pod; it listens from `__enter__` to `__exit__`."""

    open = _waits(Listener.open)

    @property
    def host(self) -> str:
        return self.inner.host

    @property
    def port(self) -> int:
        """The port of this host; 0 while it does not listen."""
        return self.inner.port

    def close(self) -> None:
        """Listen no more and end what is connected; idempotent."""
        self._run(self.inner.aclose())

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncPod(Face[Pod]):
    """A pod, by its ID; a context manager that removes the pod at its end."""

    @property
    def id(self) -> str:
        return self.inner.id

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def lease(self) -> SyncLease:
        """How long it may live: renew it, or look at what is left."""
        return SyncLease(self.portal, self.inner.lease)

    status = _waits(Pod.status)
    run = _makes(Pod.run, SyncContainer)
    create = _makes(Pod.create, SyncContainer)
    containers = _waits(Pod.containers)
    details = _waits(Pod.details)
    forward = _opens(Pod.forward, SyncForward)
    listen = _opens(Pod.listen, SyncListener)
    phases = _waits(Pod.phases)
    stop = _waits(Pod.stop)
    remove = _waits(Pod.remove)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self.inner.__aexit__(kind, error, trace))


class SyncRegistries(Face[Registries]):
    """What is asked about registries and archives."""

    details = _waits(Registries.details)
    tag = _waits(Registries.tag)
    remove = _waits(Registries.remove)
    push = _waits(Registries.push)
    save = _yields(Registries.save)
    check = _waits(Registries.check)


class SyncPooledPod(SyncPod):
    """A pod of a pool or of `run`, with the container that runs in it and how it was started."""

    def __init__(self, portal: Portal, inner: PooledPod) -> None:
        super().__init__(portal, inner)
        self.container = SyncContainer(portal, inner.container)
        self.start: Start = inner.start


class SyncPool(Face[Pool]):
    """A pool by its name; the daemon keeps its members."""

    @property
    def name(self) -> str:
        return self.inner.name

    status = _waits(Pool.status)
    take = _makes(Pool.take, SyncPooledPod)
    resize = _waits(Pool.resize)
    drain = _waits(Pool.drain)
    delete = _waits(Pool.delete)

    @contextlib.contextmanager
    def acquire(self, *, ttl: float | None = None, idle: float = IDLE_S) -> Generator[SyncPooledPod, None, None]:
        """`take` for `with`: the pod is removed at the end, and its lease renewed until then."""
        context = self.inner.acquire(ttl=ttl, idle=idle)
        pod = SyncPooledPod(self.portal, self._run(context.__aenter__()))
        try:
            yield pod
        finally:
            self._run(context.__aexit__(None, None, None))


class SyncClient(Face[Client]):
    """One connection; a context manager that closes it. `connect_sync` makes it."""

    @property
    def registries(self) -> SyncRegistries:
        """What is asked about registries and archives."""
        return SyncRegistries(self.portal, self.inner.registries)

    @property
    def socket(self) -> Path:
        return self.inner.socket

    info = _waits(Client.info)
    run_pod = _makes(Client.run_pod, SyncPod)
    run = _makes(Client.run, SyncPooledPod)
    leases = _waits(Client.leases)
    snapshots = _waits(Client.snapshots)
    snapshot = _makes(Client.snapshot, SyncSnapshot)
    pool = _makes(Client.pool, SyncPool)
    pools = _waits(Client.pools)
    run_manifest = _makes(Client.run_manifest, SyncPod)
    pods = _waits(Client.pods)
    containers = _waits(Client.containers)
    stats = _waits(Client.stats)
    stats_stream = _yields(Client.stats_stream)
    events = _yields(Client.events)
    pod = _makes(Client.pod, SyncPod)
    pod_by_id = _opens(Client.pod_by_id, SyncPod)
    container = _makes(Client.container, SyncContainer)
    container_by_id = _opens(Client.container_by_id, SyncContainer)
    images = _waits(Client.images)
    image = _waits(Client.image)
    pull = _waits(Client.pull)
    load = _waits(Client.load)
    remove_image = _waits(Client.remove_image)
    why = _waits(Client.why)
    fsck = _waits(Client.fsck)
    abandon = _waits(Client.abandon)
    reload = _waits(Client.reload)

    def close(self) -> None:
        """End what runs on this connection, and its thread. Idempotent; what was made by it is closed then too."""
        self.portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect_sync(
    socket: str | Path | None = None, *, start: bool = True, config: str | Path | None = None
) -> SyncClient:
    """A connection to the daemon at `socket` for a program without an event loop, for `with` or until `close`.

    Arguments and errors are those of `connect`.
    """
    portal = Portal()
    try:
        return SyncClient(portal, portal.enter(connect(socket, start=start, config=config)))
    except BaseException:
        portal.close()
        raise
