"""What the sandboxers over shims share: the sandboxes that they hold, whose turn it is, and how each ended.

One question a sandbox is asked of its shim, however many wait: when it ends. A fault on the way to the answer is
retried here, after pauses that double up to 5 min. So what status tells is known without asking (C28, C30, C42).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, TypeVar

from atoll import errors, faults
from atoll.concurrency import Blocking, Latch, TaskOwner, run_to_completion
from atoll.runtime.bundle import Bundle
from atoll.runtime.ending import kill_recorded
from atoll.runtime.link import Link
from atoll.runtime.shim import Launcher, LaunchRequest
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    CleanupFailed,
    Controller,
    ControllerInstance,
    ControllerStatus,
    ExitStatus,
    Platform,
    Sandbox,
    State,
    host_platform,
)
from atoll.shim import records

log = logging.getLogger(__name__)

CLEANUP_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 300.0


class Undoing:
    """The steps of a clean-up, each done whatever the others do: which succeeded, which did not and why."""

    def __init__(self) -> None:
        self.undone: list[str] = []
        self.left: list[str] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Generator[None]:
        """One step; its error is kept, not raised."""
        point = f"sandboxer undo/{what.partition(' of sandbox ')[0]}"
        faults.reached(point, fails=False)  # what is inside cannot be left out
        try:
            yield
            faults.reached(f"{point}{faults.DONE}")
        except OSError as error:
            self.left.append(f"{what} ({error.filename or ''}: {error.strerror})")
        except errors.AtollError as error:
            self.left.append(f"{what} ({error})")
        else:
            self.undone.append(what)


@dataclass(slots=True, kw_only=True)
class Held:
    """One sandbox, from its creation until it is shut down."""

    sandbox: Sandbox
    request: LaunchRequest
    link: Link
    instance: ControllerInstance | None = None
    is_stopped: bool = False
    broken: str = ""
    """What a failed start left, in words; empty for nothing."""
    doubt: str = ""
    """Why nobody can tell now whether it has ended; empty where that is known."""
    lost: str = ""
    """Why its shim could not tell how it ended."""
    exit: Latch[ExitStatus | None] = field(default_factory=Latch[ExitStatus | None])
    """How it ended; None where the controller was closed before."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    is_watched: bool = False

    @property
    def id(self) -> str:
        return self.request.id


H = TypeVar("H", bound=Held)


