"""Whose turn it is, what is finished although its caller left, and what is undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from atoll import errors
from atoll.sandbox import operations as module
from atoll.sandbox.controller import CleanupFailed
from atoll.sandbox.operations import Operations

T = TypeVar("T")
KEY = ("default", "one")
OTHER = ("default", "two")


@pytest.fixture
async def operations() -> AsyncIterator[Operations]:
    made = Operations()
    yield made
    await made.aclose()


def later(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


class Story:
    """What happened, in order, and a gate that work waits at."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.gate = asyncio.Event()

    def work(self, name: str, error: Exception | None = None) -> Callable[[], Coroutine[Any, Any, str]]:
        async def run() -> str:
            self.lines.append(f"{name} begins")
            await self.gate.wait()
            self.lines.append(f"{name} ends")
            if error is not None:
                raise error
            return name

        return run

    def undo(self, *failures: errors.AtollError) -> Callable[[], Coroutine[Any, Any, None]]:
        left = list(failures)

        async def run() -> None:
            self.lines.append("undo")
            if left:
                raise left.pop(0)

        return run


async def steps(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def eventually(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_true():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.005)


async def test_changes_of_one_sandbox_go_one_after_the_other(operations: Operations) -> None:
    story = Story()
    async with asyncio.TaskGroup() as group:
        group.create_task(operations.run(KEY, "create", story.work("create"), within=5))
        await steps()
        group.create_task(operations.run(KEY, "start", story.work("start"), within=5))
        group.create_task(operations.run(OTHER, "create", story.work("other"), within=5))
        await steps()
        assert story.lines == ["create begins", "other begins"]
        story.gate.set()
    assert story.lines.index("create ends") < story.lines.index("start begins")
    assert len(operations) == 0


async def test_a_shutdown_overtakes_a_stop_but_no_start(operations: Operations) -> None:
    story = Story()
    async with asyncio.TaskGroup() as group:
        group.create_task(operations.run(KEY, "stop", story.work("stop"), within=5, ends=True))
        await steps()
        group.create_task(operations.run(KEY, "start", story.work("start"), within=5))
        await steps()
        group.create_task(operations.run(KEY, "shutdown", story.work("shutdown"), within=5, ends=True))
        await steps()
        assert story.lines == ["stop begins", "shutdown begins"]
        story.gate.set()
    assert story.lines[-2:] == ["start begins", "start ends"]


async def test_a_stop_waits_for_a_start(operations: Operations) -> None:
    story = Story()
    async with asyncio.TaskGroup() as group:
        group.create_task(operations.run(KEY, "start", story.work("start"), within=5))
        await steps()
        group.create_task(operations.run(KEY, "stop", story.work("stop"), within=5, ends=True))
        await steps()
        assert story.lines == ["start begins"]
        story.gate.set()
    assert story.lines == ["start begins", "start ends", "stop begins", "stop ends"]


async def test_what_its_caller_left_is_finished_and_undone(operations: Operations) -> None:
    story = Story()
    call = later(operations.run(KEY, "start", story.work("start"), within=5, undo=story.undo()))
    await steps()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert story.lines == ["start begins"]
    story.gate.set()
    await eventually(lambda: len(operations) == 0)
    assert story.lines == ["start begins", "start ends", "undo"]


async def test_a_second_caller_comes_after_the_undo(operations: Operations) -> None:
    story = Story()
    call = later(operations.run(KEY, "create", story.work("create"), within=5, undo=story.undo()))
    await steps()
    call.cancel()
    again = later(operations.run(KEY, "create", story.work("again"), within=5, undo=story.undo()))
    await steps()
    story.gate.set()
    assert await again == "again"
    assert story.lines == ["create begins", "create ends", "undo", "again begins", "again ends"]


async def test_what_has_not_begun_never_does(operations: Operations) -> None:
    story = Story()
    first = later(operations.run(KEY, "start", story.work("start"), within=5))
    await steps()
    second = later(operations.run(KEY, "update", story.work("update"), within=5))
    await steps()
    second.cancel()
    story.gate.set()
    assert await first == "start"
    await eventually(lambda: len(operations) == 0)
    assert story.lines == ["start begins", "start ends"]


async def test_a_change_without_an_undo_is_finished(operations: Operations) -> None:
    story = Story()
    call = later(operations.run(KEY, "stop", story.work("stop"), within=5, ends=True))
    await steps()
    call.cancel()
    story.gate.set()
    await eventually(lambda: len(operations) == 0)
    assert story.lines == ["stop begins", "stop ends"]


async def test_an_answer_that_was_ready_when_its_caller_left_is_undone(operations: Operations) -> None:
    story = Story()
    story.gate.set()
    call = later(operations.run(KEY, "start", story.work("start"), within=5, undo=story.undo()))
    while "start ends" not in story.lines:  # noqa: ASYNC110  the step after it is the one that matters
        await asyncio.sleep(0)
    call.cancel()
    try:
        assert await call == "start"
    except asyncio.CancelledError:
        await eventually(lambda: "undo" in story.lines)
    else:
        assert "undo" not in story.lines


async def test_errors_come_through_and_undo_nothing(operations: Operations) -> None:
    story = Story()
    story.gate.set()
    with pytest.raises(errors.AlreadyExists):
        await operations.run(
            KEY, "create", story.work("create", errors.AlreadyExists("x")), within=5, undo=story.undo()
        )
    with pytest.raises(errors.DeadlineExceeded):
        await operations.run(KEY, "create", story.work("create", TimeoutError()), within=5)
    assert "undo" not in story.lines


async def test_what_takes_too_long_is_undone(operations: Operations) -> None:
    story = Story()
    with pytest.raises(errors.DeadlineExceeded):
        await operations.run(KEY, "start", story.work("start"), within=0.01, undo=story.undo())
    assert story.lines == ["start begins", "undo"]


async def test_an_undo_that_fails_is_tried_again(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    story = Story()
    undo = story.undo(errors.Internal("busy"), errors.Internal("busy"))
    with pytest.raises(errors.DeadlineExceeded):
        await operations.run(KEY, "start", story.work("start"), within=0.01, undo=undo)
    assert operations.debts == {KEY}
    await eventually(lambda: not operations.debts)
    assert story.lines.count("undo") == 3


async def test_an_undo_that_finds_nothing_is_done(operations: Operations) -> None:
    story = Story()
    with pytest.raises(errors.DeadlineExceeded):
        await operations.run(
            KEY, "start", story.work("start"), within=0.01, undo=story.undo(errors.NotFound("there is none"))
        )
    assert not operations.debts


async def test_an_id_is_used_again_only_when_its_debt_is_paid(operations: Operations) -> None:
    story = Story()
    undo = story.undo(errors.Internal("busy"), errors.Internal("busy"))
    with pytest.raises(errors.DeadlineExceeded):
        await operations.run(KEY, "start", story.work("start"), within=0.01, undo=undo)

    async def create() -> str:
        await operations.settle_debt(KEY)
        return "made"

    with pytest.raises(errors.Unavailable):
        await operations.run(KEY, "create", create, within=5)
    assert await operations.run(KEY, "create", create, within=5) == "made"
    assert not operations.debts


async def test_what_a_failed_start_left_is_undone_later_and_known_until_then(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.05)
    story = Story()
    story.gate.set()
    left = CleanupFailed(errors.Unavailable("no"), ("its mount",), ("its process",))
    with pytest.raises(CleanupFailed):
        await operations.run(KEY, "start", story.work("start", left), within=5, undo=story.undo())
    assert "undo" not in story.lines  # its caller can see what is left
    await operations.settle_debt(KEY)
    assert "undo" not in story.lines
    await eventually(lambda: "undo" in story.lines)
    await eventually(lambda: not operations.debts)


async def test_a_debt_that_its_caller_paid_is_forgotten(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.02)
    story = Story()
    story.gate.set()
    left = CleanupFailed(errors.Unavailable("no"), ("its mount",))
    with pytest.raises(CleanupFailed):
        await operations.run(KEY, "start", story.work("start", left), within=5, undo=story.undo())
    operations.forgive(KEY)
    await asyncio.sleep(0.06)
    assert "undo" not in story.lines


async def test_closing_finishes_what_runs_and_takes_no_more() -> None:
    operations, story = Operations(), Story()
    call = later(operations.run(KEY, "create", story.work("create"), within=5, undo=story.undo()))
    await steps()
    call.cancel()
    closing = later(operations.aclose())
    await steps()
    with pytest.raises(errors.Unavailable):
        await operations.run(OTHER, "create", story.work("late"), within=5)
    story.gate.set()
    await closing
    assert story.lines == ["create begins", "create ends", "undo"]


async def test_closing_gives_up_what_hangs_and_undoes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.02)
    operations, story = Operations(), Story()
    call = later(operations.run(KEY, "create", story.work("create"), within=5, undo=story.undo()))
    await steps()
    await operations.aclose()
    with pytest.raises(errors.Unavailable):
        await call
    assert story.lines == ["create begins", "undo"]
