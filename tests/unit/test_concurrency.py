"""Work that is not lost: cancel storms, owners that close, flights that are joined."""

# ruff: noqa: TID251  # the tests play callers that come and go

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from atoll import concurrency, errors
from atoll.concurrency import Blocking, Latch, SingleFlight, TaskOwner, run_to_completion, settle, wait_all

FAR = 30.0
"""A bound that is never reached."""


async def turns(count: int = 5) -> None:
    """Let every other task take some steps."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def owner() -> AsyncIterator[TaskOwner]:
    async with TaskOwner("test") as owner:
        yield owner


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_failing_task_is_logged_and_its_siblings_go_on(
    owner: TaskOwner, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise errors.Internal("broken")

    sibling = owner.spawn(forever(), name="sibling")
    task = owner.spawn(fail(), name="sandbox/a/watch")
    await asyncio.wait({task})
    await turns()
    assert not sibling.done()
    assert "sandbox/a/watch failed: broken" in caplog.text
    assert len(owner) == 1


async def test_aclose_waits_for_tasks_that_take_their_time_to_end() -> None:
    ended: list[str] = []

    async def reluctant() -> None:
        try:
            await forever()
        finally:
            await turns(20)
            ended.append("reluctant")

    owner = TaskOwner("test")
    owner.spawn(reluctant(), name="reluctant")
    await turns()
    await owner.aclose()
    await owner.aclose()
    assert ended == ["reluctant"]


async def test_aclose_outlives_a_cancel_storm() -> None:
    hold = asyncio.Event()
    ended: list[str] = []

    async def reluctant() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            ended.append("cancelled")
            await run_to_completion(hold.wait(), within=FAR)
            ended.append("ended")
            raise

    owner = TaskOwner("test")
    owner.spawn(reluctant(), name="reluctant")
    await turns()
    closing = asyncio.ensure_future(owner.aclose())
    for _ in range(5):
        await turns()
        closing.cancel()
    assert not closing.done()
    hold.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ended == ["cancelled", "ended"]


async def test_a_task_may_close_its_own_owner() -> None:
    owner = TaskOwner("test")
    sibling = owner.spawn(forever(), name="sibling")
    last = owner.spawn(owner.aclose(), name="last")
    async with asyncio.timeout(FAR):
        await last
    assert sibling.cancelled()


async def test_a_closed_owner_starts_nothing() -> None:
    owner = TaskOwner("test")
    await owner.aclose()
    with pytest.raises(errors.Unavailable, match="cannot start late"):
        owner.spawn(forever(), name="late")


@pytest.mark.parametrize("cancels", [1, 5])
async def test_clean_up_ends_before_the_cancellation_is_raised(cancels: int) -> None:
    release = asyncio.Event()
    steps: list[str] = []

    async def clean_up() -> str:
        steps.append("begun")
        await release.wait()
        steps.append("done")
        return "clean"

    caller = asyncio.ensure_future(run_to_completion(clean_up(), within=FAR))
    for _ in range(cancels):
        await turns()
        caller.cancel("go away")
    await turns()
    assert not caller.done()
    release.set()
    with pytest.raises(asyncio.CancelledError, match="go away"):
        await caller
    assert steps == ["begun", "done"]


async def test_clean_up_runs_although_its_caller_was_cancelled_before() -> None:
    steps: list[str] = []

    async def clean_up() -> None:
        await turns()
        steps.append("done")

    async def work() -> None:
        try:
            await forever()
        finally:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await run_to_completion(clean_up(), within=FAR)

    caller = asyncio.ensure_future(work())
    await turns()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert steps == ["done"]


async def test_clean_up_gives_its_result_and_its_error() -> None:
    async def fail() -> None:
        raise errors.NotFound("nothing there")

    assert await run_to_completion(asyncio.sleep(0, "done"), within=FAR) == "done"
    with pytest.raises(errors.NotFound):
        await run_to_completion(fail(), within=FAR)


async def test_the_error_of_a_cancelled_callers_clean_up_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    release = asyncio.Event()

    async def fail() -> None:
        await release.wait()
        raise errors.Internal("could not unmount")

    caller = asyncio.ensure_future(run_to_completion(fail(), within=FAR))
    await turns()
    caller.cancel()
    await turns()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert "could not unmount" in caplog.text


async def test_clean_up_that_outlasts_its_bound_is_cancelled() -> None:
    cancelled: list[bool] = []

    async def slow() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(errors.DeadlineExceeded):
        await run_to_completion(slow(), within=0.001)
    assert cancelled == [True]


async def test_a_cancellation_while_late_work_ends_is_not_lost() -> None:
    late = asyncio.Event()
    release = asyncio.Event()

    async def stubborn() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            late.set()
            await release.wait()

    caller = asyncio.ensure_future(run_to_completion(stubborn(), within=0.001))
    await late.wait()
    caller.cancel()
    await turns()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_work_that_never_ends_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(concurrency, "CANCEL_LIMIT_S", 0.001)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        raise errors.Internal("too late")

    with pytest.raises(errors.DeadlineExceeded):
        await run_to_completion(stubborn(), within=0.001)
    gc.collect()
    release.set()
    await turns()
    assert "failed after it was given up: too late" in caplog.text


async def test_clean_up_cancelled_by_somebody_else_does_not_look_like_our_own_cancellation() -> None:
    async def cancelled() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with pytest.raises(errors.Cancelled):
        await run_to_completion(cancelled(), within=FAR)


async def test_settle_gives_the_outcome_as_a_value() -> None:
    async def fail() -> None:
        raise KeyError("bug")

    assert await settle(asyncio.sleep(0, 7), within=FAR, name="seven") == 7
    assert isinstance(await settle(fail(), within=FAR, name="fail"), KeyError)
    late = await settle(forever(), within=0.001, name="sandbox/a/release/netns")
    assert isinstance(late, errors.DeadlineExceeded)
    assert "sandbox/a/release/netns" in str(late)


async def test_settle_ends_with_its_caller() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            ended.set()

    caller = asyncio.ensure_future(settle(work(), within=FAR, name="work"))
    await turns()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    async with asyncio.timeout(FAR):
        await ended.wait()


async def test_equal_keys_share_one_flight(owner: TaskOwner) -> None:
    flights: SingleFlight[str, int] = SingleFlight(owner)
    release = asyncio.Event()
    runs: list[int] = []

    async def work() -> int:
        runs.append(1)
        await release.wait()
        return 42

    callers = [asyncio.ensure_future(flights.run("a", work, name="a")) for _ in range(10)]
    await turns()
    for caller in callers[:9]:
        caller.cancel()
    await turns()
    release.set()
    assert await callers[9] == 42
    assert runs == [1]
    assert flights.running("a") is None


async def test_the_error_of_a_flight_reaches_every_caller_and_the_next_starts_anew(owner: TaskOwner) -> None:
    flights: SingleFlight[str, int] = SingleFlight(owner)
    outcomes = iter([errors.Aborted("lost"), 1])

    async def work() -> int:
        await turns()
        outcome = next(outcomes)
        if isinstance(outcome, errors.AtollError):
            raise outcome
        return outcome

    results = await asyncio.gather(*(flights.run("a", work, name="a") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [errors.Aborted] * 3
    assert await flights.run("a", work, name="a") == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_no_caller_hangs_when_the_owner_closes(begun: bool) -> None:
    owner = TaskOwner("test")
    flights: SingleFlight[str, None] = SingleFlight(owner)
    callers = [asyncio.ensure_future(flights.run("a", forever, name="sandbox/a/run")) for _ in range(3)]
    await turns(20 if begun else 1)
    await owner.aclose()
    async with asyncio.timeout(FAR):
        results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [errors.Unavailable] * 3
    with pytest.raises(errors.Unavailable):
        await flights.run("a", forever, name="a")


async def test_cancelling_what_running_gave_stops_nothing(owner: TaskOwner) -> None:
    flights: SingleFlight[str, str] = SingleFlight(owner)
    release = asyncio.Event()

    async def work() -> str:
        await release.wait()
        return "done"

    caller = asyncio.ensure_future(flights.run("a", work, name="a"))
    await turns()
    follower = flights.running("a")
    assert follower is not None
    follower.cancel()
    release.set()
    assert await caller == "done"


async def test_a_flight_tells_what_it_was_asked_for(owner: TaskOwner) -> None:
    flights: SingleFlight[str, None] = SingleFlight(owner)
    caller = asyncio.ensure_future(flights.run("a", turns, name="a", asked="first"))
    await asyncio.sleep(0)
    assert (flights.asked("a", "other"), flights.asked("b", "other")) == ("first", "other")
    await caller
    assert flights.asked("a") is None


async def test_a_latch_keeps_its_first_value() -> None:
    latch: Latch[int] = Latch()
    waiters = [asyncio.ensure_future(latch.wait()) for _ in range(3)]
    await turns()
    assert latch.value is None
    assert latch.set(1)
    assert not latch.set(2)
    assert await asyncio.gather(*waiters) == [1, 1, 1]
    assert await latch.wait() == latch.value == 1


async def test_blocking_work_runs_beside_the_loop() -> None:
    blocking = Blocking(2)
    assert await blocking.run(threading.get_ident) != threading.get_ident()
    assert await blocking.run(divmod, 7, 2) == (3, 1)
    blocking.close()


async def test_wait_all_lets_the_others_finish() -> None:
    done: list[str] = []

    async def fail() -> str:
        raise errors.NotFound("first")

    async def finish() -> str:
        await turns(20)
        done.append("finished")
        return "finished"

    with pytest.raises(errors.NotFound):
        await wait_all([fail(), finish()])
    assert done == ["finished"]
    assert await wait_all([finish(), finish()]) == ["finished", "finished"]


def test_nothing_is_logged_in_a_quiet_run(caplog: pytest.LogCaptureFixture) -> None:
    async def quiet() -> None:
        async with TaskOwner("test") as owner:
            flights: SingleFlight[str, None] = SingleFlight(owner)
            caller = asyncio.ensure_future(flights.run("a", forever, name="a"))
            await turns()
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(quiet(), debug=False)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name != "asyncio"] == []
