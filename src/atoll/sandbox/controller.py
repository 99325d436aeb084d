"""The sandbox contract: `Controller` and the values it takes and gives.

    create ──> created ──start──> READY <──pause, resume──> paused
                  │                 └─────────┬───────────────┘
                  ├──stop──────────> NOTREADY <── stop, end of its processes
                  └── shutdown, from any state ──> unknown ID

A status tells created as NOTREADY without `exited_at`, and paused as READY. UNKNOWN is what cannot be told now, and
what a failed start left. The rules C1, C2, ... that docstrings name are in docs/sandbox-contract.md.

Whoever implements `Controller` may be driven by the engine, by containerd over gRPC, or by a test;
it never learns which. A method on an ID that the controller does not know raises `NotFound`, save
`stop` and `shutdown`, which succeed for what is provably absent (C3).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from atoll import errors
from atoll.linux.host import architecture
from atoll.sandbox.info import SandboxInfo
from atoll.snapshot.mount import Mount

__all__ = [
    "UNKNOWN_EXIT_STATUS",
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
    "SandboxInfo",
    "State",
    "TypedAny",
    "host_platform",
]

TORN_DOWN, NOT_TORN_DOWN = "torn down: ", "not torn down yet: "
"""How the errors that are joined to `CleanupFailed` begin."""
UNKNOWN_EXIT_STATUS = 255
"""The exit status of a process whose real one nobody can know."""

POLL_S = 0.2
"""How often the default `wait` asks for the status."""


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


def host_platform() -> Platform:
    """What this host runs."""
    return Platform(os="linux", architecture=architecture())


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
    (`ttrpc+unix:///path`), `version` which generation of that API (2 or 3). `labels` are the record's and what the
    controller adds: whoever keeps the record replaces its labels by them.
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
    """How a sandbox ended: a wait status, 128 + n for signal n, 255 where nobody can know.

    `is_seen`: whether anybody saw it; where nobody is known to have not, a 255 may be either.
    """

    exit_status: int
    exited_at: datetime
    is_seen: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerStatus:
    """What is known of a sandbox now.

    `info` holds JSON texts, given when asked verbosely; the text of key `info` is a `SandboxInfo`. `reason` says why
    the state is UNKNOWN. `exited_at` and `exit_status` are there once it has ended; the second is not on containerd's
    wire, so that a remote controller's status lacks it.
    """

    sandbox_id: str
    state: State
    pid: int = 0
    info: Mapping[str, str] = field(default_factory=dict[str, str])
    created_at: datetime | None = None
    exited_at: datetime | None = None
    exit_status: int | None = None
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

    Five methods make a legal controller: create, start, stop, status and shutdown. The others have an answer that is
    true for every controller: what they can know from those five, or `Unimplemented`.

    Any calls may overlap (C40). For one sandbox, create, start, stop, update, pause, resume and shutdown take
    effect one after the other; `wait`, `status`, `platform`, `ping` and `metrics` never wait for them.
    """

    @abstractmethod
    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        """Prepare the sandbox; nothing of the workload runs yet (C10).

        Raises `InvalidArgument` for an ID that is none and for options that it cannot follow, `AlreadyExists` for an ID
        it has. On any error nothing is left behind, or it is `CleanupFailed`.
        """

    @abstractmethod
    async def start(self, sandbox_id: str) -> ControllerInstance:
        """Start what `create` prepared; once (C13).

        On an error everything that create and start made is taken down and the ID is unknown. Where that fails the
        error is `CleanupFailed`, the status is UNKNOWN, and whoever called start owes a `shutdown` until one
        succeeds (C16). So it is where the caller is cancelled.
        """

    @abstractmethod
    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        """End the sandbox's processes: politely for `timeout_s`, then by SIGKILL, paused ones too. Idempotent (C20)."""

    @abstractmethod
    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        """What is known now, from memory where it can be; `UNKNOWN` with a reason where nothing is (C30)."""

    @abstractmethod
    async def shutdown(self, sandbox_id: str) -> None:
        """Free everything of the sandbox, its shim included, stopping it first where it runs. Idempotent (C24).

        An error names what is left; calling it again goes on there.
        """

    async def wait(self, sandbox_id: str) -> ExitStatus:
        """Block until the sandbox has ended; after that answer at once, always the same, until shutdown (C27).

        The default asks for the status again and again. It is as good as that is: without its `exit_status` the
        answer is `UNKNOWN_EXIT_STATUS`.
        """
        while True:
            status = await self.status(sandbox_id)
            if status.exited_at is not None:
                known = status.exit_status
                return ExitStatus(
                    exit_status=UNKNOWN_EXIT_STATUS if known is None else known, exited_at=status.exited_at
                )
            await asyncio.sleep(POLL_S)

    async def platform(self, sandbox_id: str) -> Platform:
        """What the sandbox runs; answered from memory, in every state. The default: what this host runs (C33)."""
        await self.status(sandbox_id)
        return host_platform()

    async def ping(self, sandbox_id: str) -> None:
        """Raise unless the sandbox runs, paused or not; cheap, changes nothing (C34)."""
        status = await self.status(sandbox_id)
        if status.state is State.UNKNOWN:
            raise errors.Unavailable(f"sandbox {sandbox_id}: cannot be asked now: {status.reason}")
        if status.state is not State.READY:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")

    async def metrics(self, sandbox_id: str) -> Metric:
        """What all processes of the sandbox use (C35)."""
        raise errors.Unimplemented(f"sandbox {sandbox_id}: this controller has no metrics")

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        """Bring the sandbox in line with the named `fields` of the record; all of them or none (C36).

        Fields: labels, annotations, extensions, spec, runtime, and labels.KEY, annotations.KEY, extensions.KEY. None
        named means all. Raises `InvalidArgument` for any other, before anything changes.
        """
        raise errors.Unimplemented(f"sandbox {sandbox_id}: this controller cannot update")

    async def pause(self, sandbox_id: str) -> None:
        """Freeze every process of the sandbox, and return when all stand. Idempotent (C37)."""
        raise errors.Unimplemented(f"sandbox {sandbox_id}: this controller cannot pause")

    async def resume(self, sandbox_id: str) -> None:
        """Thaw what `pause` froze. Idempotent (C38)."""
        raise errors.Unimplemented(f"sandbox {sandbox_id}: this controller cannot resume")

    async def recover(self, sandbox: Sandbox) -> ControllerStatus:
        """Take up a sandbox that this controller made before it was restarted; what is known of it now (C50).

        For whoever hosts the controller, on no wire. Raises `NotFound` where nothing is left of it. The default is
        for a controller that remembers by itself.
        """
        return await self.status(sandbox.id)

    async def aclose(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of connections and tasks; the sandboxes live on. Idempotent; no other call follows."""


class CleanupFailed(errors.AtollError):
    """A start or create failed and not all of it could be taken down: `undone` names what was, `left` what was not.

    It has the code of the failure that came first, whose text leads the message.
    """

    def __init__(self, cause: errors.AtollError, left: tuple[str, ...], undone: tuple[str, ...] = ()) -> None:
        done = f"; torn down: {', '.join(undone)}" if undone else ""
        super().__init__(f"{cause}{done}; not torn down yet: {', '.join(left)}; shut it down, again if need be")
        self.cause = cause
        self.left = left
        self.undone = undone
        self.joined = (  # so that both halves cross a wire
            *(errors.Aborted(TORN_DOWN + what) for what in undone),
            *(errors.FailedPrecondition(NOT_TORN_DOWN + what) for what in left),
        )

    @property
    def code(self) -> int:  # type: ignore[override]  # the code is the cause's, known per instance
        return self.cause.code
