"""Ready network namespaces: made, joined to the networks and waiting for a pod, refilled in the background.

    <folder>/<pool ID>.json                       intent while it is being made, then the attachment
    <folder>/taken/<sandbox ID>@<pool ID>.json    handed out (one rename); until the pod's network is left

The pool ID is the CNI container ID and the name of the pin, so all that an entry owns is attributable. A
pod's DEL must use it: it is the attachment's `container_id`. Files are not synced: namespaces end with the
machine anyway, and what a power cut leaves in an IPAM's folder is GC's work.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import Blocking, TaskOwner
from atoll.linux import netns
from atoll.network.cache import AttachmentKey
from atoll.network.cni import Attach
from atoll.network.config import NetworkConfigList
from atoll.network.joining import Joiner
from atoll.network.model import Attachment
from atoll.unreadable import UNREADABLE

PREFIX = "pool-"
LIMIT = 256
"""Most ready namespaces that may be asked for."""
REFILL_DELAY_S = 0.02
"""Head start of a pod that has just taken a namespace over the making of the next one."""
BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
"""Waits after the first, second, ... failure in a row; after the last the pool rests until the next `take`."""
POD_CAPABILITIES = frozenset({"portMappings", "bandwidth", "ips", "mac"})
"""Capabilities that a pod may leave unused; a network that wants any other is never fit for a pool."""

Networks = Callable[[], Awaitable[tuple[NetworkConfigList, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Counters since the start, and what stands ready; `last_error` is why the last refill failed, if it did."""

    ready: int
    size: int
    hits: int
    misses: int
    broken: int
    last_error: str


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    pool_id: str
    netns_path: str
    digests: list[str]
    device: int = 0
    inode: int = 0
    attachment: Attachment | None = None


