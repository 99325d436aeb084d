"""Structured concurrency for a daemon that must not lose work.

`TaskOwner` holds named background tasks whose failures are logged and never cancel a sibling;
`run_to_completion` finishes clean-up although its caller is cancelled; `SingleFlight` lets equal
requests join the one in flight; `Latch` is an event that carries a value and is set once.
This is the only module that makes asyncio tasks.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import typing
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from atoll import errors

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
log = logging.getLogger(__name__)

CANCEL_LIMIT_S = 1.0
"""How long cancelled work may take to end before nobody waits for it any more."""


class TaskOwner:
    """Owns background tasks; leaving the context cancels them and waits until each has ended.

    A task that fails is logged with its name; its siblings go on.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start `work` as the task `name`; the task's own result and error stay readable."""
        if self._closed:
            work.close()
            raise errors.Unavailable(f"{self._name}: is closed, cannot start {name}")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            trace = None if isinstance(error, errors.AtollError) else error  # one of ours says all there is to say
            log.error("task %s failed: %s", task.get_name(), error, exc_info=trace)

    def __len__(self) -> int:
        return len(self._tasks)

    async def aclose(self) -> None:
        """Cancel every task and wait for it, even if cancelled meanwhile; idempotent.

        A task may close its own owner; it is neither cancelled nor waited for.
        """
        self._closed = True
        cancelled: asyncio.CancelledError | None = None
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        while others := self._tasks - {asyncio.current_task()}:
            try:
                await asyncio.wait(others)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def run_to_completion(work: Coroutine[Any, Any, T], *, within: float) -> T:
    """Finish `work`, bounded by `within` seconds, even if the caller is cancelled again and again.

    The caller's cancellation is re-raised after the work has ended. Work that outlasts the bound is
    cancelled, given another second to end, and raises `DeadlineExceeded`; work that is cancelled by
    somebody else raises `Cancelled`.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work, name="run_to_completion")
    cancelled = await _outlive(task, loop.time() + within)
    late = not task.done()
    if late:
        _give_up(task)
        cancelled = await _outlive(task, loop.time() + CANCEL_LIMIT_S) or cancelled
    error = task.exception() if task.done() and not task.cancelled() else None
    if cancelled is not None:
        if error is not None:
            log.error("clean-up of a cancelled caller failed: %s", error, exc_info=error)
        raise cancelled
    if late:
        raise errors.DeadlineExceeded(f"clean-up was not done within {within:g} s") from error
    if task.cancelled():
        raise errors.Cancelled("clean-up was cancelled")
    return task.result()


async def _outlive(task: asyncio.Task[Any], deadline: float) -> asyncio.CancelledError | None:
    """Wait until the task is done or the deadline passes; the last cancellation of the caller meanwhile."""
    loop = asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    while not task.done() and (remaining := deadline - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=remaining)
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


_given_up: set[asyncio.Task[Any]] = set()


def _give_up(task: asyncio.Task[Any]) -> None:
    """Cancel a task that nobody will wait for; it is held until it ends, and its error is not lost."""
    _given_up.add(task)
    task.add_done_callback(_ended_late)
    task.cancel()


def _ended_late(task: asyncio.Task[Any]) -> None:
    _given_up.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("task %s failed after it was given up: %s", task.get_name(), error, exc_info=error)


async def settle(work: Coroutine[Any, Any, T], *, within: float, name: str) -> T | BaseException:
    """Run `work`, bounded by `within` seconds, and give its result, or as a value the error it ended with.

    For walks that must go on whatever one step does. Work that outlasts the bound is cancelled and
    given up: `DeadlineExceeded`. The caller's own cancellation cancels the work and is raised.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    try:
        await asyncio.wait({task}, timeout=within)
    except asyncio.CancelledError:
        _give_up(task)
        raise
    if not task.done():
        _give_up(task)
        await asyncio.wait({task}, timeout=CANCEL_LIMIT_S)
        return errors.DeadlineExceeded(f"{name}: not done within {within:g} s")
    if task.cancelled():
        return errors.Cancelled(f"{name}: was cancelled")
    error = task.exception()
    return task.result() if error is None else error


class SingleFlight(Generic[K, T]):
    """Equal keys share one running operation; a caller that goes away does not stop it.

    The operation runs as a task of `owner`, so it ends with its owner and not with a caller.
    """

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._flights: dict[K, asyncio.Future[T]] = {}
        self._asked: dict[K, object] = {}

    def asked(self, key: K, none: object = None) -> object:
        """What the operation in flight under `key` was started for; `none` where none is."""
        return self._asked.get(key, none)

    def running(self, key: K) -> asyncio.Future[T] | None:
        """A future of the operation in flight under `key`, if there is one; cancelling it stops nothing."""
        flight = self._flights.get(key)
        if flight is None:
            return None
        follower = asyncio.shield(flight)
        follower.add_done_callback(_retrieve)
        return follower

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, T]], *, name: str, asked: object = None) -> T:
        """Join the operation of `key`, starting it where none runs; its error reaches every caller.

        `asked` is what the work is for, kept while it runs, for a caller that joins nothing but what it wants.
        Raises `Unavailable` where the owner closes before the operation ends.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_future()
            flight.add_done_callback(_retrieve)
            task = self._owner.spawn(self._fly(work), name=name)
            self._flights[key], self._asked[key] = flight, asked
            task.add_done_callback(functools.partial(self._land, key, flight))
        return await asyncio.shield(flight)

    @staticmethod
    async def _fly(work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T | None, Exception | None]:
        try:
            return await work(), None
        except Exception as error:  # settled into the future: every caller gets it
            return None, error

    def _land(self, key: K, flight: asyncio.Future[T], task: asyncio.Task[tuple[T | None, Exception | None]]) -> None:
        """Settle the flight; a callback, because a task cancelled before its first step runs nothing of its own."""
        del self._flights[key], self._asked[key]
        if task.cancelled():
            flight.set_exception(errors.Unavailable(f"{task.get_name()}: was stopped before it ended; try again"))
        elif (fault := task.exception()) is not None:
            flight.set_exception(fault)
        else:
            result, error = task.result()
            if error is not None:
                flight.set_exception(error)
            else:
                flight.set_result(typing.cast("T", result))


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


class Latch(Generic[T]):
    """Set once to a value; every wait, before or after, gets that value."""

    def __init__(self) -> None:
        self._value: list[T] = []
        self._event = asyncio.Event()

    def set(self, value: T) -> bool:
        """Set the value; False, and nothing changes, where it was set before."""
        if self._value:
            return False
        self._value.append(value)
        self._event.set()
        return True

    @property
    def value(self) -> T | None:
        return self._value[0] if self._value else None

    @property
    def is_set(self) -> bool:
        return bool(self._value)

    async def wait(self) -> T:
        await self._event.wait()
        return self._value[0]


class Blocking:
    """A small thread pool for calls that can take a millisecond: mounts, unlinks, statvfs."""

    def __init__(self, threads: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="atoll-blocking")

    async def run(self, work: Callable[..., T], /, *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


async def wait_all(works: list[Awaitable[T]]) -> list[T]:
    """Run all; when one fails the rest still finish, then the first failure is raised."""
    results: list[T | BaseException] = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
