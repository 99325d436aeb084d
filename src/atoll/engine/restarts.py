"""The restart of a container: its processes end and its command begins anew, upon the same files and in the same log.

    RUNNING ──stop──> EXITED ──the bundle is made anew, the checkpoint says CREATED──> start

It keeps its ID, its name, its place in the pod and its writable layer. A daemon that dies on the way leaves it EXITED
or CREATED, never half of either: from CREATED it is started as it was the first time.
"""

from __future__ import annotations

import asyncio
import contextlib

from atoll import errors
from atoll.concurrency import SingleFlight, run_to_completion
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine.containers import NO_START, Containers
from atoll.engine.parts import Parts
from atoll.engine.phases import operation
from atoll.engine.pod import Pod
from atoll.engine.processes import Processes

SETTLE_TIMEOUT_S = 10.0
"""How long what a container has run beside its main process may take to be told as ended."""
UNDO_TIMEOUT_S = 5.0


class Restarts:
    """Restarts containers; a request for one that is being restarted joins it."""

    def __init__(self, parts: Parts, containers: Containers, processes: Processes) -> None:
        self._parts = parts
        self._containers = containers
        self._processes = processes
        self._running: SingleFlight[str, None] = SingleFlight(parts.owner)

    async def restart(self, pod: Pod, container: Container, timeout_s: float) -> None:
        """Stop it, within `timeout_s` after its stop signal, and start it; one that does not run is only started.

        Raises `FailedPrecondition` where the pod takes no start or nobody can tell what the container does, before
        anything is stopped, and what a start raises: the container is EXITED then and can be restarted again.
        """
        pod.require_open(NO_START)
        status = container.status.get()
        is_ours = self._running.running(container.id) is not None  # it stops or starts because of it
        if not is_ours and (status.state is State.UNKNOWN or status.starting or status.removing):
            raise errors.FailedPrecondition(
                f"container {container.id[:13]}: cannot be restarted in this moment; look at its status, and try again"
            )
        await self._running.run(
            container.id,
            lambda: self._restart(pod, container, timeout_s),
            name=f"pod/{pod.id}/restart/{container.id}",
        )

    async def settled(self, container_id: str) -> None:
        """Wait until no restart of the container is under way, however it ends."""
        while (restarting := self._running.running(container_id)) is not None:
            await asyncio.wait({restarting})

    @operation
    async def _restart(self, pod: Pod, container: Container, timeout_s: float) -> None:
        await self._containers.stop(pod, container.id, timeout_s)
        if container.status.get().state is State.EXITED:
            story = self._parts.stories.begin(pod.id, "restart", container.id)
            with story.step("settle", "what follows its exit"):
                await self._settled(pod, container)
            with story.step("again", "disk"):
                await self._again(container)
        await self._containers.start(pod, container.id)

    async def _settled(self, pod: Pod, container: Container) -> None:
        """What follows the exit is done, and what ran beside the main process has its end recorded."""
        await self._containers.ended(pod, container)
        if self._containers.is_watched(container.id):
            raise errors.Unavailable(f"container {container.id[:13]}: its exit is not settled yet; try again")
        await self._containers.delete_task(pod, container)
        for process in self._processes.list(container.id):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.over.wait(), SETTLE_TIMEOUT_S)

    async def _again(self, container: Container) -> None:
        """EXITED becomes CREATED. Nothing else begins with it meanwhile: its status says that it is being started."""
        await container.status.update(lambda status: status.begin_restart())
        try:
            await self._parts.at_rest.end(container.id, "it was started")
            await self._containers.remake_bundle(container)
            await container.status.update_sync(lambda status: status.again())
        except BaseException:
            await run_to_completion(
                container.status.update(lambda status: status.not_restarted()), within=UNDO_TIMEOUT_S
            )
            raise
        container.stop_signalled = False
        container.is_paused = False