class NetnsPool:
    """Keeps `size` namespaces ready for the current networks, as long as those are fit."""

    def __init__(
        self,
        *,
        folder: Path,
        netns_folder: Path,
        joiner: Joiner,
        networks: Networks,
        size: int,
        owner: TaskOwner,
        blocking: Blocking,
        collecting: asyncio.Lock,
    ) -> None:
        """`networks` tells the networks that a pod would join now; `owner` runs the refilling.

        While `collecting` is held by GC, which must know of every attachment, no entry is begun.
        """
        if not 0 <= size <= LIMIT:
            raise errors.InvalidArgument(f"pool_size {size}: must be 0 to {LIMIT}")
        self._folder = folder
        self._taken = folder / "taken"
        self._netns_folder = netns_folder
        self._joiner = joiner
        self._networks = networks
        self._size = size
        self._owner = owner
        self._blocking = blocking
        self._ready: collections.deque[_Entry] = collections.deque()
        self._held: dict[str, Attachment] = {}
        self._owned: set[str] = set()
        self._collecting = collecting
        self._started = False
        self._refilling: asyncio.Task[None] | None = None
        self._hits = self._misses = self._broken = 0
        self._last_error = ""

    async def start(self, live: Collection[str]) -> None:
        """Find the entries again: ready ones are kept, the rest is released, as is what no `live` sandbox has taken.

        Call once, before pods are run; the releasing goes on in the background with the first refill.
        """
        await self._blocking.run(lambda: self._taken.mkdir(mode=0o700, parents=True, exist_ok=True))
        doomed: list[Path] = []
        digests = await self._current_digests()
        for path in await self._blocking.run(_files, self._folder):
            entry = _read(path)
            if entry is not None and entry.attachment and entry.digests == digests and _is_whole(entry):
                self._ready.append(entry)
                self._owned.add(entry.pool_id)
            else:
                doomed.append(path)
        for path in await self._blocking.run(_files, self._taken):
            sandbox_id = path.name.partition("@")[0]
            entry = _read(path)
            if sandbox_id in live and entry is not None and entry.attachment is not None:
                self._held[sandbox_id] = replace(entry.attachment, sandbox_id=sandbox_id)
                self._owned.add(entry.pool_id)
            else:
                doomed.append(path)
        self._started = True
        if doomed:
            self._owner.spawn(self._release_all(doomed), name="network/pool/release")
        self._refill()

    def take(self, sandbox_id: str, networks: tuple[NetworkConfigList, ...]) -> Attachment | None:
        """A ready attachment to exactly `networks`, now `sandbox_id`'s; None where there is none.

        The hand-out is one rename, so after a crash `taken_by` still knows it. Takes some 50 microseconds.
        """
        digests = [network.digest for network in networks]
        while self._ready:
            entry = self._ready.popleft()
            if entry.digests != digests or not _is_whole(entry) or entry.attachment is None:
                self._broken += 1
                self._owner.spawn(
                    self._release_all([self._path(entry.pool_id)]), name=f"network/{entry.pool_id}/release"
                )
                continue
            try:
                self._path(entry.pool_id).rename(self._taken / f"{sandbox_id}@{entry.pool_id}.json")
            except OSError:
                self._broken += 1
                continue
            self._hits += 1
            self._refill()
            self._held[sandbox_id] = replace(entry.attachment, sandbox_id=sandbox_id)
            return self._held[sandbox_id]
        self._misses += 1
        self._refill()
        return None

    def taken_by(self, sandbox_id: str) -> Attachment | None:
        """What `take` gave to `sandbox_id` and `forget` has not ended yet, this run of the daemon or an earlier one."""
        return self._held.get(sandbox_id)

    def forget(self, attachment: Attachment) -> None:
        """The pod has left its networks; idempotent."""
        self._held.pop(attachment.sandbox_id, None)
        self._owned.discard(attachment.container_id)
        (self._taken / f"{attachment.sandbox_id}@{attachment.container_id}.json").unlink(missing_ok=True)

    @property
    def stats(self) -> PoolStats:
        return PoolStats(
            ready=len(self._ready),
            size=self._size,
            hits=self._hits,
            misses=self._misses,
            broken=self._broken,
            last_error=self._last_error,
        )

    @property
    def pool_ids(self) -> frozenset[str]:
        """The CNI container IDs that are being made, stand ready or are handed out."""
        return frozenset(self._owned)

    async def drain(self) -> None:
        """Release every entry that stands ready, and make no more."""
        self._started = False
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.wait({self._refilling})
        self._ready.clear()
        await self._release_all(await self._blocking.run(_files, self._folder))

    def _refill(self) -> None:
        missing = len(self._ready) < self._size
        if missing and self._started and (self._refilling is None or self._refilling.done()):
            self._refilling = self._owner.spawn(self._fill(), name="network/pool/refill")

    async def _fill(self) -> None:
        failures = 0
        await asyncio.sleep(REFILL_DELAY_S)
        while len(self._ready) < self._size and failures < len(BACK_OFF_S):
            try:
                networks = await self._fit_networks()
                if not networks:
                    return
                self._ready.append(await self._make(networks))
                self._last_error, failures = "", 0
            except (errors.AtollError, OSError) as error:
                self._last_error = str(error)
                await asyncio.sleep(BACK_OFF_S[failures])
                failures += 1

    async def _current_digests(self) -> list[str]:
        try:
            return [network.digest for network in await self._fit_networks()]
        except errors.AtollError as error:  # no network now; what stands ready cannot be handed out
            self._last_error = str(error)
            return []

    async def _fit_networks(self) -> tuple[NetworkConfigList, ...]:
        """The networks, or none where any of them wants to know the pod."""
        networks = await self._networks()
        return networks if all(is_fit(network) for network in networks) else ()

    async def _make(self, networks: tuple[NetworkConfigList, ...]) -> _Entry:
        pool_id = PREFIX + secrets.token_hex(8)
        path = self._netns_folder / pool_id
        entry = _Entry(pool_id=pool_id, netns_path=str(path), digests=[network.digest for network in networks])
        async with self._collecting:
            self._owned.add(pool_id)
        try:
            self._write(entry)
            attach = Attach(container_id=pool_id, netns_path=str(path), cni_args=(("IgnoreUnknown", "1"),))
            attachment = await self._joiner.join(networks, attach, sandbox_id="")
            identity = netns.identity(path)
            entry = msgspec.structs.replace(entry, attachment=attachment, device=identity.device, inode=identity.inode)
            self._write(entry)
            return entry
        except BaseException:
            if not any(key.container_id == pool_id for key in self._joiner.cni.cache.recorded()):
                self._path(pool_id).unlink(missing_ok=True)
                self._owned.discard(pool_id)
            raise

    async def _release_all(self, paths: list[Path]) -> None:
        for path in paths:
            pool_id = path.name.removesuffix(".json").rpartition("@")[2]
            keys: list[AttachmentKey] = [
                key for key in self._joiner.cni.cache.recorded() if key.container_id == pool_id
            ]
            try:
                await self._joiner.leave(keys, self._netns_folder / pool_id)
                path.unlink(missing_ok=True)
                self._owned.discard(pool_id)
            except errors.AtollError as error:  # the file stays, so the next start tries again
                self._last_error = str(error)

    def _path(self, pool_id: str) -> Path:
        return self._folder / f"{pool_id}.json"

    def _write(self, entry: _Entry) -> None:
        path = self._path(entry.pool_id)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(entry))
            temporary.rename(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise errors.FailedPrecondition(f"{path}: the pool's entry cannot be written: {error.strerror}") from error


def is_fit(network: NetworkConfigList) -> bool:
    """Whether nothing in `network` depends on the pod that will use it, as far as its configuration tells."""
    return all(plugin.capabilities <= POD_CAPABILITIES for plugin in network.plugins)


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".tmp"):
            (folder / name).unlink()
        elif name.endswith(".json"):
            found.append(folder / name)
    return found


def _read(path: Path) -> _Entry | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Entry)
    except (FileNotFoundError, *UNREADABLE):
        return None


def _is_whole(entry: _Entry) -> bool:
    try:
        identity = netns.identity(Path(entry.netns_path))
    except OSError:
        return False
    return (identity.device, identity.inode) == (entry.device, entry.inode)
