"""What an end of a pod refuses, and what it waits for."""

from __future__ import annotations

import asyncio

import pytest

from atoll import errors
from atoll.config import RuntimeHandler
from atoll.engine.pod import Pod
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import Runtime, Sandbox, State


def pod(state: State = State.READY) -> Pod:
    return Pod(
        sandbox=Sandbox(id="p1", sandboxer="shim", runtime=Runtime(name="x")),
        config=PodConfig(),
        name="p1",
        handler_name="atoll",
        handler=RuntimeHandler(),
        state=state,
    )


@pytest.mark.parametrize("state", [State.UNKNOWN, State.NOTREADY])
def test_only_a_ready_pod_admits(state: State) -> None:
    with pytest.raises(errors.FailedPrecondition, match="is not ready, no more"), pod(state).admitted("no more"):
        pytest.fail("it was admitted")


async def test_a_closing_pod_refuses_and_waits_for_all_that_was_admitted() -> None:
    ending = pod()
    async with asyncio.TaskGroup() as group:
        with ending.admitted("no more"):
            with ending.admitted("no more"):
                ending.closing = True
                with pytest.raises(errors.FailedPrecondition, match="is being stopped, no more"):
                    ending.require_open("no more")
                drained = group.create_task(ending.drained(60))
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not drained.done()
            assert not await ending.drained(0)
    assert drained.result()
    assert await ending.drained(0)


async def test_what_failed_is_not_waited_for() -> None:
    ending = pod()
    with pytest.raises(ValueError, match="x"), ending.admitted("no more"):
        raise ValueError("x")
    assert await ending.drained(0)
