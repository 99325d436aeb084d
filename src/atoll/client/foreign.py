"""Another CRI runtime's socket: what of the SDK the CRI covers, asked by its calls alone.

    async with atoll.connect("unix:///run/containerd/containerd.sock") as client: ...

Pods, containers, images, limits and statistics are the CRI's calls as with our own daemon. By other ways: an exec is
ExecSync, so whole and without input; a wait asks for the status again and again; a log is read from its file, which is
on this host; an image is pulled without progress. Everything else is `Unimplemented`, with the name of what only
Atoll has.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from atoll import crilog, errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import wire
from atoll.client.control import Event
from atoll.client.model import Cause, ContainerState, ContainerStatus, ExecResult, Exit, LogLine
from atoll.client.request import REMOVE_AT_END

CALL_TIMEOUT_S = 120.0
PULL_TIMEOUT_S = 3600.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.02, 0.5
"""Between two questions about a container that is waited for."""
READ_BYTES = 256 << 10
LOGS = Path("/var/log/pods")
"""Where a kubelet has them (Kubernetes, "CRI container logging")."""
_RUNTIME = "runtime.v1.RuntimeService"
EXEC_SYNC = wire.Method(_RUNTIME, "ExecSync", cri.ExecSyncRequest, cri.ExecSyncResponse)
EVENTS = wire.Method(_RUNTIME, "GetContainerEvents", cri.GetEventsRequest, cri.ContainerEventResponse)
PULL = wire.Method("runtime.v1.ImageService", "PullImage", cri.PullImageRequest, cri.PullImageResponse)
TYPES = {
    cri.CONTAINER_CREATED_EVENT: "created",
    cri.CONTAINER_STARTED_EVENT: "started",
    cri.CONTAINER_STOPPED_EVENT: "stopped",
    cri.CONTAINER_DELETED_EVENT: "deleted",
}


Status = Callable[[], Awaitable[ContainerStatus]]
"""Asks what a container is like now."""


def lacks(connection: wire.Wire, what: str) -> errors.Unimplemented:
    return errors.Unimplemented(f"{connection.peer} at {connection.socket}: has no {what}; only Atoll has it")


async def name_of(connection: wire.Wire) -> str:
    """What runtime answers there, empty for our own; raises `Unavailable` where it is none of the CRI."""
    try:
        answer = await connection.call(wire.VERSION, cri.VersionRequest(), timeout_s=CALL_TIMEOUT_S)
    except errors.Unimplemented as error:
        raise errors.Unavailable(f"{connection.socket}: serves no CRI (runtime.v1): {error}") from error
    return "" if answer.runtime_name == "atoll" else answer.runtime_name


# --- pods ---


def prepare_pod(connection: wire.Wire, config: cri.PodSandboxConfig, *, network: str, leased: bool) -> None:
    """Give the pod a folder for logs, as a kubelet does; raises `Unimplemented` for what CRI cannot say."""
    if network == "none":
        raise lacks(connection, "pod without a network (network='none')")
    if leased:
        raise lacks(connection, "lease (ttl, idle)")
    if REMOVE_AT_END in config.annotations:
        raise lacks(connection, "removal at the end by the daemon (run -d --rm)")
    metadata = config.metadata
    folder = LOGS / f"{metadata.namespace}_{metadata.name}_{metadata.uid}"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    config.log_directory = str(folder)


def forget_pod(config: cri.PodSandboxConfig | None) -> None:
    """Take the folder of `prepare_pod` away."""
    if config is not None and config.log_directory:
        shutil.rmtree(config.log_directory, ignore_errors=True)


# --- containers ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """The arguments of `Container.exec` beside the command: those that CRI has no words for must be empty."""

    timeout: float | None
    refused: Sequence[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])


async def exec_sync(connection: wire.Wire, container_id: str, command: Sequence[str], asked: Exec) -> ExecResult:
    """Run to the end. Past its time the runtime ends it, and tells no output: `DeadlineExceeded`."""
    for what, given in asked.refused:
        if given:
            raise lacks(connection, f"exec with {what}")
    seconds = max(1, round(asked.timeout)) if asked.timeout else 0
    request = cri.ExecSyncRequest(container_id=container_id, cmd=command, timeout=seconds)
    late = seconds + CALL_TIMEOUT_S if seconds else None
    answer = await connection.call(EXEC_SYNC, request, timeout_s=late)
    code = answer.exit_code
    return ExecResult(exit_code=code, cause=_cause(code, ""), stdout=answer.stdout, stderr=answer.stderr)


def _cause(code: int, reason: str) -> Cause:
    if reason == "OOMKilled":
        return Cause.OOM
    return Cause.SIGNAL if 128 < code <= 192 else Cause.EXITED


async def wait(status: Status, name: str, timeout: float | None) -> Exit:
    """Ask until the container has ended."""
    try:
        async with asyncio.timeout(timeout):
            pause_s = FIRST_PAUSE_S
            while (found := await status()).state in (ContainerState.CREATED, ContainerState.RUNNING):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
    except TimeoutError:
        raise errors.DeadlineExceeded(f"container {name}: still runs after {timeout or 0:g} s") from None
    if found.state is ContainerState.UNKNOWN:
        return Exit(code=255, cause=Cause.UNKNOWN, reason=found.reason, message=found.message)
    return Exit(
        code=found.exit_code,
        cause=_cause(found.exit_code, found.reason),
        exited_at=found.finished_at,
        reason=found.reason,
        message=found.message,
    )


async def logs(status: Status, *, follow: bool, tail: int | None, since_ns: int) -> AsyncGenerator[LogLine]:
    """The lines of the file that the status names, which is asked for again and again to follow."""
    with _opened(await status()) as file:
        lines = _Lines(since_ns)
        if tail is not None:
            for line in lines.feed(file.read())[-tail:] if tail else ():
                yield line
        pause_s = FIRST_PAUSE_S
        while True:
            is_over = not follow or (await status()).state is not ContainerState.RUNNING
            while data := file.read(READ_BYTES):
                pause_s = FIRST_PAUSE_S
                for line in lines.feed(data):
                    yield line
            if is_over:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)


def _opened(container: ContainerStatus) -> IO[bytes]:
    try:
        return open(container.log_path, "rb", buffering=0)
    except OSError as error:
        where = f"container {container.name}: its log {container.log_path!r} cannot be read on this host"
        raise errors.FailedPrecondition(f"{where}: {error.strerror}") from error


class _Lines:
    """Whole lines of a CRI log, from `since_ns` on."""

    def __init__(self, since_ns: int) -> None:
        self._since_ns = since_ns
        self._rest = b""

    def feed(self, data: bytes) -> list[LogLine]:
        whole, line_break, rest = data.rpartition(b"\n")
        if not line_break:
            self._rest += data
            return []
        block, self._rest = self._rest + whole, rest
        return [line for line in crilog.lines(block) if line.time_ns >= self._since_ns]


# --- images and events ---


async def pull(connection: wire.Wire, reference: str, username: str, password: str) -> str:
    """Fetch an image; its ID."""
    auth = cri.AuthConfig(username=username, password=password) if username else None
    asked = cri.PullImageRequest(image=cri.ImageSpec(image=reference), auth=auth)
    return (await connection.call(PULL, asked, timeout_s=PULL_TIMEOUT_S)).image_ref


async def events(connection: wire.Wire) -> AsyncGenerator[Event]:
    """From now on; `Unimplemented` of a runtime without the call (before containerd 1.7)."""
    answers = connection.stream(EVENTS, cri.GetEventsRequest())
    try:
        async for one in answers:
            pod = one.pod_sandbox_status
            names = {status.id: status.metadata.name for status in one.containers_statuses}
            is_pod = one.container_id == pod.id
            yield Event(
                type=TYPES.get(one.container_event_type, "unknown"),
                pod_id=pod.id,
                pod_name=pod.metadata.name,
                container_id="" if is_pod else one.container_id,
                container_name="" if is_pod else names.get(one.container_id, ""),
                at=datetime.fromtimestamp(one.created_at / 1e9, UTC),
            )
    finally:
        await answers.aclose()


def path_of(address: str | os.PathLike[str] | None) -> Path | None:
    """The path of an address `unix://<path>`; None for anything else. Raises `InvalidArgument` for other schemes."""
    if not isinstance(address, str) or "://" not in address:
        return None
    scheme, _, path = address.partition("://")
    if scheme != "unix" or not path.startswith("/"):
        raise errors.InvalidArgument(f"{address!r}: must be unix:///path/of/a/socket, or a path")
    return Path(path)
