"""What a crash cut short and nobody was told of: freed after a start, again and again until all of it is.

A run that never came to READY has told nobody its ID, so it goes as if it had failed: nobody can ask for its
end. So do the containers of a pod whose record is gone, and checkpoints that were written before their
container's record. A removal that was cut short loses what it has taken already, and a stop whose network was
still being given back behind its answer goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from atoll import errors, faults
from atoll.concurrency import settle, wait_all
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine import branch_base as branching
from atoll.engine import kinds
from atoll.engine.containers import Containers
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.engine.pods import TEARDOWN_TIMEOUT_S, Pods
from atoll.engine.recovery import CONCURRENCY, POD_TIMEOUT_S, known_state, quarantined
from atoll.engine.sandboxes import Sandboxes
from atoll.ledger import fsck
from atoll.ledger.fsck import Finding
from atoll.ledger.kind import Entry, Intent
from atoll.sandbox.controller import State as PodState

log = logging.getLogger(__name__)

KIND = "sandbox"
"""How a finding names a record."""
ENDED = (State.EXITED, State.UNKNOWN)
"""States of a container whose removal may have begun; UNKNOWN where that took its checkpoint."""
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
"""Between two tries."""


class Unfinished:
    """The records that a crash cut short, of one engine."""

    def __init__(self, parts: Parts, pods: Pods, containers: Containers, hosted: Sandboxes) -> None:
        self._parts = parts
        self._pods = pods
        self._containers = containers
        self._hosted = hosted
        self._freeing = asyncio.Lock()
        self._tried = asyncio.Event()

    async def tried(self, within: float) -> None:
        """Wait until all of it was tried once since the start, at most so many seconds: until then the books lag."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), within)

    def findings(self) -> tuple[Finding, ...]:
        """A finding for each record that was never READY and that nobody is making."""
        return tuple(
            fsck.disagreement(fsck.Problem.UNFINISHED, KIND, one, one, "its run was cut short, nobody was told of it")
            for one in (*self._pods.unfinished(), *self._hosted.unfinished())
        )

    async def free_until_done(self) -> None:
        """`free`, until nothing is left; a disk that is full now may be freed at any time."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self.free()
            except (errors.AtollError, OSError) as error:
                log.error("what a crash cut short is not freed yet, will be retried: %s", error)
            else:
                if not self._pods.unfinished() and not self._hosted.unfinished():
                    return
            finally:
                self._tried.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    async def free(self) -> None:
        """Free all of it as far as it goes, and take up the ledger's debts; `AtollError` where the disk refuses.

        What is being made meanwhile is let be.
        """
        parts, pods, containers = self._parts, self._pods, self._containers
        with faults.step("free/lost networks"):
            await wait_all([self._leave_lost_network(pod) for pod in pods.list()])
        with faults.step("free/unfinished"):
            await self.free_records()
        known = {sandbox.id for sandbox in parts.sandboxes.pods()}
        known |= {key.rpartition("/")[2] for key in quarantined(parts)}
        await wait_all([self._forget(one) for one in containers.list() if one.sandbox_id not in known])
        with faults.step("free/unowned"):
            others = self._hosted.owners() | branching.owners(parts.snapshotter) | quarantined(parts)
            await parts.ledger.recover(pods.owners() | containers.owners() | others)
        with faults.step("free/removed"):
            await self._strike_removed()
        with faults.step("free/checkpoints"):
            await self._release_stray_checkpoints()

    async def free_records(self) -> None:
        """Free the pods and hosted sandboxes that were never READY; what could not be freed stays among `findings`."""
        gate = asyncio.Semaphore(CONCURRENCY)

        async def free(pod_id: str) -> None:
            async with gate:
                log.warning("pod %s: its run was cut short, it is undone", pod_id[:13])
                try:
                    left = await self._pods.release_recorded(pod_id)
                except errors.AtollError as error:
                    left = [str(error)]
                for one in left:
                    log.error("pod %s: not undone yet, will be retried: %s", pod_id[:13], one)

        async with self._freeing:
            await wait_all([free(pod_id) for pod_id in self._pods.unfinished()])
            await self._hosted.free_unfinished()

    async def _leave_lost_network(self, pod: Pod) -> None:
        within = 3 * TEARDOWN_TIMEOUT_S
        left = await settle(self._pods.leave_lost_network(pod), within=within, name=f"pod/{pod.id}/leave lost network")
        if isinstance(left, BaseException):
            log.error("pod %s: its lost network is not given back: %s", pod.id[:13], left, exc_info=left)

    async def _forget(self, container: Container) -> None:
        log.warning("container %s: its pod is gone, it is removed", container.id[:13])
        try:
            await self._containers.remove(None, container.id)
        except errors.AtollError as error:
            log.error("container %s: not removed: %s", container.id[:13], error)

    async def _strike_removed(self) -> None:
        """Cross out what a removal that was cut short has taken from a pod or container that had ended.

        The record stays, and with it whoever asked for the removal can ask again.
        """
        ledger = self._parts.ledger
        ended = {pod.id for pod in self._pods.list() if pod.state is PodState.NOTREADY}
        ended |= {one.id for one in self._containers.list() if known_state(one.status.get()) in ENDED}
        entries = [entry for owner in ended for entry in ledger.entries(owner) if not entry.is_debt]

        async def is_gone(entry: Entry) -> bool:
            kind = ledger.kinds.get(entry.kind)
            if kind is None:
                return False
            return await settle(kind.exists(entry), within=POD_TIMEOUT_S, name=f"recover/exists/{kind.name}") is False

        gone = await wait_all([is_gone(entry) for entry in entries])
        taken = [entry for entry, is_it in zip(entries, gone, strict=True) if is_it]
        if taken:
            log.warning("%d resources were gone already: a removal was cut short", len(taken))
            await ledger.release(*taken, within=TEARDOWN_TIMEOUT_S)

    async def _release_stray_checkpoints(self) -> None:
        ledger = self._parts.ledger
        strays = [
            found
            for found in await ledger.kinds[kinds.CHECKPOINT].scan()
            if ledger.find(found.kind, found.key) is None and not self._containers.is_busy(found.owner)
        ]
        if strays:
            intents = [Intent(owner=found.owner, kind=found.kind, key=found.key) for found in strays]
            await ledger.release(*await ledger.enter(*intents), within=TEARDOWN_TIMEOUT_S)
