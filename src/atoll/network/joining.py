"""Joining a namespace to networks and leaving them again: the steps that a pod and a pooled namespace share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking, run_to_completion, wait_all
from atoll.linux import netns
from atoll.linux.userns import IDMap
from atoll.network import result as results
from atoll.network import teardown
from atoll.network.cache import AttachmentKey
from atoll.network.cni import CNI, Added, Attach
from atoll.network.config import NetworkConfigList
from atoll.network.model import Attachment, NetworkAttachment, PluginTiming

LEAVE_TIMEOUT_S = 90.0
"""Longest time for taking back what a failed join had made."""


class Joiner:
    """Makes and unmakes the networks of one namespace at a time; holds no state but what CNI's cache holds."""

    def __init__(self, *, cni: CNI, blocking: Blocking, ip_preference: str = "ipv4") -> None:
        self.cni = cni
        self._blocking = blocking
        self._ip_preference = ip_preference

    async def join(self, networks: tuple[NetworkConfigList, ...], attach: Attach, *, sandbox_id: str) -> Attachment:
        """Make the namespace where it is missing and join all `networks`, at the same time, as eth0, eth1, ...

        When one fails or the caller is cancelled, all are left again, and a namespace made here is gone.
        """
        path = Path(attach.netns_path)
        made = not await self._blocking.run(netns.exists, path)
        try:
            if made:  # a thread cannot be cancelled, so what it makes is waited for
                await run_to_completion(self._blocking.run(make_netns, path, attach.users), within=LEAVE_TIMEOUT_S)
            added = await wait_all(
                [self.cni.add(network, replace(attach, ifname=f"eth{at}")) for at, network in enumerate(networks)]
            )
            return self._attachment(networks, added, attach, sandbox_id)
        except BaseException as error:
            await self._take_back(attach.container_id, path if made else None, error)
            raise

    async def _take_back(self, container_id: str, path: Path | None, cause: BaseException) -> None:
        keys = [key for key in self.cni.cache.recorded() if key.container_id == container_id]
        try:
            await run_to_completion(self.leave(keys, path, abandon=True), within=LEAVE_TIMEOUT_S)
        except errors.AtollError as error:
            cause.add_note(f"and leaving the networks again failed: {error}")

    async def leave(
        self,
        keys: Iterable[AttachmentKey],
        path: Path | None,
        *,
        abandon: bool = False,
        fallback: Mapping[str, NetworkConfigList] | None = None,
        force: bool = False,
    ) -> tuple[PluginTiming, ...]:
        """Leave the networks of `keys`, give their addresses back and drop the pin at `path`; idempotent.

        Where everything else dies with the namespace, it is dropped first and only the addresses are given
        back (see `teardown`). Otherwise each chain's DEL runs in the namespace, or without it where it has
        vanished. When a DEL fails the pin stays, for another try, unless `abandon` is set. `fallback` and
        `force` are `CNI.delete`'s, by network name.
        """
        by_name = fallback or {}
        keys = list(keys)
        timings: list[tuple[PluginTiming, ...]] = []
        droppable = False
        try:
            droppable = path is not None and all(self._is_droppable(key, by_name.get(key.network)) for key in keys)
            if path is not None and droppable:
                await self._blocking.run(remove_netns, path)
            there = path is None or (not droppable and await self._blocking.run(netns.exists, path))
            netns_path = None if there else ""
            timings = await wait_all(
                [
                    self.cni.delete(
                        key, netns_path=netns_path, drop=droppable, fallback=by_name.get(key.network), force=force
                    )
                    for key in keys
                ]
            )
        except errors.AtollError:
            if abandon and path is not None:
                await self._blocking.run(remove_netns, path)
            raise
        if path is not None and not droppable:
            await self._blocking.run(remove_netns, path)
        return tuple(timing for chain in timings for timing in chain)

    def _is_droppable(self, key: AttachmentKey, fallback: NetworkConfigList | None) -> bool:
        entry = self.cni.entry(key, fallback)
        return entry is None or teardown.is_droppable(entry.network, entry.capability_args)

    def _attachment(
        self, networks: tuple[NetworkConfigList, ...], added: list[Added], attach: Attach, sandbox_id: str
    ) -> Attachment:
        joined = tuple(
            NetworkAttachment(network=network.name, ifname=f"eth{at}", result=made.result)
            for at, (network, made) in enumerate(zip(networks, added, strict=True))
        )
        first = results.pod_addresses(joined[0])
        if not first:
            raise errors.FailedPrecondition(
                f"network {networks[0].name} gave eth0 of {attach.container_id} no address; see {networks[0].source}"
            )
        ip, others = results.choose_ip(first, self._ip_preference)
        return Attachment(
            sandbox_id=sandbox_id,
            container_id=attach.container_id,
            netns_path=attach.netns_path,
            networks=joined,
            ip=ip,
            additional_ips=others,
            timings=tuple(timing for made in added for timing in made.timings),
        )


def make_netns(path: Path, users: IDMap | None) -> None:
    """`netns.create` in place of a file that a reboot left; errors as ours, naming the path."""
    try:
        if path.exists():
            netns.remove(path)
        netns.create(path, users)
    except OSError as error:
        raise errors.FailedPrecondition(f"{path}: the network namespace cannot be made: {error.strerror}") from error


def remove_netns(path: Path) -> None:
    """`netns.remove` with errors as ours, naming the path."""
    try:
        netns.remove(path)
    except OSError as error:
        raise errors.FailedPrecondition(f"{path}: the network namespace cannot be dropped: {error.strerror}") from error
