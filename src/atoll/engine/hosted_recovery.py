"""What a new daemon makes of the hosted sandboxes that an earlier one left.

Each is taken up by itself, many at a time, each within `ASK_TIMEOUT_S`: its controller is asked, and what ended
meanwhile is told. One that cannot be asked is UNKNOWN with the reason, is served as that, and is asked again until it
can be.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from atoll import errors, faults
from atoll.concurrency import TaskOwner, settle, wait_all
from atoll.engine.hosted import Hosted, Phase
from atoll.engine.sandboxes import Sandboxes, unknown_end
from atoll.sandbox.controller import Controller, State

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 5.0
CONCURRENCY = 32
FIRST_ASK_AGAIN_S, LAST_ASK_AGAIN_S = 1.0, 60.0


async def load(sandboxes: Sandboxes) -> None:
    """Take in every record; what was cut short is kept aside for `Sandboxes.free_unfinished`."""
    for record in await sandboxes.store.load():
        if record.state.phase in (Phase.CREATING, Phase.STARTING):
            sandboxes.leave_unfinished(record)
            continue
        hosted = sandboxes.adopt(record)
        if record.state.ended is None:
            hosted.reason = "is not asked about yet, the daemon has just started"


async def recover(sandboxes: Sandboxes, owner: TaskOwner) -> int:
    """Settle what `load` took in; how many. Never fails for one of them."""
    gate = asyncio.Semaphore(CONCURRENCY)
    loaded = sandboxes.list()

    async def one(hosted: Hosted) -> None:
        async with gate:
            is_settled = await _ask_safely(sandboxes, hosted)
        if not is_settled:
            owner.spawn(_ask_again(sandboxes, hosted), name=f"sandbox/{hosted.key}/recover again")

    async def ended(hosted: Hosted) -> None:
        async with gate, hosted.lock:
            if not hosted.is_gone:
                await _remember(sandboxes, hosted)

    await wait_all([one(hosted) if hosted.state.ended is None else ended(hosted) for hosted in loaded])
    for hosted in loaded:
        if sandboxes.expiry.may_come(hosted) and not hosted.is_gone:
            sandboxes.expiry.begin(hosted)
    return len(loaded)


async def _ask_again(sandboxes: Sandboxes, hosted: Hosted) -> None:
    pause = FIRST_ASK_AGAIN_S
    while True:
        await asyncio.sleep(pause)
        pause = min(2 * pause, LAST_ASK_AGAIN_S)
        if hosted.is_gone or hosted.state.ended is not None or await _ask_safely(sandboxes, hosted):
            return


async def _ask_safely(sandboxes: Sandboxes, hosted: Hosted) -> bool:
    """Whether the sandbox is settled; a fault in one stops no other."""
    name = f"sandbox/{hosted.key}/recover"
    outcome = await settle(_ask(sandboxes, hosted), within=ASK_TIMEOUT_S, name=name)
    if not isinstance(outcome, BaseException):
        return outcome
    trace = None if isinstance(outcome, errors.AtollError) else outcome
    log.warning("%s: cannot be asked about now: %s", hosted, outcome, exc_info=trace)
    hosted.reason = str(outcome) or type(outcome).__name__
    return False


async def _ask(sandboxes: Sandboxes, hosted: Hosted) -> bool:
    controller = sandboxes.controller(hosted)
    try:
        with faults.step("recover/hosted sandbox"):
            status = await controller.recover(sandboxes.inner(hosted))
    except errors.NotFound as error:
        # Provably absent: a reboot, or somebody's hand.
        log.warning("%s: is gone: %s", hosted, error)
        await sandboxes.settle(hosted, unknown_end(), late=True)
        return True
    if status.state is State.UNKNOWN:
        hosted.reason = status.reason or "its controller does not know"
        return False
    hosted.reason = ""
    if status.state is State.NOTREADY and (hosted.state.phase is Phase.STARTED or status.exited_at is not None):
        await _settle(sandboxes, hosted, controller)
        return True
    if hosted.state.phase is Phase.STARTED:
        _take_address(hosted, status.address, status.version)
        sandboxes.watch(hosted)
    elif status.state is State.READY:
        # A start whose answer nobody got, for it was not even recorded.
        await sandboxes.shutdown(hosted.record.namespace, hosted.record.id)
    return True


async def _remember(sandboxes: Sandboxes, hosted: Hosted) -> None:
    """Have the controller of one that has ended take it in, so that it can tell of it until it is shut down."""

    async def recover() -> None:
        await sandboxes.controller(hosted).recover(sandboxes.inner(hosted))

    outcome = await settle(recover(), within=ASK_TIMEOUT_S, name=f"sandbox/{hosted.key}/remember")
    if outcome is not None:
        trace = None if isinstance(outcome, errors.AtollError) else outcome
        log.info("%s: has ended, and its controller does not know it: %s", hosted, outcome, exc_info=trace)


async def _settle(sandboxes: Sandboxes, hosted: Hosted, controller: Controller) -> None:
    try:
        end = await controller.wait(hosted.inner_id)
    except errors.NotFound:
        end = unknown_end()
    await sandboxes.settle(hosted, end, late=True)


def _take_address(hosted: Hosted, address: str, version: int) -> None:
    """Where the Task API answers may have changed: a remote controller that was restarted too."""
    instance = hosted.state.instance
    if address and instance is not None and (instance.address, instance.version) != (address, version):
        instance = dataclasses.replace(instance, address=address, version=version)
        hosted.record = dataclasses.replace(hosted.record, state=dataclasses.replace(hosted.state, instance=instance))
