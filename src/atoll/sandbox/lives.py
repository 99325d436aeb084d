"""The books of a controller that keeps its sandboxes in memory: what each has been through, and how it ended.

    created ──run or begin──> READY ──end──> NOTREADY ──shutdown──> unknown ID
       └──────────────stop────────────────────┘

The errors, the wait that can be repeated and the idempotency are kept here, so that a controller only has to say what
a sandbox is.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from atoll import errors
from atoll.concurrency import Latch, TaskOwner
from atoll.identifiers import require_identifier
from atoll.sandbox.controller import (
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Sandbox,
    State,
    TypedAny,
)


@dataclass(slots=True, kw_only=True, eq=False)
class Life:
    """One sandbox, from its creation on."""

    sandbox: Sandbox
    options: CreateOptions
    instance: ControllerInstance | None = None
    process: asyncio.subprocess.Process | None = None
    _exit: Latch[ExitStatus] = field(default_factory=Latch[ExitStatus])
    _tasks: TaskOwner = field(default_factory=lambda: TaskOwner("sandbox"))

    @property
    def is_running(self) -> bool:
        return self.instance is not None and not self._exit.is_set

    @property
    def exit(self) -> ExitStatus | None:
        """How it ended, once it has."""
        return self._exit.value

    def require_fresh(self) -> None:
        """Before a start: raises `FailedPrecondition` for a sandbox that was started, or stopped, before."""
        if self.instance is not None or self._exit.is_set:
            was = "has ended; create another one" if self._exit.is_set else "is started already"
            raise errors.FailedPrecondition(f"sandbox {self.sandbox.id}: {was}")

    def require_running(self) -> None:
        """Before what only a running sandbox can do: raises `FailedPrecondition` for another one."""
        if not self.is_running:
            raise errors.FailedPrecondition(f"sandbox {self.sandbox.id}: is not running")

    async def run(self, *command: str, env: Mapping[str, str] | None = None) -> ControllerInstance:
        """Execute the one process that the sandbox is, without a shell; its end is the sandbox's. What `start` answers.

        Raises `FailedPrecondition` where it was started before, or where the program cannot be executed.
        """
        self.require_fresh()
        try:
            self.process = await asyncio.create_subprocess_exec(*command, env=env, start_new_session=True)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"sandbox {self.sandbox.id}: {command[0]}: cannot be executed: {error.strerror}"
            ) from error
        self._tasks.spawn(self._follow(self.process), name=f"sandbox/{self.sandbox.id}/wait")
        return self.begin(self.process.pid)

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        self.end(await process.wait())

    def begin(
        self, pid: int, *, address: str = "", version: int = 0, spec: TypedAny | None = None
    ) -> ControllerInstance:
        """It runs now, as `pid`; somebody must tell its `end`. `address` is where its Task API is served, if it is."""
        self.require_fresh()
        self.instance = ControllerInstance(
            sandbox_id=self.sandbox.id,
            pid=pid,
            created_at=datetime.now(UTC),
            labels=self.sandbox.labels,
            address=address,
            version=version,
            spec=spec or self.sandbox.spec,
        )
        return self.instance

    def end(self, returncode: int = 0) -> None:
        """It has ended: by an exit code, or negative by a signal, as `subprocess` has it. The first call counts."""
        status = returncode if returncode >= 0 else 128 - returncode
        self._exit.set(ExitStatus(exit_status=status, exited_at=datetime.now(UTC)))

    async def stop(self, timeout_s: float | None = None) -> None:
        """End the process: with `timeout_s` by SIGTERM first, then by SIGKILL; returns when it has ended."""
        if self.process is None:
            self.end()  # it was never started, and cannot be any more
        elif timeout_s is not None and self.is_running:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.wait()
        if self.is_running:
            self._signal(signal.SIGKILL)
        await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def wait(self) -> ExitStatus:
        """What `wait` answers: once it has ended, always the same."""
        return await self._exit.wait()

    def status(self, info: Mapping[str, str] | None = None) -> ControllerStatus:
        """What `status` answers; `info` for a verbose one."""
        instance, ended = self.instance, self._exit.value
        return ControllerStatus(
            sandbox_id=self.sandbox.id,
            state=State.READY if self.is_running else State.NOTREADY,
            pid=instance.pid if instance is not None and self.is_running else 0,
            info=dict(info or {}),
            created_at=instance.created_at if instance is not None else None,
            exited_at=ended.exited_at if ended is not None else None,
            address=instance.address if instance is not None else "",
            version=instance.version if instance is not None else 0,
        )


class Lives:
    """The sandboxes of one controller, by ID; to ask for one that is not there is `NotFound`."""

    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}

    def add(self, sandbox: Sandbox, options: CreateOptions) -> Life:
        """A new one; raises `InvalidArgument` for an ID that none can have, `AlreadyExists` for one that is there."""
        if require_identifier(sandbox.id, "sandbox id") in self._lives:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is there already")
        self._lives[sandbox.id] = life = Life(sandbox=sandbox, options=options)
        return life

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        """As the contract's `stop`, for what `Life.run` started. Idempotent; an unknown ID is fine."""
        life = self._lives.get(sandbox_id)
        if life is not None:
            await life.stop(timeout_s)

    async def shutdown(self, sandbox_id: str) -> None:
        """As the contract's `shutdown`: `stop`, then the ID is unknown. Idempotent."""
        await self.stop(sandbox_id)
        self._lives.pop(sandbox_id, None)

    def __getitem__(self, sandbox_id: str) -> Life:
        life = self._lives.get(sandbox_id)
        if life is None:
            raise errors.NotFound(f"sandbox {sandbox_id}: is not known to this controller")
        return life

    def __contains__(self, sandbox_id: str) -> bool:
        return sandbox_id in self._lives

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._lives))

    def __len__(self) -> int:
        return len(self._lives)
