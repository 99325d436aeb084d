"""The books of a controller that keeps its sandboxes in memory: what each has been through, and how it ended.

    created ──run or begin──> READY ──end──> NOTREADY ──shutdown──> unknown ID
       └──────────────stop────────────────────┘

The errors, the wait that can be repeated and the idempotency are kept here, so that a controller only has to say what
a sandbox is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from atoll import errors
from atoll.concurrency import Latch, TaskOwner, run_to_completion
from atoll.identifiers import require_identifier
from atoll.sandbox import annotations
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Sandbox,
    State,
    TypedAny,
)
from atoll.sandbox.info import SandboxInfo
from atoll.sandbox.namespaces import namespaces_of

HINTS = frozenset({annotations.FILES, annotations.CGROUP})
"""Annotations by which Atoll's daemon tells where a pod's things may be found or put; they ask for nothing."""
UNDO_TIMEOUT_S = 10.0
LAST_WORDS_S = 1.0
SAID_LIMIT = 2048
UNSHARE_WAS_KILLED = "sigprocmask"
"""unshare(1) ends by the signal that ended its child, which for SIGKILL it cannot: then it says so and ends with 1."""
log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Life:
    """One sandbox, from its creation on."""

    sandbox: Sandbox
    options: CreateOptions
    instance: ControllerInstance | None = None
    process: asyncio.subprocess.Process | None = None
    _child: int = -1
    _said: str = ""
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

    async def execute(self, command: Sequence[str], *, env: Mapping[str, str] | None, prompt: bytes) -> None:
        """Start the process, and see that it runs what was asked for; its end is the sandbox's."""
        talk = asyncio.subprocess.PIPE if prompt else asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *command, env=env, start_new_session=True, stdin=talk, stdout=talk, stderr=asyncio.subprocess.PIPE
            )
        except OSError as error:
            raise errors.FailedPrecondition(
                f"sandbox {self.sandbox.id}: {command[0]}: cannot be executed: {error.strerror}"
            ) from error
        self.process = process
        listening = self._tasks.spawn(self._listen(process), name=f"sandbox/{self.sandbox.id}/stderr")
        self._tasks.spawn(self._follow(process, listening), name=f"sandbox/{self.sandbox.id}/wait")
        if process.stdin is not None and process.stdout is not None:
            with contextlib.suppress(ConnectionError):  # it has ended, which the next line sees too
                process.stdin.write(prompt)
                await process.stdin.drain()
            if not await process.stdout.read(1):
                code = await process.wait()
                await asyncio.wait({listening}, timeout=LAST_WORDS_S)
                raise errors.FailedPrecondition(
                    f"sandbox {self.sandbox.id}: {command[0]} ended with {code} before it answered: {self._said}"
                )

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Read what the process says on stderr, so that it can; the end of it is told where a start fails."""
        assert process.stderr is not None
        while words := (await process.stderr.read(SAID_LIMIT)).decode("utf-8", "replace"):
            log.debug("sandbox %s: stderr: %s", self.sandbox.id, words.rstrip())
            self._said = (self._said + words)[-SAID_LIMIT:]

    async def _follow(self, process: asyncio.subprocess.Process, listening: asyncio.Task[None]) -> None:
        returncode = await process.wait()
        if self._child >= 0:
            os.close(self._child)
            self._child = -1
            await asyncio.wait({listening}, timeout=LAST_WORDS_S)
            if returncode == 1 and UNSHARE_WAS_KILLED in self._said:
                returncode = -signal.SIGKILL
        self.end(returncode)

    def main_pid(self, *, forks: bool) -> int:
        """The process that stands for the sandbox; where the command `forks`, its child, which is signalled then."""
        assert self.process is not None
        pid = self.process.pid
        if not forks:
            return pid
        with contextlib.suppress(OSError, ValueError):
            (child,) = (int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            self._child = os.pidfd_open(child)
            return child
        raise errors.FailedPrecondition(f"sandbox {self.sandbox.id}: process {pid} has not the one child it should")

    async def name(self, pid: int, hostname: str) -> None:
        """Set the hostname of a process's UTS namespace."""
        command = ("nsenter", f"--uts=/proc/{pid}/ns/uts", "--", "hostname", "--", hostname)
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        if await process.wait() != 0:
            raise errors.FailedPrecondition(f"sandbox {self.sandbox.id}: hostname {hostname!r} cannot be set")

    def begin(
        self, pid: int, *, at: datetime | None = None, address: str = "", version: int = 0, spec: TypedAny | None = None
    ) -> ControllerInstance:
        """It runs since `at`, or now, as `pid`; what `start` answers. Somebody must tell its `end`.

        `address` is where its Task API is served, if it is.
        """
        self.require_fresh()
        self.instance = ControllerInstance(
            sandbox_id=self.sandbox.id,
            pid=pid,
            created_at=at or datetime.now(UTC),
            labels=self.sandbox.labels,
            address=address,
            version=version,
            spec=spec or self.sandbox.spec,
        )
        return self.instance

    def end(self, returncode: int = 0, *, at: datetime | None = None) -> None:
        """It has ended: by an exit code, or negative by a signal, as `subprocess` has it. The first call counts."""
        status = returncode if returncode >= 0 else 128 - returncode
        self._exit.set(ExitStatus(exit_status=status, exited_at=at or datetime.now(UTC)))

    async def stop(self, timeout_s: float | None = None) -> None:
        """End the process: with `timeout_s` by SIGTERM first, then by SIGKILL; returns when it has ended."""
        if self.process is None:
            self.end()  # it was never started, and cannot be any more
        elif timeout_s is not None and not self._exit.is_set:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.wait()
        if not self._exit.is_set:
            self._signal(signal.SIGKILL)
        await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._child >= 0:
                signal.pidfd_send_signal(self._child, number)
            elif self.process is not None:
                self.process.send_signal(number)

    async def wait(self) -> ExitStatus:
        """What `wait` answers: once it has ended, always the same."""
        return await self._exit.wait()

    def status(self, verbose: bool = False) -> ControllerStatus:
        """What `status` answers."""
        instance, ended = self.instance, self._exit.value
        return ControllerStatus(
            sandbox_id=self.sandbox.id,
            state=State.READY if self.is_running else State.NOTREADY,
            pid=instance.pid if instance is not None and self.is_running else 0,
            info=self._info().encode() if verbose else {},
            created_at=instance.created_at if instance is not None else None,
            exited_at=ended.exited_at if ended is not None else None,
            exit_status=ended.exit_status if ended is not None else None,
            address=instance.address if instance is not None else "",
            version=instance.version if instance is not None else 0,
        )

    def _info(self) -> SandboxInfo:
        ended = "stopped" if self._exit.is_set else "created"
        return SandboxInfo(
            pid=self.instance.pid if self.instance is not None and self.is_running else 0,
            process_status="running" if self.is_running else ended,
            runtime_type=self.sandbox.runtime.name,
            labels=dict(self.sandbox.labels),
            annotations=dict(self.options.annotations),
            netns=self.options.netns_path,
        )


