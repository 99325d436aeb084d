"""Structured concurrency for a daemon that must not lose work.

`TaskOwner` holds named background tasks whose failures are logged and never cancel a sibling;
`run_to_completion` finishes clean-up although its caller is cancelled; `SingleFlight` lets equal
requests join the one in flight; `Latch` is an event that carries a value and is set once.
This is the only module that makes asyncio tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

from atoll import errors

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
log = logging.getLogger(__name__)


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
            log.error("task %s failed: %s", task.get_name(), error, exc_info=error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def aclose(self) -> None:
        """Cancel every task and wait for it; idempotent."""
        self._closed = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> TaskOwner:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def run_to_completion(work: Coroutine[Any, Any, T], *, within: float) -> T:
    """Finish `work`, bounded by `within` seconds, even if the caller is cancelled again and again.

    The caller's cancellation is re-raised after the work has ended. Work that outlasts the bound is
    cancelled and raises `DeadlineExceeded`.
    """
    task = asyncio.get_running_loop().create_task(work, name="run_to_completion")
    deadline = asyncio.get_running_loop().time() + within
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=1.0)
            if cancelled is not None:
                raise cancelled
            raise errors.DeadlineExceeded(f"clean-up was not done within {within:g} s")
        try:
            await asyncio.wait({task}, timeout=remaining)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("clean-up of a cancelled caller failed: %s", error, exc_info=error)
        raise cancelled
    return task.result()


class SingleFlight(Generic[K, T]):
    """Equal keys share one running operation; a caller that goes away does not stop it.

    The operation runs as a task of `owner`, so it ends with its owner and not with a caller.
    """

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._flights: dict[K, asyncio.Future[T]] = {}

    def running(self, key: K) -> asyncio.Future[T] | None:
        """The future of the operation in flight under `key`, if there is one."""
        return self._flights.get(key)

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> T:
        """Join the operation of `key`, starting it where none runs; its error reaches every caller."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_future()
            flight.add_done_callback(_retrieve)
            self._flights[key] = flight
            try:
                self._owner.spawn(self._fly(key, flight, work), name=name)
            except errors.AtollError:
                del self._flights[key]
                raise
        return await asyncio.shield(flight)

    async def _fly(self, key: K, flight: asyncio.Future[T], work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        try:
            result = await work()
        except asyncio.CancelledError:
            flight.cancel()
            raise
        except Exception as error:  # settled into the future: every caller gets it
            flight.set_exception(error)
        else:
            flight.set_result(result)
        finally:
            del self._flights[key]


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
