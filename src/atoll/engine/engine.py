"""`Engine`: the use cases behind every door."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time

from atoll import errors, faults
from atoll.concurrency import SingleFlight
from atoll.container.store import Container
from atoll.database import quarantined
from atoll.engine import abandon as abandoning
from atoll.engine import branch_base as branching
from atoll.engine import hosted_recovery, kinds, leases, lost_execs, recovery
from atoll.engine.branches import Branches
from atoll.engine.checkpoints import Checkpoints
from atoll.engine.containers import Containers
from atoll.engine.execs import Execs
from atoll.engine.files import Files
from atoll.engine.front import Front
from atoll.engine.nri_runtime import NriRuntime
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.engine.pod_leases import PodLeases
from atoll.engine.pods import Pods
from atoll.engine.pools import Pools
from atoll.engine.processes import Processes
from atoll.engine.recovery import Recovery
from atoll.engine.restarts import Restarts
from atoll.engine.sandboxes import Sandboxes
from atoll.engine.self_removal import SelfRemoval
from atoll.engine.unfinished import Unfinished
from atoll.engine.usage import Usages
from atoll.image.config import Auth
from atoll.image.model import Image
from atoll.image.progress import OnProgress, Progress
from atoll.image.progress import Phase as ImagePhase
from atoll.image.store import Collected
from atoll.ledger import fsck
from atoll.ledger.fsck import Finding, Findings
from atoll.ledger.kind import Entry
from atoll.linux.cgroup import Cgroup
from atoll.network.model import Attachment

log = logging.getLogger(__name__)

MASQUERADE = "masquerade"
"""How a finding names the nft table of a network."""
SETTLE_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 10.0
"""How long a request waits for the recovery of what an earlier daemon left."""


class Engine:
    """Pods, containers, execs, images and the ledger of one daemon.

    Made by `open`, it serves at once; `recover` runs in the background, and `ready` waits for it. `aclose` lets go of
    everything and ends nothing.
    """

    def __init__(self, parts: Parts) -> None:
        """Not for callers: use `open`."""
        self.parts = parts
        self.containers = Containers(parts)
        self.pods = Pods(parts, self.containers)
        self.execs = Execs(parts)
        self.files = Files(parts)
        self.processes = Processes(parts, self.pods, self.containers)
        self.restarts = Restarts(parts, self.containers, self.processes)
        self.leases = PodLeases(parts, self.pods)
        self.self_removal = SelfRemoval(parts, self.pods, self.containers, self.restarts)
        self.pools = Pools(parts, self.pods, self.containers, self.execs)
        self.branches = Branches(parts, self.pods, self.containers)
        self.usages = Usages(parts, self.pods, self.containers)
        self.checkpoints = Checkpoints(parts)
        self.sandboxes = Sandboxes(parts)
        self.front = Front(parts, self.sandboxes, self.pods)
        self.unfinished = Unfinished(parts, self.pods, self.containers, self.sandboxes)
        self.started_at_ns = time.time_ns()
        self._collections: SingleFlight[str, Collected] = SingleFlight(parts.owner)
        self._recovered = asyncio.Event()
        self._pulling: set[tuple[str, Auth | None]] = set()
        self.last_fsck: Findings | None = None
        """What the last comparison left as it was, and when that was, in ns from the epoch."""
        self.last_fsck_at_ns = 0

    @classmethod
    async def open(cls, parts: Parts) -> Engine:
        """An engine that knows every recorded pod, and whose network knows what is taken."""
        engine = cls(parts)
        await engine.files.sweep()
        recovery.load(parts, engine.pods)
        await hosted_recovery.load(engine.sandboxes)
        await engine.leases.recover()
        await engine.pools.load()
        entries = [entry for entry in parts.ledger.entries() if entry.kind == kinds.NETWORK]
        live = {sandbox.id for sandbox in parts.sandboxes.pods()} | {entry.key for entry in entries}
        with faults.step("open/network"):
            await parts.network.start(_attachments(entries), live)
        return engine

    async def recover(self) -> Recovery:
        """Take up what an earlier daemon left: pods and containers, then half-made things and debts.

        Returns when everything half-made is freed; a disk that refuses is asked again for as long as it does.
        """
        try:
            owner = self.parts.owner
            beside = owner.spawn(hosted_recovery.recover(self.sandboxes, owner), name="recover hosted sandboxes")
            recovered = await recovery.recover(self.parts, self.pods, self.containers)
            await self.processes.recover()
            await beside
            owner.spawn(lost_execs.end(self.pods, self.containers, self.execs), name="recover execs")
            await self.parts.nri.start(NriRuntime(self.parts, self.pods, self.containers))
            await self.pools.recover()
            await self.branches.recover()
        finally:
            self._recovered.set()
        self.self_removal.recover()
        await self.unfinished.free_until_done()
        self.parts.images.debts.owe()  # what a crash has kept from being given back
        return recovered

    @property
    def is_recovered(self) -> bool:
        """Whether every pod and sandbox of an earlier daemon was asked about."""
        return self._recovered.is_set()

    async def recovered(self) -> None:
        """Wait until `is_recovered`."""
        await self._recovered.wait()

    async def ready(self) -> None:
        """Wait until every pod was asked about after a start, at most `READY_TIMEOUT_S`: what is late is UNKNOWN."""
        if not self._recovered.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._recovered.wait(), READY_TIMEOUT_S)

    def pod_of(self, container: Container) -> Pod | None:
        """The pod of a container; None where it is gone, or its record cannot be read."""
        return self.pods.find(container.sandbox_id)

    def owners(self) -> frozenset[str]:
        """Everybody whose ledger entries are in order: pods, their networks, containers, hosted sandboxes."""
        hosted = self.sandboxes.owners()
        branches = branching.owners(self.parts.snapshotter)
        return self.pods.owners() | self.containers.owners() | hosted | branches | recovery.quarantined(self.parts)

    def is_busy(self, owner: str) -> bool:
        """Whether an operation on what `owner` has is under way."""
        return self.pods.is_busy(owner) or self.containers.is_busy(owner) or self.sandboxes.is_busy(owner)

    async def pull_image(self, ref: str, auth: Auth | None = None, on_progress: OnProgress | None = None) -> Image:
        """As `ImageStore.pull`, as an operation with a story."""
        fetched: dict[str, int] = {}

        def note(progress: Progress) -> None:
            if progress.phase is ImagePhase.DOWNLOADING:
                fetched[progress.digest] = progress.done
            elif progress.phase is ImagePhase.DOWNLOADED:
                fetched[progress.digest] = progress.total
            if on_progress is not None:
                on_progress(progress)

        key = (ref, auth)
        is_first = key not in self._pulling  # who joins it fetches nothing
        self._pulling.add(key)
        with self.parts.stories.passing("", "pull", ref) as story:
            try:
                return await self.parts.images.pull(ref, auth, note)
            finally:
                if is_first:
                    self._pulling.discard(key)
                    story.bytes = sum(fetched.values())

    async def remove_image(self, ref_or_id: str) -> None:
        """Remove a name or an image and give its disk space back; what containers rest on stays. Idempotent."""
        images = self.parts.images
        await images.remove(ref_or_id)
        try:
            await self._collections.run("collect", images.collect, name="images/collect")
        except (errors.AtollError, OSError) as error:
            log.warning("images: the space of %s is not given back yet, it will be: %s", ref_or_id, error)
            images.debts.owe()

    async def fsck(self, *, repair: bool) -> tuple[Findings, Findings]:
        """Compare the ledger with the machine; what was found, and what of it is left after the repair asked for."""
        found, left = await self._fsck(repair=repair)
        self.last_fsck, self.last_fsck_at_ns = left, time.time_ns()
        return found, left

    async def _fsck(self, *, repair: bool) -> tuple[Findings, Findings]:
        await self.unfinished.tried(READY_TIMEOUT_S)
        await self.pods.settle(SETTLE_TIMEOUT_S)
        before = self.unfinished.findings()
        damaged = fsck.damaged(await self.parts.db.read(quarantined))
        found = await fsck.plan(self.parts.ledger, self.owners, busy=self.is_busy)
        unfinished = [one for one in self.unfinished.findings() if one in before]
        found = Findings(
            findings=(*found.findings, *unfinished, *damaged, *await self._unheld(), *await self._unused())
        )
        if not repair:
            return found, found
        left = await fsck.repair(self.parts.ledger, found)
        tables = [one.key for one in found.findings if one.kind == MASQUERADE and one.problem is fsck.Problem.STRAY]
        await self.parts.network.remove_masquerades(tables)
        if unfinished:
            await self.unfinished.free_records()
            still = {one.key for one in self.unfinished.findings()}
            kept = (one for one in left.findings if one.problem is not fsck.Problem.UNFINISHED or one.key in still)
            left = Findings(findings=tuple(kept))
        return found, left

    async def abandon(self, sandbox_id: str) -> tuple[str, ...]:
        """Give up a sandbox whose sandboxer is gone for good; see `atoll.engine.abandon`."""
        return await abandoning.abandon(self.parts, self.pods, self.sandboxes, sandbox_id)

    async def _unheld(self) -> tuple[Finding, ...]:
        try:
            return await leases.unheld(self.parts.network, self.parts.blocking)
        except errors.AtollError as error:
            return (fsck.disagreement(fsck.Problem.UNSEEN, leases.KIND, "*", "", str(error)),)

    async def _unused(self) -> tuple[Finding, ...]:
        """What is on the host for a network that has gone: its configuration was taken away."""
        try:
            tables = await self.parts.network.unused_masquerades()
        except errors.AtollError as error:
            return (fsck.disagreement(fsck.Problem.UNSEEN, MASQUERADE, "*", "", str(error)),)
        return tuple(fsck.disagreement(fsck.Problem.STRAY, MASQUERADE, table, "") for table in tables)

    def release_waiters(self) -> None:
        """End the calls that may last for ever, so that no end of the daemon waits for them: they are asked again."""
        self.sandboxes.release_waiters()
        self.parts.topics.close()
        self.parts.events.close()

    async def aclose(self) -> None:
        """Let go of the pods. Where there are none, what serves only pods goes too: networks of ours, cgroups."""
        await self.files.aclose()
        await self.parts.nri.aclose()
        await self.pods.settle(SETTLE_TIMEOUT_S)
        self.leases.aclose()
        self.self_removal.aclose()
        self.pools.aclose()
        await self.pods.aclose()
        self.sandboxes.aclose()
        if not self.parts.sandboxes.pods() and not self.parts.ledger.entries():
            try:
                await self.parts.network.retire()
                await self.parts.blocking.run(self._remove_cgroup)
            except (errors.AtollError, OSError) as error:
                log.warning("what served the pods stays: %s", error)

    def _remove_cgroup(self) -> None:
        """Our own cgroup, then each parent of it that nobody else is in, the configured one at most."""
        for path in (self.parts.cgroup_parent, self.parts.config.cgroup_parent):
            for folder in Cgroup(path, self.parts.host.hierarchies).folders:
                with contextlib.suppress(FileNotFoundError):
                    try:
                        folder.rmdir()
                    except OSError as error:
                        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                            raise


def _attachments(entries: list[Entry]) -> list[Attachment]:
    """Those that can be read; the pod of a damaged one says so itself."""
    found: list[Attachment] = []
    for entry in entries:
        with contextlib.suppress(errors.DataLoss):
            attachment = kinds.recorded_attachment(entry)
            if attachment is not None:
                found.append(attachment)
    return found
