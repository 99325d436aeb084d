"""The sandbox contract: `Controller` and the values it takes and gives.

    created ──start──> READY ──exit or stop──> NOTREADY ──shutdown──> unknown ID
       └────────────────── failed start: everything undone, or UNKNOWN with debts

Whoever implements `Controller` may be driven by the engine, by containerd over gRPC, or by a test;
it never learns which. Every method takes a sandbox ID; a method on an ID that the controller does
not know raises `NotFound`, save `stop` and `shutdown`, which succeed for what is provably absent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from atoll import errors
from atoll.snapshot.mount import Mount

__all__ = [
    "CleanupFailed",
    "Controller",
    "ControllerInstance",
    "ControllerStatus",
    "CreateOptions",
    "ExitStatus",
    "Metric",
    "Mount",
    "Platform",
    "Runtime",
    "Sandbox",
    "State",
    "TypedAny",
]

UNKNOWN_EXIT_STATUS = 255
"""The exit status of a process whose real one nobody can know."""


class State(StrEnum):
    """What CRI clients compare literally."""

    READY = "SANDBOX_READY"
    NOTREADY = "SANDBOX_NOTREADY"
    UNKNOWN = "SANDBOX_UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedAny:
    """An opaque value with the name of its type: a protobuf full name, or a URL for JSON."""

    type_url: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the sandbox runs, in the words of the OCI image spec."""

    os: str
    architecture: str
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The shim that serves a sandbox: its runtime type and the options that go to it."""

    name: str
    options: TypedAny | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """The durable record of a sandbox, as the `SandboxStore` keeps it."""

    id: str
    sandboxer: str
    runtime: Runtime
    spec: TypedAny | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    extensions: Mapping[str, TypedAny] = field(default_factory=dict[str, TypedAny])
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """What a sandbox is made of. `options` carries the pod's config: Any of `runtime.v1.PodSandboxConfig`."""

    rootfs: tuple[Mount, ...] = ()
    options: TypedAny | None = None
    netns_path: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerInstance:
    """A started sandbox.

    `pid` lives in the sandbox's namespaces. `address` is where its Task API answers
    (`ttrpc+unix:///path`), `version` which generation of that API.
    """

    sandbox_id: str
    pid: int
    created_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    address: str = ""
    version: int = 0
    spec: TypedAny | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a sandbox ended: a wait status, 128 + n for signal n, 255 where nobody can know."""

    exit_status: int
    exited_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerStatus:
    """What is known of a sandbox now. `info` holds JSON texts, given when asked verbosely."""

    sandbox_id: str
    state: State
    pid: int = 0
    info: Mapping[str, str] = field(default_factory=dict[str, str])
    created_at: datetime | None = None
    exited_at: datetime | None = None
    extra: TypedAny | None = None
    address: str = ""
    version: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One sample of a sandbox's resource use; `data` is Any of cgroups v1 or v2 Metrics."""

    timestamp: datetime
    id: str
    data: TypedAny


class Controller(ABC):
    """Runs sandboxes of one kind.

    Calls for different sandboxes may run at the same time. For one sandbox the caller orders
    create, start, stop, shutdown and update; `wait`, `status`, `platform`, `ping` and `metrics` may
    overlap with anything.
    """

    @abstractmethod
    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        """Prepare the sandbox; nothing of the workload runs yet.

        Raises `AlreadyExists` for an ID it has. On any error nothing is left behind.
        """

    @abstractmethod
    async def start(self, sandbox_id: str) -> ControllerInstance:
        """Start what `create` prepared.

        On an error everything that start made is undone; where an undo fails too the error is
        `CleanupFailed` and `shutdown` pays the rest.
        """

    @abstractmethod
    async def platform(self, sandbox_id: str) -> Platform:
        """What the sandbox runs; answered from memory."""

    @abstractmethod
    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        """End the sandbox's processes: politely for `timeout_s`, then by SIGKILL. Idempotent."""

    @abstractmethod
    async def wait(self, sandbox_id: str) -> ExitStatus:
        """Block until the sandbox has ended; after that answer at once, always the same, until shutdown."""

    @abstractmethod
    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        """What is known now; `UNKNOWN` with a reason where nothing is."""

    @abstractmethod
    async def shutdown(self, sandbox_id: str) -> None:
        """Free everything of the sandbox, its shim included, stopping it first where it runs. Idempotent."""

    async def metrics(self, sandbox_id: str) -> Metric:
        """The sandbox's resource use now."""
        raise errors.Unimplemented(f"sandbox {sandbox_id}: this controller has no metrics")

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        """Bring the running sandbox in line with the named `fields` of the record."""
        raise errors.Unimplemented(f"sandbox {sandbox_id}: this controller cannot update")

    async def pause(self, sandbox_id: str) -> None:
        """Freeze every process of the sandbox. Idempotent."""
        raise errors.Unimplemented(f"sandbox {sandbox_id}: this controller cannot pause")

    async def resume(self, sandbox_id: str) -> None:
        """Thaw what `pause` froze. Idempotent."""
        raise errors.Unimplemented(f"sandbox {sandbox_id}: this controller cannot resume")

    async def ping(self, sandbox_id: str) -> None:
        """Raise unless the sandbox is alive; cheap, changes nothing."""
        if (await self.status(sandbox_id)).state is not State.READY:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")


class CleanupFailed(errors.AtollError):
    """A start failed and not all of it could be undone; `left` names what is still there.

    It has the code of the failure that came first, whose text leads the message.
    """

    def __init__(self, cause: errors.AtollError, left: tuple[str, ...]) -> None:
        super().__init__(f"{cause}; not undone yet, will be retried: {', '.join(left)}")
        self.cause = cause
        self.left = left

    @property
    def code(self) -> int:  # type: ignore[override]  # the code is the cause's, known per instance
        return self.cause.code
