"""The end of a pod, or of a hosted sandbox, whose shim does not answer.

    an end takes `FIRST_LOOK_S` ── the shim is asked ──answers──> let be, asked again
                                         └──no answer within `ASK_TIMEOUT_S`──> given up (`runtime.hung`)

Every call that waits for such a shim fails when it is given up, and the end goes on as for a shim that is gone:
containers by their cgroups, the rest by the records. A shim that could not be killed, for its process serves other
pods, stays in the ledger as a debt. Nothing of this costs an end that is quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.concurrency import run_to_completion
from atoll.engine import strays
from atoll.engine.hosted import Hosted
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE
from atoll.engine.pod import Pod
from atoll.ledger.kind import Intent
from atoll.runtime import hung
from atoll.runtime.shim import Shim
from atoll.sandbox.controller import Controller
from atoll.sandboxers.held import HeldController

log = logging.getLogger(__name__)

FIRST_LOOK_S = 2.0
ASK_TIMEOUT_S = 3.0
GIVE_UP_TIMEOUT_S = 30.0
RELEASE_TIMEOUT_S = 20.0
OWNER = "shim."
"""Prefix of the owner of the ledger entry for a shim that was given up; it outlives the pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """What is ended: the ID that its sandboxer knows it by, and how the engine is told that its shim was given up."""

    id: str
    namespace: str
    name: str
    controller: Controller | None
    told: Callable[[str], None]


def watched(parts: Parts, pod: Pod) -> contextlib.AbstractAsyncContextManager[None]:
    """While the pod is ended: give its shim up where it does not answer."""

    def told(text: str) -> None:
        pod.reason = text
        if pod.shim is not None:
            pod.shim.client.close()

    controller = parts.controllers.get(pod.handler_name)
    one = _Ended(id=pod.id, namespace=NAMESPACE, name=f"pod {pod.id[:13]}", controller=controller, told=told)
    return _watched(parts, one)


def watched_hosted(
    parts: Parts, hosted: Hosted, controller: Controller
) -> contextlib.AbstractAsyncContextManager[None]:
    """The same while a sandbox of the sandbox API is ended."""

    def told(text: str) -> None:
        hosted.reason = text

    namespace = hosted.record.namespace
    one = _Ended(id=hosted.inner_id, namespace=namespace, name=str(hosted), controller=controller, told=told)
    return _watched(parts, one)


@contextlib.asynccontextmanager
async def _watched(parts: Parts, one: _Ended) -> AsyncGenerator[None]:
    looking: list[asyncio.Task[None]] = []

    def look() -> None:
        with contextlib.suppress(errors.Unavailable):  # the daemon is closing
            looking.append(parts.owner.spawn(_watch(parts, one), name=f"sandbox/{one.id}/hung"))

    timer = asyncio.get_running_loop().call_later(FIRST_LOOK_S, look)
    try:
        yield
    finally:
        timer.cancel()
        for task in looking:
            task.cancel()
            await asyncio.wait({task})


async def _watch(parts: Parts, one: _Ended) -> None:
    while True:
        if not await _answers(parts.paths.shims / one.id, one.namespace):
            break
        await asyncio.sleep(FIRST_LOOK_S)
    try:
        await run_to_completion(_give_up(parts, one), within=GIVE_UP_TIMEOUT_S)
    except errors.AtollError as error:
        log.warning("%s: its shim does not answer and cannot be given up: %s", one.name, error)


async def _give_up(parts: Parts, one: _Ended) -> None:
    given_up = await hung.give_up(parts.paths.shims / one.id, parts.paths.shims)
    log.warning("%s: %s", one.name, given_up.text)
    one.told(given_up.text)
    controller = one.controller
    if isinstance(controller, HeldController):
        controller.hang_up(one.id)
    if given_up.aside is None:
        return
    intent = Intent(owner=OWNER + one.id, kind=strays.SHIM, key=given_up.aside.name, data=given_up.data())
    with contextlib.suppress(errors.AlreadyExists):
        (entry,) = await parts.ledger.enter(intent)
        work = parts.ledger.release(entry, within=RELEASE_TIMEOUT_S)
        parts.owner.spawn(work, name=f"sandbox/{one.id}/end hung shim")


async def _answers(bundle: Path, namespace: str) -> bool:
    """Whether the shim says anything at all; one that is provably gone needs no giving up."""
    try:
        bootstrap = hung.bootstrap_of(bundle)
        if bootstrap is None:
            return True
        async with asyncio.timeout(ASK_TIMEOUT_S):
            shim = await Shim.connect(id=bundle.name, namespace=namespace, bootstrap=bootstrap)
            try:
                await shim.tasks.connect(bundle.name)
            finally:
                shim.client.close()
    except (TimeoutError, errors.DeadlineExceeded):
        return False
    except errors.AtollError:
        return True
    return True
