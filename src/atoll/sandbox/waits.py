"""Many waits for the end of one sandbox as one question (C42)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.sandbox.controller import ExitStatus

Question = Callable[[], Coroutine[Any, Any, ExitStatus]]


@dataclass(slots=True, eq=False)
class _Asked:
    task: asyncio.Task[ExitStatus | errors.AtollError]
    waiters: int = 0


class SharedWaits:
    """Asks once for all who wait under one key, until the answer, or until the last of them has gone."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks = TaskOwner(name)
        self._asked: dict[Hashable, _Asked] = {}

    def __len__(self) -> int:
        return len(self._asked)

    async def join(self, key: Hashable, question: Question) -> ExitStatus:
        """The answer to the question under way for `key`, which is asked where none is; its error reaches all.

        Raises `Unavailable` where `aclose` comes first.
        """
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(self._tasks.spawn(_settled(question), name=f"{self._name}/wait"))
        asked.waiters += 1
        try:
            answer = await asyncio.shield(asked.task)
        except asyncio.CancelledError:
            if asked.task.cancelled():
                raise errors.Unavailable(f"{self._name}: was let go while somebody waited") from None
            raise
        finally:
            asked.waiters -= 1
            if not asked.waiters:
                asked.task.cancel()
            if self._asked.get(key) is asked and (not asked.waiters or asked.task.done()):
                del self._asked[key]
        if isinstance(answer, errors.AtollError):
            raise answer
        return answer

    async def aclose(self) -> None:
        """Let all who wait go. Idempotent."""
        await self._tasks.aclose()


async def _settled(question: Question) -> ExitStatus | errors.AtollError:
    try:
        return await question()
    except errors.AtollError as error:
        return error
