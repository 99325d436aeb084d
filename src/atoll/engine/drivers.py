"""How the shim of a pod is driven, where shims differ: who moves stdio, and who keeps the records of its tasks.

    AtollDriver     our own shim: it writes the logs, serves live streams and records what it makes
    ForeignDriver   anybody else's: a relay holds the fifos that the shim knows, and we keep the records

Around the Task calls for one container: `prepare`, Create, `created`, Start, the exit, `drain`, Delete, `deleted`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as own_wire
from atoll.concurrency import Blocking, TaskOwner
from atoll.container.config import ContainerConfig
from atoll.container.status import State
from atoll.container.store import Container, ContainerStore
from atoll.engine import lines
from atoll.engine.paths import NAMESPACE
from atoll.engine.pod import Pod
from atoll.engine.request import names_in_log_folder
from atoll.runtime.binary import BINARY_FILE, BinaryLauncher
from atoll.runtime.relay import Relay, Relays
from atoll.runtime.shim import Shim
from atoll.runtime.streams import ByteWriter, FifoSet, ProcessIO, open_process
from atoll.runtime.task import StdioPaths, TaskClient
from atoll.shim import cgroups, records
from atoll.shim.stdio.request import cri_uri, stream_uri

log = logging.getLogger(__name__)

ATOLL_SHIM = "io.containerd.atoll.v1"
CALL_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 2.0
"""How long the last output of a container may hold up the news of its exit."""
RELAY_LIFE_S = 1.0
"""A relay that ends sooner than this is replaced only when as long has passed again."""


class ExecStreams(Protocol):
    """The stdio of one exec: `paths` are for the shim."""

    @property
    def paths(self) -> StdioPaths: ...

    async def open(self) -> ProcessIO:
        """The streams of the exec, which was started."""
        ...

    def remove(self) -> None:
        """What is left of them once the exec is deleted; idempotent."""
        ...


class Driver(Protocol):
    """What is done around the calls of a shim; every step is idempotent."""

    async def begin(self, pod: Pod) -> None:
        """Before the sandbox is created."""
        ...

    async def prepare(self, pod: Pod, container: Container, bundle: Path) -> StdioPaths:
        """Before Create, which takes the paths."""
        ...

    async def created(self, container: Container, bundle: Path, pid: int) -> None:
        """After Create."""
        ...

    async def drain(self, pod: Pod, container: Container) -> None:
        """Before an exit is told: the output so far is in the log, if that does not take long. Never fails."""
        ...

    async def deleted(self, pod: Pod, container: Container, bundle: Path, *, by_shim: bool) -> None:
        """After Delete, or where there is nothing to delete any more; without `by_shim` the task may be left."""
        ...

    async def attach(self, pod: Pod, container: Container, config: ContainerConfig, *, stdin: bool) -> ProcessIO:
        """Live streams of a container from now on."""
        ...

    def exec_streams(
        self, pod: Pod, shim: Shim, container_id: str, exec_id: str, *, stdin: bool, tty: bool, fifos: Path | None
    ) -> ExecStreams:
        """Streams for an exec that is about to be made; named pipes in the folder `fifos`, where there is a choice."""
        ...

    async def execs(self, shim: Shim, container_id: str) -> tuple[str, ...]:
        """The names of a container's execs that its shim knows, as far as it tells."""
        ...

    async def reopen_log(self, pod: Pod, container: Container) -> None:
        """Go on in a new file at the log's path."""
        ...

    async def let_go(self, pod: Pod) -> None:
        """Drop what connects us to the pod; what serves it lives on."""
        ...


class Drivers:
    """Chooses the driver of a pod by its shim."""

    def __init__(self, own: Driver, foreign: Driver) -> None:
        self._own = own
        self._foreign = foreign

    def of(self, pod: Pod) -> Driver:
        return self._foreign if is_foreign(pod.sandbox.runtime.name) else self._own


def is_foreign(runtime: str) -> bool:
    """Whether a runtime type is not our own shim."""
    return runtime != ATOLL_SHIM


