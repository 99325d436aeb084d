"""What the SDK answers with: frozen values, read once from the wire.

Times are aware datetimes in UTC, None where the thing has not happened; sizes are bytes.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from atoll import errors
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.crilog import LogLine as LogLine  # noqa: PLC0414 - a value of the SDK as the others here


class PodState(StrEnum):
    READY = "ready"
    NOTREADY = "notready"


class ContainerState(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


class Cause(StrEnum):
    """Why a process ended; `UNKNOWN` where nobody can tell."""

    EXITED = "exited"
    SIGNAL = "signal"
    OOM = "oom"
    TIMEOUT = "timeout"
    SECCOMP = "seccomp"
    UNKNOWN = "unknown"


_CAUSES = {
    own.Exit.EXITED: Cause.EXITED,
    own.Exit.SIGNALLED: Cause.SIGNAL,
    own.Exit.OOM_KILLED: Cause.OOM,
    own.Exit.TIMED_OUT: Cause.TIMEOUT,
    own.Exit.UNKNOWN: Cause.UNKNOWN,
    own.Exit.SECCOMP: Cause.SECCOMP,
}


def moment(nanoseconds: int) -> datetime | None:
    """The time so many ns after the epoch, to the microsecond; None for 0."""
    if nanoseconds <= 0:
        return None
    return datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. `code` is its exit code, 128 + n for signal n, 255 where nobody knows."""

    code: int
    cause: Cause
    exited_at: datetime | None = None
    reason: str = ""
    message: str = ""

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that ended it, where one did."""
        if self.cause not in (Cause.SIGNAL, Cause.OOM, Cause.TIMEOUT, Cause.SECCOMP) or self.code <= 128:
            return None
        try:
            return signal.Signals(self.code - 128)
        except ValueError:
            return None

    @classmethod
    def read(cls, message: own.Exit) -> Exit:
        return cls(
            code=message.code,
            cause=_CAUSES.get(message.cause, Cause.UNKNOWN),
            exited_at=moment(message.exited_at),
            reason=message.reason,
            message=message.message,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """A finished exec: how it ended and all it wrote; complete also where a timeout ended it."""

    exit_code: int
    cause: Cause
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def error_text(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are replaced."""
        return self.stderr.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodStatus:
    """A pod at one moment. `ips` is empty where it was not asked for, or the pod has no network of its own."""

    id: str
    name: str
    namespace: str
    state: PodState
    created_at: datetime | None
    runtime: str
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    ips: tuple[str, ...] = ()
    info: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def ip(self) -> str:
        return self.ips[0] if self.ips else ""

    @classmethod
    def listed(cls, item: cri.PodSandbox) -> PodStatus:
        """From a list: without addresses."""
        return cls(
            id=item.id,
            name=item.metadata.name,
            namespace=item.metadata.namespace,
            state=_pod_state(item.state),
            created_at=moment(item.created_at),
            runtime=item.runtime_handler,
            labels=dict(item.labels),
            annotations=dict(item.annotations),
        )

    @classmethod
    def read(cls, answer: cri.PodSandboxStatusResponse) -> PodStatus:
        status = answer.status
        network = status.network
        found = (network.ip, *(other.ip for other in network.additional_ips))
        return cls(
            id=status.id,
            name=status.metadata.name,
            namespace=status.metadata.namespace,
            state=_pod_state(status.state),
            created_at=moment(status.created_at),
            runtime=status.runtime_handler,
            labels=dict(status.labels),
            annotations=dict(status.annotations),
            ips=tuple(ip for ip in found if ip),
            info=dict(answer.info),
        )


def _pod_state(state: int) -> PodState:
    return PodState.READY if state == cri.SANDBOX_READY else PodState.NOTREADY


