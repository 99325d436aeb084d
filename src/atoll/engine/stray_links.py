"""Links that a CNI plugin which was cut short left on the bridge of the default network.

A pod's link has its other end in the pod's network namespace, and goes with that. One whose both ends are on the host
is no pod's. The bridge is this daemon's alone, by its name; what hangs on other bridges may be anybody's: it is not
looked at.
"""

from __future__ import annotations

from atoll import errors
from atoll.concurrency import Blocking
from atoll.ledger.kind import Entry, Found, Kind
from atoll.linux import netlink


class StrayLinkKind(Kind):
    """A veth on our bridge whose peer never came into a pod; it is known by its name."""

    name = "link"
    volatile = True

    def __init__(self, bridge: str, blocking: Blocking) -> None:
        self._bridge = bridge
        self._blocking = blocking

    async def scan(self) -> list[Found]:
        return [Found(kind=self.name, key=name) for name in await self._blocking.run(self._strays)]

    def _strays(self) -> list[str]:
        links = netlink.links()
        bridges = {link.index for link in links if link.name == self._bridge and link.kind == "bridge"}
        return [link.name for link in links if link.master in bridges and link.kind == "veth" and link.has_peer_here]

    async def release(self, entry: Entry) -> None:
        if not await self.exists(entry):
            return
        try:
            await self._blocking.run(netlink.delete_link, entry.key)
        except OSError as error:
            raise errors.Unavailable(f"link {entry.key}: cannot be deleted: {error.strerror}") from error

    async def exists(self, entry: Entry) -> bool:
        return entry.key in await self._blocking.run(self._strays)
