"""Operations that callers ask for over a wire: in turn, finished whoever leaves, undone where nobody got the answer.

    asked ──its turn──> runs ──> answered
                          └── its caller left ──> ends ──> undone ──undo fails──> a debt, tried again

Of one sandbox, creates, starts, updates, pauses and resumes go one after the other (C40); stops and shutdowns wait for
those, but not for each other (C23). A caller that gives up on a create or a start is never heard of again (containerd
calls neither Stop nor Shutdown then), so what it asked for is taken away again (C45).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from atoll import errors
from atoll.concurrency import TaskOwner, run_to_completion, settle
from atoll.sandbox.controller import CleanupFailed

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]
Undo = Callable[[], Coroutine[Any, Any, None]]
Key = tuple[str, str]
"""A containerd namespace and a sandbox ID."""

UNDO_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Turn:
    """Who changes one sandbox now, and who waits; there while there is somebody."""

    users: int = 0
    changing: int = 0
    ending: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def is_free(self, *, ends: bool) -> bool:
        return not self.changing and (ends or not self.ending)


@dataclass(slots=True)
class _Asked:
    """One call; `is_abandoned` once its caller has left."""

    is_abandoned: bool = False


@dataclass(slots=True, frozen=True)
class _Debt:
    """What a sandbox that should be gone still needs; `is_known` where its caller was told of it."""

    undo: Undo
    is_known: bool = False


class Operations:
    """Runs operations as its own tasks; `aclose` lets what runs end, within `CLOSE_TIMEOUT_S`."""

    def __init__(self) -> None:
        self._tasks = TaskOwner("sandbox operations")
        self._running: set[asyncio.Task[Any]] = set()
        self._turns: dict[Key, _Turn] = {}
        self._debts: dict[Key, _Debt] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._running)

    @property
    def debts(self) -> frozenset[Key]:
        """The sandboxes that should be gone and could not be taken away yet."""
        return frozenset(self._debts)

    async def run(
        self, key: Key, name: str, work: Work[T], *, within: float, undo: Undo | None = None, ends: bool = False
    ) -> T:
        """Do `work` when the sandbox's turn comes, and give its result or its error. `ends`: a stop or shutdown.

        A caller that is cancelled leaves work that has begun to its end, and what has not begun undone. With `undo`,
        work that ended well is undone where its caller had left; what a `CleanupFailed` left is undone later, and
        both are tried until they succeed. Work that outlasts `within` seconds is cancelled: `DeadlineExceeded`.
        """
        if self._is_closed:
            raise errors.Unavailable("the server is shutting down")
        asked = _Asked()
        task = self._tasks.spawn(
            self._in_turn(key, name, asked, work, within=within, undo=undo, ends=ends), name=f"sandbox/{key[1]}/{name}"
        )
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            outcome = await asyncio.shield(task)
        except asyncio.CancelledError:
            asked.is_abandoned = True
            if not task.done():
                raise
            if task.cancelled():
                raise errors.Unavailable(f"sandbox {key[1]}: {name} was stopped before its end; ask again") from None
            if undo is not None and not isinstance(task.result(), BaseException):
                self._undo_later(key, undo)
            raise
        if isinstance(outcome, TimeoutError):
            raise errors.DeadlineExceeded(f"sandbox {key[1]}: {name}: {outcome or 'the time ran out'}") from outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def _in_turn(
        self, key: Key, name: str, asked: _Asked, work: Work[T], *, within: float, undo: Undo | None, ends: bool
    ) -> T | BaseException:
        async with self._turn(key, ends=ends):
            if asked.is_abandoned:
                return errors.Cancelled(f"sandbox {key[1]}: {name} was given up before its turn")
            try:
                outcome = await settle(work(), within=within, name=f"sandbox/{key[1]}/{name}/work")
            except asyncio.CancelledError:
                if undo is not None:
                    await run_to_completion(self._undo(key, undo), within=UNDO_TIMEOUT_S)
                raise
            if undo is None:
                return outcome
            if isinstance(outcome, errors.DeadlineExceeded) or (
                asked.is_abandoned and not isinstance(outcome, BaseException)
            ):
                log.warning("sandbox %s: %s is undone: nobody waits for it, or it took too long", key[1], name)
                await self._undo(key, undo)
            elif isinstance(outcome, CleanupFailed):
                self._owe(key, _Debt(undo, is_known=True))
            return outcome

    @contextlib.asynccontextmanager
    async def _turn(self, key: Key, *, ends: bool = False) -> AsyncGenerator[None]:
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            while not turn.is_free(ends=ends):
                await turn.left.wait()
            turn.changing += not ends
            turn.ending += ends
            try:
                yield
            finally:
                turn.changing -= not ends
                turn.ending -= ends
                turn.left.set()
                turn.left = asyncio.Event()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]

    # undoing

    def _undo_later(self, key: Key, undo: Undo) -> None:
        """For an answer that was ready when its caller left."""
        task = self._tasks.spawn(self._undo_in_turn(key, undo), name=f"sandbox/{key[1]}/undo")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _undo_in_turn(self, key: Key, undo: Undo) -> None:
        async with self._turn(key):
            await self._undo(key, undo)

    async def _undo(self, key: Key, undo: Undo) -> bool:
        """Undo, in the sandbox's turn; what fails is a debt from then on."""
        outcome = await settle(undo(), within=UNDO_TIMEOUT_S, name=f"sandbox/{key[1]}/undo")
        if not isinstance(outcome, BaseException) or isinstance(outcome, errors.NotFound):
            self._debts.pop(key, None)
            return True
        log.warning("sandbox %s: is not undone yet, will be tried again: %s", key[1], outcome)
        self._owe(key, _Debt(undo))
        return False

    def _owe(self, key: Key, debt: _Debt) -> None:
        if key not in self._debts and not self._is_closed:
            self._debts[key] = debt
            self._tasks.spawn(self._retry(key), name=f"sandbox/{key[1]}/undo again")

    async def _retry(self, key: Key) -> None:
        pause_s = FIRST_PAUSE_S
        while key in self._debts:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            async with self._turn(key):
                debt = self._debts.get(key)
                if debt is not None:
                    await self._undo(key, debt.undo)

    async def settle_debt(self, key: Key) -> None:
        """In the sandbox's turn, before its ID is used again: pay what nobody knows to be there; `Unavailable` else."""
        debt = self._debts.get(key)
        if debt is not None and not debt.is_known and not await self._undo(key, debt.undo):
            raise errors.Unavailable(f"sandbox {key[1]}: an earlier one of this ID is not undone yet; try again")

    def forgive(self, key: Key) -> None:
        """The sandbox was taken away by its caller."""
        self._debts.pop(key, None)

    async def drain(self, within: float) -> None:
        """Take no more: `Unavailable`. Wait until what runs has ended or is undone, at most `within` s."""
        self._is_closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=within)

    async def aclose(self) -> None:
        """`drain`, then cancel what still runs. Idempotent."""
        await self.drain(CLOSE_TIMEOUT_S)
        await self._tasks.aclose()
