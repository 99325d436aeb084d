"""A controller in memory: nothing runs, everything else is as with a real one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

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
    SandboxInfo,
    State,
    TypedAny,
)
from atoll.sandbox.resources import of_spec
from atoll.testing.fake_host import FakeHost
from atoll.testing.faultpoints import FaultPlan

T = TypeVar("T")

KILLED = 137
UNDO_TIMEOUT_S = 10.0
CONFIG_TYPES = ("runtime.v1.PodSandboxConfig",)
FIELDS = ("labels", "annotations", "extensions", "spec", "runtime")
KEYED_FIELDS = ("labels", "annotations", "extensions")
REFUSE, STUCK = "fake.atoll/refuse", "fake.atoll/stuck"
"""Annotations of `CreateOptions`: start fails; start fails, and so does its undo, until shutdown."""


@dataclass(slots=True, kw_only=True)
class FakeSandbox:
    """One sandbox: what it was made of, and what has become of it."""

    sandbox: Sandbox
    options: CreateOptions
    instance: ControllerInstance | None = None
    is_paused: bool = False
    broken: str = ""
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    exit: Latch[ExitStatus] = field(default_factory=Latch[ExitStatus])

    @property
    def is_running(self) -> bool:
        return self.instance is not None and not self.exit.is_set

    @property
    def word(self) -> str:
        """What containerd calls its state."""
        if self.exit.is_set:
            return "stopped"
        if self.instance is None:
            return "created"
        return "paused" if self.is_paused else "running"


class FakeController(Controller):
    """Keeps what it is given; `end` does what a workload does that ends by itself, `host` has what it made.

    Points for faults: `controller.create`, `.start`, `.stop`, `.shutdown`, `.status`, and `controller.undo`, which is
    reached when a start has failed. `now` is the clock. `calls` lists method and ID in order. A sandbox's address is
    `ttrpc+unix://<sockets>/<id>` where `sockets` is given; nobody listens there.
    """

    def __init__(
        self,
        faults: FaultPlan | None = None,
        *,
        sockets: str = "",
        now: Callable[[], datetime] | None = None,
        host: FakeHost | None = None,
    ) -> None:
        self._faults = faults or FaultPlan()
        self._sockets = sockets
        self._now = now or (lambda: datetime.now(UTC))
        self._sandboxes: dict[str, FakeSandbox] = {}
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        self.host = host or FakeHost()
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
        self.host.kill(sandbox_id)
        found.exit.set(ExitStatus(exit_status=exit_status, exited_at=self._now()))

    def join(self, sandbox_id: str) -> None:
        """Run one more process in the sandbox, as its task API would; `FailedPrecondition` where it is paused."""
        found = self._require_running(sandbox_id)
        if found.is_paused:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is paused; resume it first")
        self.host.join(self.host.of(sandbox_id)[0])

    def restarted(self, *known: str) -> FakeController:
        """A controller over the same host, which knows the sandboxes named as this one did."""
        made = type(self)(self._faults, sockets=self._sockets, now=self._now, host=self.host)
        made._sandboxes.update((one, self._sandboxes[one]) for one in known)
        return made

    def _get(self, sandbox_id: str) -> FakeSandbox:
        found = self._sandboxes.get(sandbox_id)
        if found is None:
            raise errors.NotFound(f"sandbox {sandbox_id}: is not known to this controller")
        return found

    @asynccontextmanager
    async def _alone(self, sandbox_id: str) -> AsyncGenerator[None]:
        """What changes a sandbox goes one after the other."""
        lock, users = self._locks.setdefault(sandbox_id, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[sandbox_id]

    async def _enter(self, method: str, sandbox_id: str) -> None:
        self.calls.append((method, sandbox_id))
        await self._faults.reach(f"controller.{method}")

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        require_identifier(sandbox.id, "sandbox id")
        if options.options is not None and options.options.type_url not in CONFIG_TYPES:
            raise errors.InvalidArgument(
                f"sandbox {sandbox.id}: options of type {options.options.type_url!r} are not known"
            )
        if options.netns_path and not os.path.exists(options.netns_path):  # noqa: ASYNC240  one stat
            raise errors.InvalidArgument(f"sandbox {sandbox.id}: {options.netns_path}: is no network namespace")
        async with self._alone(sandbox.id):
            if sandbox.id in self._sandboxes:
                raise errors.AlreadyExists(f"sandbox {sandbox.id}: is created already")
            self.host.prepare(sandbox.id)
            self._sandboxes[sandbox.id] = FakeSandbox(sandbox=sandbox, options=options)
            try:
                await self._enter("create", sandbox.id)
            except BaseException:
                self._forget(sandbox.id)
                raise

    def _forget(self, sandbox_id: str) -> None:
        self._sandboxes.pop(sandbox_id, None)
        self.host.free(sandbox_id)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        async with self._alone(sandbox_id):
            found = self._get(sandbox_id)
            if found.exit.is_set or found.broken:
                raise errors.FailedPrecondition(f"sandbox {sandbox_id}: has ended; create another one")
            if found.instance is not None:
                raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is started already")
            try:
                pid = self.host.spawn(sandbox_id)
                await self._enter("start", sandbox_id)
                if {REFUSE, STUCK} & set(found.options.annotations):
                    raise errors.Unavailable(f"sandbox {sandbox_id}: cannot start, as was asked for")
            except BaseException as error:
                await self._undo(found, error)
                raise
            found.instance = self._instance(found, pid)
            return found.instance

    def _instance(self, found: FakeSandbox, pid: int) -> ControllerInstance:
        address = f"ttrpc+unix://{self._sockets}/{found.sandbox.id}" if self._sockets else ""
        if address:
            self.host.sockets[address.removeprefix("ttrpc+unix://")] = found.sandbox.id
        return ControllerInstance(
            sandbox_id=found.sandbox.id,
            pid=pid,
            created_at=self._now(),
            labels=dict(found.sandbox.labels),
            address=address,
            version=3 if address else 0,
            spec=found.sandbox.spec,
        )

    async def _undo(self, found: FakeSandbox, cause: BaseException) -> None:
        sandbox_id = found.sandbox.id
        try:
            await run_to_completion(self._faults.reach("controller.undo"), within=UNDO_TIMEOUT_S)
            if STUCK in found.options.annotations:
                raise errors.Internal("its mount is busy")
        except errors.AtollError as error:
            self.host.kill(sandbox_id)
            found.broken = f"its failed start is not undone: {error}"
            if isinstance(cause, errors.AtollError):
                raise CleanupFailed(cause, (f"the mount of {sandbox_id}: {error}",), ("its process",)) from cause
        else:
            self._forget(sandbox_id)

    async def platform(self, sandbox_id: str) -> Platform:
        self._get(sandbox_id)
        return Platform(os="linux", architecture="amd64")

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        async with self._alone(sandbox_id):
            await self._enter("stop", sandbox_id)
            found = self._sandboxes.get(sandbox_id)
            if found is not None:
                self._end(found)

    def _end(self, found: FakeSandbox) -> None:
        self.host.kill(found.sandbox.id)
        status = KILLED if found.is_running else 0
        found.exit.set(ExitStatus(exit_status=status, exited_at=self._now()))

    async def wait(self, sandbox_id: str) -> ExitStatus:
        return await self._get(sandbox_id).exit.wait()

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        found = self._get(sandbox_id)
        reason = found.broken
        try:
            await self._enter("status", sandbox_id)
        except errors.AtollError as error:
            reason = str(error)
        instance, ended = found.instance, found.exit.value
        running = instance if found.is_running else None
        state = State.READY if running is not None else State.NOTREADY
        return ControllerStatus(
            sandbox_id=sandbox_id,
            state=State.UNKNOWN if reason else state,
            pid=running.pid if running is not None else 0,
            info=self._info(found) if verbose else {},
            created_at=instance.created_at if instance is not None else None,
            exited_at=ended.exited_at if ended is not None else None,
            exit_status=ended.exit_status if ended is not None else None,
            address=instance.address if instance is not None else "",
            version=instance.version if instance is not None else 0,
            reason=reason,
        )

    def _info(self, found: FakeSandbox) -> dict[str, str]:
        return SandboxInfo(
            pid=found.instance.pid if found.instance is not None and found.is_running else 0,
            process_status=found.word,
            runtime_type=found.sandbox.runtime.name,
            labels=dict(found.sandbox.labels),
            annotations=found.annotations,
        ).encode()

    async def shutdown(self, sandbox_id: str) -> None:
        async with self._alone(sandbox_id):
            await self._enter("shutdown", sandbox_id)
            found = self._sandboxes.get(sandbox_id)
            if found is not None:
                self._end(found)
            self._forget(sandbox_id)

    async def metrics(self, sandbox_id: str) -> Metric:
        self._require_running(sandbox_id)
        data = TypedAny(type_url="io.containerd.cgroups.v2.Metrics", value=b"")
        return Metric(timestamp=self._now(), id=sandbox_id, data=data)

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        async with self._alone(sandbox_id):
            found = self._get(sandbox_id)
            if found.exit.is_set:
                raise errors.FailedPrecondition(f"sandbox {sandbox_id}: has ended")
            self._update(found, sandbox, fields or FIELDS)

    def _update(self, found: FakeSandbox, new: Sandbox, fields: tuple[str, ...]) -> None:
        """Everything that is named, or an error and nothing."""
        record, annotations = found.sandbox, dict(found.annotations)
        resources, told = of_spec(new.spec.value) if new.spec is not None else (None, {})
        for name in fields:
            part, dot, key = name.partition(".")
            if part not in FIELDS or (dot and (not key or part not in KEYED_FIELDS)):
                raise errors.InvalidArgument(f"sandbox {record.id}: field {name!r} cannot be updated")
            match part:
                case "labels":
                    record = replace(record, labels=_merged(record.labels, new.labels, key))
                case "extensions":
                    record = replace(record, extensions=_merged(record.extensions, new.extensions, key))
                case "annotations":
                    annotations = _merged(annotations, told, key)
                case "spec":
                    record = replace(record, spec=new.spec)
                case _:
                    if new.runtime.name != record.runtime.name:
                        raise errors.InvalidArgument(f"sandbox {record.id}: its runtime name never changes")
                    record = replace(record, runtime=new.runtime)
        found.sandbox, found.annotations = record, annotations
        if "spec" in fields and resources is not None and resources.pids is not None and resources.pids.limit:
            self.host.limits[record.id] = resources.pids.limit

    async def pause(self, sandbox_id: str) -> None:
        await self._freeze(sandbox_id, True)

    async def resume(self, sandbox_id: str) -> None:
        await self._freeze(sandbox_id, False)

    async def _freeze(self, sandbox_id: str, is_frozen: bool) -> None:
        async with self._alone(sandbox_id):
            self._require_running(sandbox_id).is_paused = is_frozen
            for pid in self.host.of(sandbox_id):
                self.host.freeze(pid, is_frozen)

    def _require_running(self, sandbox_id: str) -> FakeSandbox:
        found = self._get(sandbox_id)
        if found.broken:
            raise errors.Unavailable(f"sandbox {sandbox_id}: {found.broken}")
        if not found.is_running:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")
        return found


def _merged(now: Mapping[str, T], new: Mapping[str, T], key: str) -> dict[str, T]:
    """`new`; with a key, `now` with that one key as `new` has it, or without it."""
    if not key:
        return dict(new)
    rest = {name: value for name, value in now.items() if name != key}
    return {**rest, key: new[key]} if key in new else rest