def wanted_stdio(container: Container, max_line: int) -> StdioPaths:
    """Where a container's streams go, in URIs of our own shim and of relays."""
    config = container.metadata.config
    assert config is not None
    log_path = Path(container.metadata.log_path) if container.metadata.log_path else None
    output = cri_uri(log_path, max_line=max_line, below=names_in_log_folder(container))
    return StdioPaths(
        stdin=cri_uri(stdin_once=config.stdin_once) if config.stdin else "",
        stdout=output,
        stderr="" if config.tty else output,
        terminal=config.tty,
    )


# Our own shim


class ShimExecStreams:
    """An exec whose streams our shim serves."""

    def __init__(self, shim: Shim, exec_id: str, *, stdin: bool, tty: bool) -> None:
        self._shim = shim
        self._names = {"stdout": f"{exec_id}-stdout"}
        if not tty:
            self._names["stderr"] = f"{exec_id}-stderr"
        if stdin:
            self._names["stdin"] = f"{exec_id}-stdin"
        address = shim.bootstrap.address
        self.paths = StdioPaths(
            terminal=tty, **{stream: stream_uri(address, name) for stream, name in self._names.items()}
        )

    async def open(self) -> ProcessIO:
        names = self._names
        return await open_process(
            self._shim.client,
            stdin=names.get("stdin", ""),
            stdout=names["stdout"],
            stderr=names.get("stderr", ""),
        )

    def remove(self) -> None:
        """The shim drops them with the exec."""


class AtollDriver:
    """Our own shim does it all; implements `Driver`."""

    def __init__(self, max_line: int) -> None:
        self._max_line = max_line

    async def begin(self, pod: Pod) -> None:
        """Nothing is needed."""

    async def prepare(self, pod: Pod, container: Container, bundle: Path) -> StdioPaths:
        return wanted_stdio(container, self._max_line)

    async def created(self, container: Container, bundle: Path, pid: int) -> None:
        """The shim has written its record."""

    async def drain(self, pod: Pod, container: Container) -> None:
        """The shim passes the last output on before its Delete answers."""

    async def deleted(self, pod: Pod, container: Container, bundle: Path, *, by_shim: bool) -> None:
        """The shim has removed its record."""

    async def attach(self, pod: Pod, container: Container, config: ContainerConfig, *, stdin: bool) -> ProcessIO:
        shim = await lines.shim_of(pod)

        async def close_stdin() -> None:
            await shim.tasks.close_io(container.id)

        return await open_process(
            shim.client,
            stdin=f"{container.id}-stdin" if stdin else "",
            stdout=f"{container.id}-stdout",
            stderr="" if config.tty else f"{container.id}-stderr",
            close_io=close_stdin if config.stdin_once else None,
        )

    def exec_streams(
        self, pod: Pod, shim: Shim, container_id: str, exec_id: str, *, stdin: bool, tty: bool, fifos: Path | None
    ) -> ExecStreams:
        if fifos is None:
            return ShimExecStreams(shim, exec_id, stdin=stdin, tty=tty)
        return _fifo_streams(fifos, shim, container_id, exec_id, stdin=stdin, tty=tty)

    async def execs(self, shim: Shim, container_id: str) -> tuple[str, ...]:
        request = own_wire.ExecsRequest(container_id=container_id)
        answer = await shim.client.call(
            "atoll.shim.v1.Shim", "Execs", request, own_wire.ExecsResponse, timeout=CALL_TIMEOUT_S
        )
        return tuple(answer.ids)

    async def reopen_log(self, pod: Pod, container: Container) -> None:
        shim = await lines.shim_of(pod)
        request = own_wire.ReopenLogRequest(container_id=container.id)
        await shim.client.call(
            "atoll.shim.v1.Shim", "ReopenLog", request, own_wire.ReopenLogResponse, timeout=CALL_TIMEOUT_S
        )

    async def let_go(self, pod: Pod) -> None:
        """Its connection is the pod's own."""


# Other shims


class FifoExecStreams:
    """An exec whose fifos this daemon reads and writes itself."""

    def __init__(self, fifos: FifoSet, tasks: TaskClient, container_id: str, exec_id: str) -> None:
        self._fifos = fifos

        async def close_stdin() -> None:
            await tasks.close_io(container_id, exec_id)

        self.paths = fifos.paths
        self._io = fifos.open(close_stdin)  # before the shim opens its ends

    async def open(self) -> ProcessIO:
        self._fifos.connected()
        return self._io

    def remove(self) -> None:
        self._fifos.remove()


