"""A shim's containers stopped together, as a paused pod is, and let go again.

Each container is stopped by its own cgroup, wherever that is, and not by the pod's: then SIGKILL of one container of a
paused pod ends that one, also where a version 1 freezer holds it. A process that is added to a cgroup that stands would
stand before it is made, and whoever makes it would hang; so what adds processes passes a gate, which is closed first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Generator, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from atoll import errors
from atoll.linux import freezer, process

FREEZE_TIMEOUT_S = 5.0

T = TypeVar("T")


class Frozen(Protocol):
    """A container, as far as its freezer is concerned."""

    @property
    def id(self) -> str: ...

    @property
    def cgroups(self) -> tuple[Path, ...]: ...

    @property
    def is_paused(self) -> bool:
        """Whether it was paused by itself, and is to stay so."""
        ...


class Freezer:
    """What a pause of everything holds; one a shim. Calls of `freeze` and `thaw` are ordered by who makes them."""

    def __init__(self, what: str) -> None:
        """`what` is how errors name that which is paused."""
        self._what = what
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._held: list[freezer.Freezing] = []
        self._holder = 0
        self.is_closed = False
        """Whether no process may be added: from the beginning of a pause to its end."""
        self.is_frozen = False
        """Whether everything stands."""

    @contextlib.contextmanager
    def adding(self, operation: str) -> Generator[None]:
        """Within, processes may be added or the freezer of a container changed; `FailedPrecondition` in a pause."""
        if self.is_closed:
            raise errors.FailedPrecondition(f"{operation}: {self._what} is paused; resume it first")
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    async def guarded(self, work: Coroutine[None, None, T], operation: str) -> T:
        """Do `work` inside `adding`; where that refuses, it has not begun."""
        try:
            with self.adding(operation):
                return await work
        finally:
            work.close()

    async def freeze(self, containers: Callable[[], Iterable[Frozen]], holder: int = 0) -> None:
        """Stop every process of `containers`, asked for once nothing is added any more, and the process `holder`.

        Idempotent. Raises `FailedPrecondition` for a container without a freezer, `DeadlineExceeded` where not all
        stand in time; then all go on.
        """
        if self.is_frozen:
            return
        self.is_closed = True
        try:
            async with asyncio.timeout(FREEZE_TIMEOUT_S):
                await self._idle.wait()
                await self._freeze(containers(), holder)
        except BaseException as error:
            late = self._late()
            self.thaw()
            if isinstance(error, TimeoutError):
                raise errors.DeadlineExceeded(f"{self._what}: {late} within {FREEZE_TIMEOUT_S:g} s") from None
            raise
        self.is_frozen = True

    def _late(self) -> str:
        """What a freeze still waits for."""
        if self._inside:
            return f"{self._inside} operations that add processes did not end"
        late = [str(held.folders[0]) for held in self._held if not freezer.is_frozen(held.folders)]
        return f"{', '.join(late) or 'its holder'} did not freeze"

    async def _freeze(self, containers: Iterable[Frozen], holder: int) -> None:
        for container in containers:
            if container.is_paused or _is_gone(container.cgroups):
                continue
            if not freezer.has_freezer(container.cgroups):
                raise errors.FailedPrecondition(f"container {container.id}: its cgroup has no freezer")
            self._held.append(freezer.Freezing(container.cgroups))
        if holder:
            # It is in no cgroup of the pod. Nothing holds back SIGSTOP, and its parent is told of ends only.
            self._holder = holder
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, signal.SIGSTOP)
        late = self._held
        while late := [held for held in late if not held.poll()]:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(freezer.PAUSE_S)
        while not _stands(holder):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(freezer.PAUSE_S)

    async def hold_again(self, container: Frozen) -> None:
        """Stop a container of a pause again, which was let go so that a SIGKILL to one of its execs took effect."""
        again = next((held for held in self._held if held.folders == container.cgroups), None)
        if not self.is_frozen or again is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FREEZE_TIMEOUT_S):
                while not again.poll():  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(freezer.PAUSE_S)

    def thaw(self) -> None:
        """Let everything go on that `freeze` stopped; idempotent. Raises `OSError`, and can be tried again."""
        for held in self._held:
            freezer.thaw(held.folders)
        if self._holder:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._holder, signal.SIGCONT)
        self._held, self._holder = [], 0
        self.is_frozen = self.is_closed = False


def _is_gone(folders: tuple[Path, ...]) -> bool:
    return bool(folders) and not any(folder.exists() for folder in folders)


def _stands(pid: int) -> bool:
    seen = process.stat(pid) if pid else None
    return seen is None or seen.state in "TtZX"