class Lives:
    """The sandboxes of one controller, by ID; to ask for one that is not there is `NotFound`."""

    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}

    def add(self, sandbox: Sandbox, options: CreateOptions, *, takes: Collection[str] = ()) -> Life:
        """A new one: all that `create` has to do for a sandbox that is one process.

        `takes` names the options that the controller follows: fields of `CreateOptions`, and type URLs for its field
        `options`. Raises `InvalidArgument` for any other that is given, and for an ID that none can have;
        `AlreadyExists` for an ID that is there.
        """
        if require_identifier(sandbox.id, "sandbox id") in self._lives:
            raise errors.AlreadyExists(f"sandbox {sandbox.id}: is there already")
        given = {
            "rootfs": options.rootfs,
            "netns_path": options.netns_path,
            "annotations": options.annotations.keys() - HINTS,
        }
        for name, value in given.items():
            if value and name not in takes:
                raise errors.InvalidArgument(f"sandbox {sandbox.id}: this controller does not follow its {name}")
        if options.options is not None and options.options.type_url not in takes:
            raise errors.InvalidArgument(
                f"sandbox {sandbox.id}: this controller does not follow options of type {options.options.type_url!r}"
            )
        self._lives[sandbox.id] = life = Life(sandbox=sandbox, options=options)
        return life

    async def run(
        self,
        sandbox_id: str,
        *command: str,
        env: Mapping[str, str] | None = None,
        prompt: bytes = b"",
        forks: bool = False,
    ) -> ControllerInstance:
        """Execute the one process that the sandbox is, without a shell; its end is the sandbox's. What `start` answers.

        With a `prompt`, that is written to the process's stdin, and `run` returns when the process has written
        something: by then it is past whatever executed it (`unshare`, `nsenter`), and in its namespaces. Both pipes
        stay open while the controller lives, so that a `cat` ends with it. A command that `forks` has one child, which
        is the sandbox's process (`unshare --fork`); it must have a prompt. Where it fails, the sandbox is gone:
        `FailedPrecondition`, also for one that was started before, which stays.
        """
        life = self[sandbox_id]
        life.require_fresh()
        try:
            await life.execute(command, env=env, prompt=prompt)
            return life.begin(life.main_pid(forks=forks))
        except BaseException:
            await run_to_completion(self.shutdown(sandbox_id), within=UNDO_TIMEOUT_S)
            raise

    async def unshare(
        self, sandbox_id: str, *command: str, env: Mapping[str, str] | None = None, prompt: bytes
    ) -> ControllerInstance:
        """`run` in the namespaces that the options ask for, a pod's config included, with its hostname.

        For controllers that take `netns_path` and `POD_CONFIG`.
        """
        life = self[sandbox_id]
        life.require_fresh()
        try:
            namespaces = namespaces_of(life.options)
            await life.execute((*namespaces.command, *command), env=env, prompt=prompt)
            pid = life.main_pid(forks=namespaces.forks)
            if namespaces.hostname:
                await life.name(pid, namespaces.hostname)
            return life.begin(pid)
        except BaseException:
            await run_to_completion(self.shutdown(sandbox_id), within=UNDO_TIMEOUT_S)
            raise

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        """As the contract's `stop`, for what `Life.run` started. Idempotent; an unknown ID is fine."""
        life = self._lives.get(sandbox_id)
        if life is not None:
            await life.stop(timeout_s)

    async def shutdown(self, sandbox_id: str) -> None:
        """As the contract's `shutdown`: `stop`, then the ID is unknown. Idempotent."""
        await self.stop(sandbox_id)
        self.forget(sandbox_id)

    def forget(self, sandbox_id: str) -> None:
        """The ID is unknown from now on; who still waits is answered. Idempotent."""
        life = self._lives.pop(sandbox_id, None)
        if life is not None:
            life.end(UNKNOWN_EXIT_STATUS)

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