class HeldController(Controller, Generic[H]):
    """A controller whose sandboxes are found by ID in memory; `recover` and `shutdown` know those on disk, too."""

    def __init__(self, *, launcher: Launcher, namespace: str, blocking: Blocking) -> None:
        self._launcher = launcher
        self._namespace = namespace
        self._blocking = blocking
        self._held: dict[str, H] = {}
        self._tasks = TaskOwner("sandboxer")

    def _request(self, sandbox: Sandbox, bundle: Bundle) -> LaunchRequest:
        return LaunchRequest(id=sandbox.id, namespace=self._namespace, runtime=sandbox.runtime, bundle=bundle)

    def _get(self, sandbox_id: str) -> H:
        held = self._held.get(sandbox_id)
        if held is None:
            raise errors.NotFound(f"sandbox {sandbox_id}: is not known to this sandboxer")
        return held

    @contextlib.asynccontextmanager
    async def _turn(self, held: H) -> AsyncGenerator[None]:
        """What changes a sandbox takes turns; `NotFound` for one that was shut down before its turn came."""
        async with held.turn:
            if self._held.get(held.id) is not held:
                raise errors.NotFound(f"sandbox {held.id}: was shut down")
            yield

    # what a sandbox can do

    def _require_fresh(self, held: H) -> None:
        if held.broken:
            raise errors.FailedPrecondition(f"sandbox {held.id}: its start failed; shut it down: {held.broken}")
        if held.is_stopped or held.exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {held.id}: has ended; create another one")
        if held.instance is not None:
            raise errors.FailedPrecondition(f"sandbox {held.id}: is started already")

    def _require_alive(self, held: H) -> None:
        if held.broken:
            raise errors.Unavailable(f"sandbox {held.id}: its start failed; shut it down: {held.broken}")
        if held.is_stopped or held.exit.is_set:
            raise errors.FailedPrecondition(f"sandbox {held.id}: has ended")

    def _require_running(self, held: H) -> None:
        self._require_alive(held)
        if held.instance is None:
            raise errors.FailedPrecondition(f"sandbox {held.id}: is not started")

    def _still_running(self, held: H, error: errors.AtollError) -> errors.AtollError:
        """What to answer where the shim could not: that it has ended, where it has."""
        if held.exit.is_set or held.link.is_gone or isinstance(error, errors.NotFound):
            return errors.FailedPrecondition(f"sandbox {held.id}: is not running: {error}")
        return error

    # the end

    @abstractmethod
    async def _asked_end(self, held: H) -> ExitStatus:
        """How it ended, once it has; an error is retried."""

    def _settle(self, held: H, ended: ExitStatus) -> None:
        """It has ended: whoever waits is told. Once, and the same to all."""
        held.exit.set(ended)

    def _watch(self, held: H) -> None:
        """See to the end of a sandbox, once; a start or a recovery calls it."""
        if not held.is_watched and not held.exit.is_set:
            held.is_watched = True
            self._tasks.spawn(self._see_the_end(held), name=f"sandbox/{held.id}/end")

    async def _see_the_end(self, held: H) -> None:
        pause_s = FIRST_PAUSE_S
        while not held.exit.is_set:
            held.nudge.clear()
            try:
                self._settle(held, await self._asked_end(held))
            except errors.AtollError as error:
                held.doubt = str(error)
                log.warning("sandbox %s: its end is asked for again in %g s: %s", held.id, pause_s, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(held.nudge.wait(), pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        held.doubt = ""

    async def _recorded_end(self, held: H, error: errors.AtollError) -> ExitStatus:
        """The end as a shim that is gone recorded it, else one that says that nobody knows."""
        held.lost = str(error)
        try:
            recorded = await self._launcher.ended(held.request)
        except errors.DataLoss as damage:
            log.warning("sandbox %s: how it ended is lost: %s", held.id, damage)
            recorded = None
        return recorded or unknown_exit()

    async def _ends(self, held: H) -> None:
        """Wait until it is known to have ended, after whoever ran it said so."""
        held.nudge.set()
        try:
            await asyncio.wait_for(held.exit.wait(), END_TIMEOUT_S)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"sandbox {held.id}: was stopped, but does not end within {END_TIMEOUT_S:g} s: {held.doubt}"
            ) from None

    async def _kill_shim(self, held: H, error: errors.DataLoss) -> None:
        """End a shim that cannot be asked, for where it answers is lost, by the process that its record names."""
        log.warning("sandbox %s: its shim is killed: %s", held.id, error)
        await kill_recorded(held.request.bundle.path / records.SHIM, held.id)

    def hang_up(self, sandbox_id: str) -> None:
        """Break the connection to a shim that was given up, so that nobody waits for its answer any more."""
        held = self._held.get(sandbox_id)
        if held is not None:
            held.link.hang_up()

    async def wait(self, sandbox_id: str) -> ExitStatus:
        ended = await self._get(sandbox_id).exit.wait()
        if ended is None:
            raise errors.Unavailable(f"sandbox {sandbox_id}: its sandboxer is closing; ask again")
        return ended

    # a failed start

    @abstractmethod
    async def _free(self, held: H) -> Undoing:
        """Take everything of it down and forget it; what is left keeps it known. Idempotent."""

    async def _undo(self, held: H, cause: BaseException) -> None:
        """Take back a failed create or start; what cannot be taken back is named and left to `shutdown`."""
        try:
            undoing = await run_to_completion(self._free(held), within=CLEANUP_TIMEOUT_S)
        except errors.AtollError as error:
            undoing = Undoing()
            undoing.left.append(f"sandbox {held.id} ({error})")
        if undoing.left:
            held.broken = ", ".join(undoing.left)
            log.warning("sandbox %s: not undone after a failed start: %s", held.id, held.broken)
            if isinstance(cause, errors.AtollError):
                raise CleanupFailed(cause, tuple(undoing.left), tuple(undoing.undone)) from cause

    async def _free_all(self, held: H) -> None:
        """Shut one down; raises `Unavailable` naming what is left."""
        async with held.turn:
            if held.id in self._held and self._held[held.id] is not held:
                return  # another one has the ID by now
            undoing = await run_to_completion(self._free(held), within=CLEANUP_TIMEOUT_S)
            if undoing.left:
                held.is_stopped = True
                held.broken = ", ".join(undoing.left)
                raise errors.Unavailable(f"sandbox {held.id}: not freed yet: {held.broken}; shut it down again")

    def _forget(self, held: H) -> None:
        held.exit.set(unknown_exit())  # whoever still waits is told
        if self._held.get(held.id) is held:
            del self._held[held.id]

    # questions

    async def platform(self, sandbox_id: str) -> Platform:
        self._get(sandbox_id)
        return host_platform()

    def _known(self, held: H) -> ControllerStatus | None:
        """What is known of it without asking; None where that is not sure."""
        if held.broken:
            return self._told(held, State.UNKNOWN, reason=held.broken)
        if held.exit.is_set:
            return self._told(held, State.NOTREADY, reason=held.lost)
        if held.doubt:
            return None
        if held.instance is None:
            return self._told(held, State.NOTREADY)
        return self._told(held, State.READY) if held.link.is_connected else None

    def _told(self, held: H, state: State, *, reason: str = "") -> ControllerStatus:
        instance, ended = held.instance, held.exit.value
        serves = instance if not held.link.is_gone else None
        return ControllerStatus(
            sandbox_id=held.id,
            state=state,
            pid=instance.pid if instance is not None and ended is None else 0,
            created_at=instance.created_at if instance is not None else None,
            exited_at=ended.exited_at if ended is not None else None,
            exit_status=ended.exit_status if ended is not None else None,
            address=serves.address if serves is not None else "",
            version=serves.version if serves is not None else 0,
            reason=reason,
        )

    async def aclose(self) -> None:
        """Let go of the connections; the sandboxes live on."""
        await self._tasks.aclose()
        for held in self._held.values():
            held.exit.set(None)
            await held.link.aclose()


def unknown_exit() -> ExitStatus:
    """The end of what nobody can tell the end of."""
    return ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=datetime.now(UTC))
