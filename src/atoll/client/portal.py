"""A thread with an event loop, by which a program that has no loop runs coroutines.

    any thread ── run(work) ──> the loop's thread: a task ── result or error ──> the thread that asked

The loop ends with `close`, and where nobody called that, when the portal is collected or the program ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from atoll import errors
from atoll.concurrency import TaskOwner

T = TypeVar("T")

CLOSE_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """What lives on the loop's thread."""

    loop: asyncio.AbstractEventLoop
    owner: TaskOwner
    exits: AsyncExitStack
    over: asyncio.Event


class Portal:
    """One event loop on a thread of its own. Every thread may use it, many at a time."""

    def __init__(self) -> None:
        started: Future[_Running] = Future()
        self._thread = threading.Thread(target=_serve, args=(started,), name="atoll-client", daemon=True)
        self._thread.start()
        self._on = started.result()
        self._finalizer = weakref.finalize(self, _end, self._on, self._thread)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it; its result, or its error.

        An interrupt of the waiting thread cancels the work, waits for its end, and is raised then. Raises
        `Unavailable` after `close`, `FailedPrecondition` on the loop's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise errors.FailedPrecondition("a sync client cannot be called from its own callback: it would hang")
        answer: Future[T] = Future()
        begun: list[asyncio.Task[None]] = []
        try:
            self._on.loop.call_soon_threadsafe(_begin, self._on.owner, work, answer, begun)
        except RuntimeError:  # the loop is closed
            work.close()
            raise errors.Unavailable("the client is closed") from None
        try:
            return answer.result()
        except BaseException:
            if not answer.done():
                with contextlib.suppress(RuntimeError):
                    self._on.loop.call_soon_threadsafe(lambda: [task.cancel() for task in begun])
                wait([answer])
            raise

    def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context manager on the loop; it is left when the portal closes."""
        return self.run(self._on.exits.enter_async_context(context))

    def close(self) -> None:
        """Cancel what runs, leave what was entered, and end the thread. Idempotent."""
        self._finalizer()


def _serve(started: Future[_Running]) -> None:
    try:
        asyncio.run(_live(started))
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


async def _live(started: Future[_Running]) -> None:
    over = asyncio.Event()
    async with AsyncExitStack() as exits, TaskOwner("client") as owner:
        started.set_result(_Running(loop=asyncio.get_running_loop(), owner=owner, exits=exits, over=over))
        await over.wait()


def _end(on: _Running, thread: threading.Thread) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        on.loop.call_soon_threadsafe(on.over.set)
    if threading.current_thread() is not thread:
        thread.join(CLOSE_WITHIN_S)


def _begin(owner: TaskOwner, work: Coroutine[Any, Any, T], answer: Future[T], begun: list[asyncio.Task[None]]) -> None:
    def ended(_: asyncio.Task[None]) -> None:
        work.close()  # a task that was cancelled before its first step has not touched it
        if not answer.done():
            answer.set_exception(errors.Unavailable("the client was closed during the call"))

    try:
        task = owner.spawn(_settle(work, answer), name="client/call")
    except errors.AtollError:
        work.close()
        answer.set_exception(errors.Unavailable("the client is closed"))
        return
    begun.append(task)
    task.add_done_callback(ended)


async def _settle(work: Coroutine[Any, Any, T], answer: Future[T]) -> None:
    try:
        result = await work
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - it is the asking thread's, and raised there
        answer.set_exception(error)
    else:
        answer.set_result(result)