_CONTAINER_STATES: dict[int, ContainerState] = {
    cri.CONTAINER_CREATED: ContainerState.CREATED,
    cri.CONTAINER_RUNNING: ContainerState.RUNNING,
    cri.CONTAINER_EXITED: ContainerState.EXITED,
    cri.CONTAINER_UNKNOWN: ContainerState.UNKNOWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """A container at one moment; from a list `started_at`, `finished_at`, `exit_code` and `reason` are not told."""

    id: str
    pod_id: str
    name: str
    image: str
    state: ContainerState
    created_at: datetime | None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    log_path: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    info: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def listed(cls, item: cri.Container) -> ContainerStatus:
        return cls(
            id=item.id,
            pod_id=item.pod_sandbox_id,
            name=item.metadata.name,
            image=item.image.user_specified_image or item.image.image,
            state=_CONTAINER_STATES.get(item.state, ContainerState.UNKNOWN),
            created_at=moment(item.created_at),
            labels=dict(item.labels),
            annotations=dict(item.annotations),
        )

    @classmethod
    def read(cls, answer: cri.ContainerStatusResponse, pod_id: str) -> ContainerStatus:
        status = answer.status
        return cls(
            id=status.id,
            pod_id=pod_id,
            name=status.metadata.name,
            image=status.image.user_specified_image or status.image.image,
            state=_CONTAINER_STATES.get(status.state, ContainerState.UNKNOWN),
            created_at=moment(status.created_at),
            started_at=moment(status.started_at),
            finished_at=moment(status.finished_at),
            exit_code=status.exit_code,
            reason=status.reason,
            message=status.message,
            log_path=status.log_path,
            labels=dict(status.labels),
            annotations=dict(status.annotations),
            info=dict(answer.info),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size_bytes: int
    pinned: bool

    @classmethod
    def read(cls, item: cri.Image) -> Image:
        return cls(
            id=item.id,
            tags=tuple(item.repo_tags),
            digests=tuple(item.repo_digests),
            size_bytes=item.size,
            pinned=item.pinned,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """What an import brought: the image and the names that it got by it."""

    id: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProgress:
    """One layer of a pull; `phase` is waiting, pulling, unpacking or done; `total_bytes` is 0 while unknown."""

    digest: str
    current_bytes: int
    total_bytes: int
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One step of an operation on a pod or one of its containers; `duration_s` is None while it lasts."""

    operation: str
    subject: str
    name: str
    started_at: datetime | None
    duration_s: float | None
    waits_on: str = ""
    error: str = ""

    @classmethod
    def read(cls, message: own.Phase) -> Phase:
        return cls(
            operation=message.operation,
            subject=message.subject,
            name=message.name,
            started_at=moment(message.started_at),
            duration_s=message.duration / 1e9 if message.duration >= 0 else None,
            waits_on=message.waits_on,
            error=message.error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference between the books and the machine."""

    kind: str
    key: str
    owner: str
    problem: str
    remedy: str
    repaired: bool
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckReport:
    """What a check found, and how many resources it compared."""

    findings: tuple[Finding, ...]
    checked: int

    @property
    def clean(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonInfo:
    """What the daemon says of itself; `debts` counts what it still has to free, the default handler comes first."""

    version: str
    root: str
    state: str
    instance: str
    pid: int
    started_at: datetime | None
    pods: int
    containers: int
    debts: int
    runtime_handlers: tuple[str, ...]

    @classmethod
    def read(cls, message: own.InfoResponse) -> DaemonInfo:
        return cls(
            version=message.version,
            root=message.root,
            state=message.state,
            instance=message.instance,
            pid=message.pid,
            started_at=moment(message.started_at),
            pods=message.pods,
            containers=message.containers,
            debts=message.debts,
            runtime_handlers=tuple(message.runtime_handlers),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What a daemon made of its configuration file: keys whose new value is in force, and that wait for its next start.

    `file` is empty where it has none.
    """

    file: str
    applied: tuple[str, ...]
    waiting: tuple[str, ...]


class CommandFailed(errors.Unknown):
    """A command could not be executed; `exit_code` is what a shell would say: 127 not found, 126 not executable."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
