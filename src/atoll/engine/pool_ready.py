"""Whether the container of a pod is ready: a command of its spec, run in it until it ends with 0."""

from __future__ import annotations

import asyncio
import time

from atoll import errors
from atoll.container.store import Container
from atoll.engine.execs import ExecRequest, Execs
from atoll.engine.pod import Pod
from atoll.engine.pool_store import PoolSpec

TRY_TIMEOUT_S, LAST_TRY_S = 10.0, 1.0
"""Of one run of the command, and of one that begins just before the time is over."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.02, 1.0
TOLD_BYTES = 500


async def await_ready(execs: Execs, pod: Pod, container: Container, spec: PoolSpec) -> None:
    """Return at once without a command. `DeadlineExceeded` says what the last run of it did.

    Raises what an exec does where it cannot be run, and where the container has ended meanwhile.
    """
    if not spec.ready:
        return
    until, pause_s = time.monotonic() + spec.ready_within_s, FIRST_PAUSE_S
    while True:
        left_s = max(until - time.monotonic(), LAST_TRY_S)
        request = ExecRequest(command=spec.ready, timeout_s=min(left_s, TRY_TIMEOUT_S))
        result = await execs.sync(pod, container, request)
        if result.exit.exit_status == 0:
            return
        if time.monotonic() + pause_s > until:
            command, code = " ".join(spec.ready)[:TOLD_BYTES], result.exit.exit_status
            told = (result.stderr or result.stdout)[-TOLD_BYTES:].decode(errors="replace").strip() or "and said nothing"
            raise errors.DeadlineExceeded(
                f"container {container.id[:13]}: was not ready within {spec.ready_within_s:g} s: "
                f"{command!r} ended with {code}: {told}"
            )
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_PAUSE_S)
