"""A controller in memory: nothing runs, everything else is as with a real one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from atoll import errors
from atoll.concurrency import Latch, run_to_completion
from atoll.identifiers import require_identifier
from atoll.sandbox.controller import (
    CleanupFailed,
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Platform,
    Sandbox,
    State,
    TypedAny,
)
from atoll.testing.faultpoints import FaultPlan

FIRST_PID = 1000
KILLED = 137
UNDO_TIMEOUT_S = 10.0


@dataclass(slots=True, kw_only=True)
class _Fake:
    sandbox: Sandbox
    options: CreateOptions
    instance: ControllerInstance | None = None
    is_paused: bool = False
    is_broken: bool = False
    exit: Latch[ExitStatus] = field(default_factory=Latch[ExitStatus])

    @property
    def is_running(self) -> bool:
        return self.instance is not None and not self.exit.is_set


class FakeController(Controller):
    """Keeps what it is given; `end` does what a workload does that ends by itself.

    Points for faults: `controller.create`, `.start`, `.stop`, `.shutdown`, `.status`, and `controller.undo`, which is
    reached when a start has failed. `now` is the clock. `calls` lists method and ID in order.
    """

    def __init__(
        self, faults: FaultPlan | None = None, *, address: str = "", now: Callable[[], datetime] | None = None
    ) -> None:
        self._faults = faults or FaultPlan()
        self._address = address
        self._now = now or (lambda: datetime.now(UTC))
        self._pids = itertools.count(FIRST_PID)
        self._sandboxes: dict[str, _Fake] = {}
        self.calls: list[tuple[str, str]] = []

    @property
    def ids(self) -> frozenset[str]:
        """The sandboxes that are there, in whatever state."""
        return frozenset(self._sandboxes)

    def options(self, sandbox_id: str) -> CreateOptions:
        """What `create` was given."""
        return self._get(sandbox_id).options

    def end(self, sandbox_id: str, exit_status: int) -> None:
        """Let the running sandbox end by itself."""
        found = self._get(sandbox_id)
        assert found.is_running, f"sandbox {sandbox_id} does not run"
        found.exit.set(ExitStatus(exit_status=exit_status, exited_at=self._now()))

    def _get(self, sandbox_id: str) -> _Fake:
        found = self._sandboxes.get(sandbox_id)
        if found is None:
            raise errors.NotFound(f"sandbox {sandbox_id}: is not known to this controller")
        return found

    async def _enter(self, method: str, sandbox_id: str) -> None:
        self.calls.append((method, sandbox_id))
        await self._faults.reach(f"controller.{method}")

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        require_identifier(sandbox.id, "sandbox id")
        if sandbox.id in self._sandboxes:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is created already")
        self._sandboxes[sandbox.id] = _Fake(sandbox=sandbox, options=options)
        try:
            await self._enter("create", sandbox.id)
        except BaseException:
            del self._sandboxes[sandbox.id]
            raise

    async def start(self, sandbox_id: str) -> ControllerInstance:
        found = self._get(sandbox_id)
        if found.exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: has ended; create another one")
        if found.instance is not None:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is started already")
        try:
            await self._enter("start", sandbox_id)
        except BaseException as error:
            await self._undo(found, error)
            raise
        found.instance = ControllerInstance(
            sandbox_id=sandbox_id,
            pid=next(self._pids),
            created_at=self._now(),
            address=self._address,
            version=3 if self._address else 0,
            spec=found.sandbox.spec,
        )
        return found.instance

    async def _undo(self, found: _Fake, cause: BaseException) -> None:
        try:
            await run_to_completion(self._faults.reach("controller.undo"), within=UNDO_TIMEOUT_S)
        except errors.AtollError as error:
            found.is_broken = True
            if isinstance(cause, errors.AtollError):
                raise CleanupFailed(cause, (str(error),)) from cause
        else:
            del self._sandboxes[found.sandbox.id]

    async def platform(self, sandbox_id: str) -> Platform:
        self._get(sandbox_id)
        return Platform(os="linux", architecture="amd64")

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await self._enter("stop", sandbox_id)
        found = self._sandboxes.get(sandbox_id)
        if found is not None:
            status = KILLED if found.is_running else 0
            found.exit.set(ExitStatus(exit_status=status, exited_at=self._now()))

    async def wait(self, sandbox_id: str) -> ExitStatus:
        return await self._get(sandbox_id).exit.wait()

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        found = self._get(sandbox_id)
        reason = ""
        try:
            await self._enter("status", sandbox_id)
        except errors.AtollError as error:
            reason = str(error)
        instance, ended = found.instance, found.exit.value
        state = State.READY if found.is_running else State.NOTREADY
        if reason or found.is_broken:
            state, reason = State.UNKNOWN, reason or "its failed start is not undone"
        return ControllerStatus(
            sandbox_id=sandbox_id,
            state=state,
            pid=instance.pid if instance is not None and found.is_running else 0,
            info={"info": msgspec.json.encode({"paused": found.is_paused}).decode()} if verbose else {},
            created_at=instance.created_at if instance is not None else None,
            exited_at=ended.exited_at if ended is not None else None,
            address=instance.address if instance is not None else "",
            version=instance.version if instance is not None else 0,
            reason=reason,
        )

    async def shutdown(self, sandbox_id: str) -> None:
        await self._enter("shutdown", sandbox_id)
        found = self._sandboxes.pop(sandbox_id, None)
        if found is not None:
            found.exit.set(ExitStatus(exit_status=KILLED if found.is_running else 0, exited_at=self._now()))

    async def metrics(self, sandbox_id: str) -> Metric:
        self._require_running(sandbox_id)
        data = TypedAny(type_url="io.containerd.cgroups.v2.Metrics", value=b"")
        return Metric(timestamp=self._now(), id=sandbox_id, data=data)

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        self._get(sandbox_id).sandbox = sandbox

    async def pause(self, sandbox_id: str) -> None:
        self._require_running(sandbox_id).is_paused = True

    async def resume(self, sandbox_id: str) -> None:
        self._require_running(sandbox_id).is_paused = False

    def _require_running(self, sandbox_id: str) -> _Fake:
        found = self._get(sandbox_id)
        if not found.is_running:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")
        return found
