"""The story of every operation: what it did, how long each step took, what it waits on now.

A `Story` belongs to one operation on one subject. Steps nest by time, not by structure. Stories are
kept in memory, `MAX_STORIES` a pod; those of pods that are gone for the last `MAX_ENDED` of them.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from atoll import faults, tracing

P = ParamSpec("P")
T = TypeVar("T")

MAX_STORIES = 64
MAX_ENDED = 128
OK, FAILED = "ok", "failed"
TOLD = {"atoll_told": True}
"""`extra` of a line of the log that says what an operation's end tells too."""


@dataclass(slots=True, kw_only=True)
class Phase:
    """One step. Times are ns; `duration_ns` is -1 while it lasts; `waits_on` names plugin, lock, disk or peer."""

    name: str
    started_at_ns: int
    duration_ns: int = -1
    waits_on: str = ""
    error: str = ""
    task: asyncio.Task[Any] | None = field(default=None, repr=False, compare=False)
    """Whose step it is, and the function that it is a part of, while it lasts."""
    frame: FrameType | None = field(default=None, repr=False, compare=False)


@dataclass(slots=True, kw_only=True)
class Story:
    """One operation: `run`, `stop`, `remove` of a pod; `create`, `start`, `stop`, `remove` of a container."""

    operation: str
    subject: str
    phases: list[Phase] = field(default_factory=list[Phase])
    pod_id: str = ""
    started_at_ns: int = field(default_factory=time.time_ns, compare=False)
    duration_ns: int = -1
    error: str = ""
    outcome: str = ""
    """One word for how it ended."""
    bytes: int = 0
    """Moved, where it is about that."""
    parent: tracing.Parent | None = field(default_factory=tracing.PARENT.get, compare=False)
    """The span of who asked for it."""

    @contextmanager
    def step(self, name: str, waits_on: str = "") -> Generator[Phase]:
        """Record what runs inside as the phase `name`, its error included. Also a point of `atoll.faults`."""
        phase = Phase(
            name=name,
            started_at_ns=time.time_ns(),
            waits_on=waits_on,
            task=_current_task(),
            frame=_caller(inspect.currentframe()),
        )
        self.phases.append(phase)
        begun = time.monotonic_ns()
        point = f"{self.operation}/{name}"
        try:
            faults.reached(point)
            yield phase
            faults.reached(point + faults.DONE)
        except BaseException as error:
            phase.error = str(error) or type(error).__name__
            raise
        finally:
            phase.duration_ns = time.monotonic_ns() - begun
            phase.task = phase.frame = None

    @asynccontextmanager
    async def holding(self, lock: asyncio.Lock, waits_on: str) -> AsyncGenerator[None]:
        """Hold `lock` inside; where another has it, waiting for it is a step of its own."""
        if lock.locked():
            with self.step("lock", waits_on):
                await lock.acquire()
        else:
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def running(self) -> Phase | None:
        """The innermost step that lasts."""
        return next((phase for phase in reversed(self.phases) if phase.duration_ns < 0), None)


_begun: ContextVar[list[tuple[Stories, Story, int]] | None] = ContextVar("atoll_stories_begun", default=None)


def operation(work: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """For a coroutine that is a whole operation: the story that it begins ends with it, well or with its error."""

    @functools.wraps(work)
    async def told(*args: P.args, **kwargs: P.kwargs) -> T:
        begun: list[tuple[Stories, Story, int]] = []
        token, error = _begun.set(begun), ""
        try:
            return await work(*args, **kwargs)
        except BaseException as failure:
            error = str(failure) or type(failure).__name__
            raise
        finally:
            _begun.reset(token)
            for stories, story, at in begun:
                stories.tell(story, at, error)

    return told


def _caller(frame: FrameType | None) -> FrameType | None:
    """Who entered the context manager that `frame` is of, beyond contextlib."""
    entering = frame.f_back if frame is not None else None
    return entering.f_back if entering is not None else None


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return None


class Stories:
    """The stories of all pods, by pod ID."""

    def __init__(self) -> None:
        self._pods: dict[str, deque[Story]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._names: dict[str, str] = {}
        self._taps: list[Callable[[Story], None]] = []

    def tap(self, told: Callable[[Story], None]) -> None:
        """Have `told` called with every story that ends from now on, at once. It must not raise."""
        self._taps.append(told)

    def tell(self, story: Story, begun_ns: int, error: str) -> None:
        """A story that began at `begun_ns` of the monotonic clock has ended."""
        story.duration_ns, story.error = time.monotonic_ns() - begun_ns, error
        story.outcome = story.outcome or (FAILED if error else OK)
        for told in self._taps:
            told(story)

    def call(self, pod_id: str, name: str) -> None:
        """Let the stories of a pod be found by its name."""
        self._names[pod_id] = name

    def name_of(self, pod_id: str) -> str:
        """What a pod with stories is called; empty where that is not known."""
        return self._names.get(pod_id, "")

    def under_way(self, pod_id: str) -> str:
        """The operation that holds up the next one on a pod, in words."""
        running = [f"{story.operation}/{phase.name}" for story in self.of(pod_id) if (phase := story.running())]
        return f"the pod's lock, held by {', '.join(running)}" if running else "the pod's lock"

    def seek(self, text: str) -> tuple[str, ...]:
        """The IDs of pods with stories that have this ID, name or beginning of an ID, in this order of preference."""
        named = tuple(pod_id for pod_id, name in self._names.items() if name == text and pod_id in self._pods)
        return (text,) if text in self._pods else named or tuple(one for one in self._pods if one.startswith(text))

    def begin(self, pod_id: str, operation: str, subject: str = "") -> Story:
        stories = self._pods.setdefault(pod_id, deque(maxlen=MAX_STORIES))
        story = Story(operation=operation, subject=subject or pod_id, pod_id=pod_id)
        stories.append(story)
        if (begun := _begun.get()) is not None:
            begun.append((self, story, time.monotonic_ns()))
        return story

    @contextmanager
    def passing(self, pod_id: str, operation: str, subject: str) -> Generator[Story]:
        """A story of what runs inside that nobody can ask for later: it is told when it has ended, and kept nowhere."""
        story = Story(operation=operation, subject=subject, pod_id=pod_id)
        begun, error = time.monotonic_ns(), ""
        try:
            yield story
        except BaseException as failure:
            error = str(failure) or type(failure).__name__
            raise
        finally:
            self.tell(story, begun, error)

    def end(self, pod_id: str) -> None:
        """The pod is gone; its stories can be asked for until `MAX_ENDED` others have gone after it."""
        self._ended[pod_id] = None
        self._ended.move_to_end(pod_id)
        while len(self._ended) > MAX_ENDED:
            gone, _ = self._ended.popitem(last=False)
            self._pods.pop(gone, None)
            self._names.pop(gone, None)

    def of(self, pod_id: str) -> tuple[Story, ...]:
        """The stories of one pod, the oldest first; empty for an unknown pod."""
        return tuple(self._pods.get(pod_id, ()))
