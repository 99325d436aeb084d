"""`Engine`: the use cases behind every door."""

from __future__ import annotations

import time

from atoll.concurrency import SingleFlight, wait_all
from atoll.engine import kinds
from atoll.engine.containers import Containers
from atoll.engine.execs import Execs
from atoll.engine.parts import Parts
from atoll.engine.pod import Pod
from atoll.engine.pods import Pods
from atoll.engine.recovery import Recovery, recover
from atoll.image.store import Collected
from atoll.ledger import fsck
from atoll.ledger.fsck import Findings

SETTLE_TIMEOUT_S = 10.0


class Engine:
    """Pods, containers, execs, images and the ledger of one daemon.

    Make it, `recover` it in the background, serve meanwhile; `aclose` lets go of everything and ends nothing.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.containers = Containers(parts)
        self.pods = Pods(parts, self.containers)
        self.execs = Execs(parts)
        self.started_at_ns = time.time_ns()
        self._collections: SingleFlight[str, Collected] = SingleFlight(parts.owner)

    async def recover(self) -> Recovery:
        """Take up what an earlier daemon left: pods, containers, debts."""
        return await recover(self.parts, self.pods, self.containers)

    def pod_of(self, container_id: str) -> Pod:
        """The pod of a container; raises `NotFound`."""
        return self.pods.get(self.containers.get(container_id).sandbox_id)

    def owners(self) -> frozenset[str]:
        """Everybody whose ledger entries are in order: pods, their networks, containers."""
        pods = {pod.id for pod in self.pods.list()}
        networks = {kinds.NETWORK_OWNER + pod.id for pod in self.pods.list() if pod.netns_path}
        containers = {container.id for container in self.containers.list()}
        return frozenset(pods | networks | containers)

    async def remove_image(self, ref_or_id: str) -> None:
        """Remove a name or an image and give its disk space back; what containers rest on stays. Idempotent."""
        images = self.parts.images
        await images.remove(ref_or_id)
        await self._collections.run("collect", images.collect, name="images/collect")

    async def fsck(self, *, repair: bool) -> tuple[Findings, Findings]:
        """Compare the ledger with the machine; what was found, and what of it is left after the repair asked for."""
        await self.pods.settle(SETTLE_TIMEOUT_S)
        found = await fsck.plan(self.parts.ledger, self.owners, busy=self.pods.is_busy)
        if not repair:
            return found, found
        return found, await fsck.repair(self.parts.ledger, found)

    async def aclose(self) -> None:
        await wait_all([self.pods.aclose()])