def _fifo_streams(
    folder: Path, shim: Shim, container_id: str, exec_id: str, *, stdin: bool, tty: bool
) -> FifoExecStreams:
    fifos = FifoSet.create(folder, exec_id, stdin=stdin, terminal=tty)
    try:
        return FifoExecStreams(fifos, shim.tasks, container_id, exec_id)
    except BaseException:
        fifos.remove()
        raise


class _OnceInput:
    """The stdin of a container that the end of its first client closes, however it ends; a `ByteWriter`."""

    def __init__(self, inner: ByteWriter, close_later: Callable[[], None]) -> None:
        self._inner = inner
        self._close_later = close_later
        self._is_closed = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.write(data)

    async def close(self) -> None:
        self._is_closed = True
        await self._inner.close()

    def abort(self) -> None:
        self._inner.abort()
        if not self._is_closed:
            self._is_closed = True
            self._close_later()


class ForeignDriver:
    """Drives shims that know only fifos; implements `Driver`.

    Each pod has a relay. One that died is replaced, and goes on with what is in the fifos: the shim holds them open.
    """

    def __init__(
        self,
        relays: Relays,
        launcher: BinaryLauncher,
        containers: ContainerStore,
        *,
        max_line: int,
        blocking: Blocking,
        owner: TaskOwner,
    ) -> None:
        self._relays = relays
        self._launcher = launcher
        self._containers = containers
        self._max_line = max_line
        self._blocking = blocking
        self._owner = owner
        self._connected: dict[str, Relay] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    # relays

    async def begin(self, pod: Pod) -> None:
        await self._relay(pod.id)

    async def _relay(self, pod_id: str, *, replace: bool = True) -> Relay:
        """The connected relay of a pod; another one where it died, unless that is an error that says so."""
        async with self._locks.setdefault(pod_id, asyncio.Lock()):
            known = self._connected.get(pod_id)
            if known is not None and not known.client.is_closed:
                return known
            try:
                relay = await self._relays.connect(pod_id)
            except (errors.NotFound, errors.DataLoss, errors.Unavailable):
                if not replace:
                    raise
                relay = await self._relays.start(pod_id)
                await self._take_up(pod_id, relay)
            self._connected[pod_id] = relay
            self._owner.spawn(self._keep(pod_id, relay), name=f"pod/{pod_id}/relay")
            return relay

    async def _take_up(self, pod_id: str, relay: Relay) -> None:
        """Give a new relay the containers that run already."""
        for container in self._containers.list(pod_id):
            if container.status.get().state is State.RUNNING:
                log.warning("container %s: its relay died and is replaced", container.id[:13])
                try:
                    await relay.create(container.id, wanted_stdio(container, self._max_line))
                except errors.FailedPrecondition as error:
                    log.error("container %s: its output goes nowhere: %s", container.id[:13], error)

    async def _keep(self, pod_id: str, relay: Relay) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await relay.client.closed
        if self._connected.get(pod_id) is relay and loop.time() - begun < RELAY_LIFE_S:
            log.error("pod %s: its relay ended at once; it is replaced in %g s", pod_id[:13], RELAY_LIFE_S)
            await asyncio.sleep(RELAY_LIFE_S)
        while self._connected.get(pod_id) is relay:  # not let go
            try:
                await self._relay(pod_id)
            except errors.AtollError as error:
                log.error("pod %s: its relay died and cannot be replaced yet: %s", pod_id[:13], error)
                await asyncio.sleep(RELAY_LIFE_S)

    async def let_go(self, pod: Pod) -> None:
        self._locks.pop(pod.id, None)
        relay = self._connected.pop(pod.id, None)
        if relay is not None:
            await relay.client.aclose()

    # a container

    async def prepare(self, pod: Pod, container: Container, bundle: Path) -> StdioPaths:
        wanted = wanted_stdio(container, self._max_line)
        relay = await self._relay(pod.id)
        fifos = await self._blocking.run(self._make_fifos, pod.id, container.id, wanted)
        try:
            await relay.create(container.id, wanted)
        except errors.AlreadyExists:  # of a start that a crash cut short
            await relay.delete(container.id)
            await relay.create(container.id, wanted)
        await self._launcher.adopt(bundle, pod.sandbox.runtime.name)
        await self._note(container.id, bundle, 0)
        return fifos.paths

    def _make_fifos(self, pod_id: str, process: str, wanted: StdioPaths) -> FifoSet:
        folder = self._relays.folder(pod_id)
        return FifoSet.create(folder, process, stdin=bool(wanted.stdin), terminal=wanted.terminal)

    async def _note(self, container_id: str, bundle: Path, pid: int) -> None:
        """What our own shim writes down: it takes the place of the shim's words where the shim is gone."""
        found = await self._blocking.run(cgroups.of_process, pid) if pid else ()
        record = records.TaskRecord(
            id=container_id,
            namespace=NAMESPACE,
            binary="",
            root="",
            systemd_cgroup=False,
            pid=pid,
            cgroups=tuple(str(folder) for folder in found),
        )
        try:
            await self._blocking.run(records.write, bundle / records.TASK, record)
        except OSError as error:
            raise errors.Unavailable(f"{bundle / records.TASK}: cannot be written: {error.strerror}") from error

    async def created(self, container: Container, bundle: Path, pid: int) -> None:
        await self._note(container.id, bundle, pid)

    async def drain(self, pod: Pod, container: Container) -> None:
        try:
            await (await self._relay(pod.id, replace=False)).delete(container.id, DRAIN_TIMEOUT_S)
        except errors.AtollError as error:
            log.info("container %s: its exit is told before its last output: %s", container.id[:13], error)

    async def deleted(self, pod: Pod, container: Container, bundle: Path, *, by_shim: bool) -> None:
        folder = self._relays.folder(pod.id)
        await self._blocking.run(_say_end, (folder / f"{container.id}-stdout", folder / f"{container.id}-stderr"))
        try:
            await (await self._relay(pod.id, replace=False)).delete(container.id)
        except errors.AtollError as error:
            log.warning("container %s: is still relayed: %s", container.id[:13], error)
        config = container.metadata.config
        fifos = FifoSet(
            folder,
            container.id,
            stdin=config is not None and config.stdin,
            terminal=config is not None and config.tty,
        )
        await self._blocking.run(fifos.remove)
        if by_shim:
            await self._blocking.run(_forget, bundle)

    # its streams

    async def attach(self, pod: Pod, container: Container, config: ContainerConfig, *, stdin: bool) -> ProcessIO:
        relay = await self._relay(pod.id)

        async def close_stdin() -> None:
            await relay.close_io(container.id)
            await (await lines.tasks_of(pod)).close_io(container.id)

        io = await open_process(
            relay.client,
            stdin=f"{container.id}-stdin" if stdin else "",
            stdout=f"{container.id}-stdout",
            stderr="" if config.tty else f"{container.id}-stderr",
            close_io=close_stdin if config.stdin_once else None,
        )
        if io.stdin is None or not config.stdin_once:
            return io

        async def close_lost() -> None:
            try:
                await close_stdin()
            except errors.AtollError as error:
                log.info("container %s: its stdin is not closed: %s", container.id[:13], error)

        def close_later() -> None:
            self._owner.spawn(close_lost(), name=f"attach/{container.id}/close")

        return ProcessIO(stdin=_OnceInput(io.stdin, close_later), stdout=io.stdout, stderr=io.stderr)

    def exec_streams(
        self, pod: Pod, shim: Shim, container_id: str, exec_id: str, *, stdin: bool, tty: bool, fifos: Path | None
    ) -> ExecStreams:
        return _fifo_streams(self._relays.folder(pod.id), shim, container_id, exec_id, stdin=stdin, tty=tty)

    async def execs(self, shim: Shim, container_id: str) -> tuple[str, ...]:
        """Those that run, where the shim says which process is whose, as containerd's does."""
        return await shim.tasks.exec_ids(container_id)

    async def reopen_log(self, pod: Pod, container: Container) -> None:
        await (await self._relay(pod.id)).reopen(container.id)


def _say_end(fifos: tuple[Path, ...]) -> None:
    """Let whoever reads see the end of a fifo that was never written to: it has one only after a writer (fifo(7))."""
    for path in fifos:
        with contextlib.suppress(OSError):  # nobody reads it, or it is gone
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))


def _forget(bundle: Path) -> None:
    for name in (records.TASK, BINARY_FILE):
        (bundle / name).unlink(missing_ok=True)
