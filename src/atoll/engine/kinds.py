"""What the ledger knows of a pod and of a container, in the order it is entered.

    pod         pod-files   hostname, hosts, resolv.conf, shm in <state>/pods/<pod>        (gone after a reboot)
                volumes     <root>/volumes/<pod>, where the pod has volumes
                network     netns and CNI attachment; its owner is `net.<pod>`, for it may outlive the pod
                cgroup      <cgroup_parent>/<instance>/<pod>, where the pod brought none   (gone after a reboot)
                snapshot    of the pause container, where there is one
                relay       what moves the stdio of a shim that is not ours            (gone after a reboot)
                sandbox     what the sandboxer made: stop and shutdown
    hosted      pod-files, cgroup, snapshot, sandbox, as a pod; its owner is its key
                links       from a containerd's folders to the pod-files
    container   checkpoint  <root>/containers/<container>
                snapshot    the writable layer
                bundle      <state>/bundles/<container> and what is mounted in it          (gone after a reboot)
                task        the OCI container and its processes                            (gone after a reboot)

Teardown is the same list from the bottom to the top.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import Blocking
from atoll.config import Config
from atoll.database import Plan
from atoll.engine import orphans, strays
from atoll.engine.drivers import is_foreign
from atoll.engine.hosts import Hosts
from atoll.engine.paths import NAMESPACE, Paths
from atoll.identifiers import is_identifier
from atoll.ledger.kind import BlockingKind, Entry, Found, Intent, Kind
from atoll.ledger.ledger import Ledger
from atoll.ledger.paths import DirectoryKind
from atoll.linux import netns
from atoll.linux.cgroup import Cgroup
from atoll.linux.cgroup_layout import Hierarchies
from atoll.network import pool
from atoll.network.model import Attachment, AttachRequest
from atoll.network.service import Network
from atoll.runtime.binary import BINARY_FILE
from atoll.runtime.bundle import remove_mounted_tree
from atoll.runtime.relay import Relays
from atoll.sandbox.controller import Controller
from atoll.sandboxers import podsandbox
from atoll.sandboxers.roots import snapshot_key as pause_snapshot
from atoll.shim import records
from atoll.snapshot.records import Kind as SnapshotKind
from atoll.snapshot.snapshotter import Snapshotter
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

POD_FILES = "pod-files"
VOLUMES = "volumes"
NETWORK = "network"
CGROUP = "cgroup"
RELAY = "relay"
SANDBOX = "sandbox"
CHECKPOINT = "checkpoint"
SNAPSHOT = "snapshot"
BUNDLE = "bundle"
TASK = "task"

BRANCH = "branch."
"""Begins the key and owner of a snapshot of a container's files, which is a committed one."""
VOLUME = ".volume."
"""Between the container's ID and a number, in the key of the snapshot of an image volume."""
NETWORK_OWNER = "net."
"""Prefix of the owner of a pod's network entry."""


class MountedFolderKind(BlockingKind):
    """A folder of the volatile state with mounts of ours in it, named by its owner."""

    volatile = True
    limit_s: float = 60.0

    def __init__(self, name: str, folder: Path, blocking: Blocking) -> None:
        super().__init__(blocking)
        self.name = name
        self._folder = folder

    def free(self, entry: Entry) -> bool:
        remove_mounted_tree(self._folder / entry.key)
        return True

    def is_absent(self, entry: Entry) -> bool:
        """The folder of the volatile state is in memory; its shim has removed a pod's files long before, as a rule."""
        return not os.path.lexists(self._folder / entry.key)

    async def exists(self, entry: Entry) -> bool:
        return await self.blocking.run(os.path.lexists, self._folder / entry.key)

    async def scan(self) -> list[Found]:
        names = await self.blocking.run(_names, self._folder)
        return [Found(kind=self.name, key=name, owner=name) for name in names]


class BundleKind(MountedFolderKind):
    """The bundle of a container. It has the record of how that is driven, so it stays until nobody needs that."""

    def free(self, entry: Entry) -> bool:
        bundle = self._folder / entry.key
        with contextlib.suppress(errors.DataLoss):  # nothing tells more then
            task = records.read(bundle / records.TASK, records.TaskRecord)
            if task is not None and task.binary and os.path.lexists(known := Path(task.root) / task.id):
                raise errors.Unavailable(f"bundle {entry.key}: its container is not deleted yet: {known} is there")
        return super().free(entry)


class NetworkKind(Kind):
    """A pod's network: `data` holds the request, and the attachment once it is known."""

    name = NETWORK
    limit_s: float = 45.0

    def __init__(self, network: Network, blocking: Blocking) -> None:
        self._network = network
        self._blocking = blocking

    async def release(self, entry: Entry) -> None:
        await self._network.detach(self.decode(entry))

    def decode(self, entry: Entry) -> Attachment | AttachRequest:
        """What is recorded; a value that is damaged stands for an attachment that may be half made."""
        try:
            attachment = recorded_attachment(entry)
            if attachment is not None:
                return attachment
            return msgspec.json.decode(entry.data["request"], type=AttachRequest)
        except (KeyError, errors.DataLoss, *UNREADABLE) as error:
            log.warning("network entry %s: cannot be read, taken as half made: %s", entry.key[:13], error)
            return AttachRequest(sandbox_id=entry.key, netns_path=str(self._network.netns_path(entry.key)))

    async def exists(self, entry: Entry) -> bool:
        return await self._blocking.run(netns.exists, Path(self.decode(entry).netns_path))

    async def scan(self) -> list[Found]:
        """Pins and recorded attachments; the pool keeps its own account of its own, in files."""
        pins = await self._blocking.run(_names, self._network.netns_folder)
        attached = {key.container_id for key in await self._blocking.run(self._network.cni.cache.recorded)}
        found: list[Found] = []
        for name in sorted(attached.union(pins)):
            if name.startswith(pool.PREFIX) or not is_identifier(name):
                continue
            request = AttachRequest(sandbox_id=name, netns_path=str(self._network.netns_folder / name))
            data = {"request": msgspec.json.encode(request).decode()}
            found.append(Found(kind=NETWORK, key=name, owner=NETWORK_OWNER + name, data=data))
        return found


class CgroupKind(BlockingKind):
    """The cgroup that is the parent of a pod's containers; `data` holds its path in the hierarchy."""

    name = CGROUP
    volatile = True

    def __init__(self, parent: str, hierarchies: Hierarchies, blocking: Blocking) -> None:
        super().__init__(blocking)
        self._parent = parent
        self._hierarchies = hierarchies

    def free(self, entry: Entry) -> bool:
        path = f"{self._parent}/{entry.key}"
        found = Cgroup(path, self._hierarchies)
        try:
            found.kill()
            found.delete()
        except OSError as error:
            raise errors.Unavailable(f"cgroup {path}: {error.strerror} ({error.filename})") from error
        return True

    async def exists(self, entry: Entry) -> bool:
        # Made by the shim when the sandbox is, so the entry may well come before it; after that it stays.
        return True

    async def scan(self) -> list[Found]:
        names: set[str] = set()
        for folder in Cgroup(self._parent, self._hierarchies).folders:
            names.update(await self.blocking.run(_folders, folder))
        return [Found(kind=CGROUP, key=name, owner=name) for name in sorted(names)]


class RelayKind(MountedFolderKind):
    """The relay of a pod, and the folder with its fifos."""

    def __init__(self, relays: Relays, folder: Path, blocking: Blocking) -> None:
        super().__init__(RELAY, folder, blocking)
        self._relays = relays

    def is_absent(self, entry: Entry) -> bool:
        return False  # its process may be there without its folder

    def free(self, entry: Entry) -> bool:
        return False

    async def finish(self, entry: Entry) -> None:
        await self._relays.end(entry.key)


class SandboxKind(Kind):
    """A sandbox as its controller holds it; `data` names the runtime handler.

    For a hosted one it also names the containerd namespace, and the ID where that is not the key.
    """

    name = SANDBOX
    limit_s: float = 60.0

    def __init__(self, hosts: Hosts, config: Config, shims: Path, blocking: Blocking) -> None:
        self._hosts = hosts
        self._config = config
        self._shims = shims
        self._blocking = blocking

    def _controller(self, entry: Entry) -> Controller:
        return self._hosts.controller(entry.data.get("handler", ""), entry.data.get("namespace", NAMESPACE))

    async def release(self, entry: Entry) -> None:
        controller, sandbox_id = self._controller(entry), entry.data.get("id", entry.key)
        await controller.stop(sandbox_id)
        with contextlib.suppress(errors.NotFound):
            await controller.shutdown(sandbox_id)

    async def exists(self, entry: Entry) -> bool:
        try:
            await self._controller(entry).status(entry.data.get("id", entry.key))
        except errors.NotFound:
            return await self.is_here(entry.key)
        return True

    async def is_here(self, sandbox_id: str) -> bool:
        """Whether one of this machine's own sandboxers holds it: then it has a folder with the shims."""
        return await self._blocking.run(os.path.lexists, self._shims / sandbox_id)

    async def scan(self) -> list[Found]:
        return await self._blocking.run(self._scan)

    def _scan(self) -> list[Found]:
        return [
            Found(kind=SANDBOX, key=name, owner=name, data={"handler": self._handler_of(name)})
            for name in _names(self._shims)
        ]

    def _handler_of(self, sandbox_id: str) -> str:
        """A handler that can free what is in the sandbox's folder, by its layout; where none can, what it would be."""
        folder = self._shims / sandbox_id
        has_pause = (folder / podsandbox.RECORD).exists() or (folder / sandbox_id).is_dir()
        bundle = folder / sandbox_id if has_pause else folder
        wanted = ("podsandbox" if has_pause else "shim", (bundle / BINARY_FILE).exists())
        default = self._config.default_runtime
        for name in (default, *self._config.runtimes):
            handler = self._config.runtimes[name]
            if (handler.sandboxer, is_foreign(handler.shim)) == wanted:
                return name
        return f"{wanted[0]} over {'another' if wanted[1] else 'our own'} shim"


async def is_elsewhere(ledger: Ledger, sandbox_id: str) -> bool:
    """Whether a sandbox is held by somebody else's process, not by this machine's sandboxers."""
    kind = ledger.kinds[SANDBOX]
    assert isinstance(kind, SandboxKind)
    return not await kind.is_here(sandbox_id)


class SnapshotRemovalKind(BlockingKind):
    """The writable layer of a container."""

    name = SNAPSHOT
    limit_s: float = 60.0

    def __init__(self, snapshotter: Snapshotter, blocking: Blocking) -> None:
        super().__init__(blocking)
        self._snapshotter = snapshotter

    def free(self, entry: Entry) -> bool:
        """Nothing yet: its record goes with the entry, its files after that."""
        return True

    def last_change(self, entry: Entry) -> Plan[None]:
        return self._snapshotter.plan_remove(entry.key)

    async def exists(self, entry: Entry) -> bool:
        return self._snapshotter.has(entry.key)

    async def scan(self) -> list[Found]:
        return [
            Found(kind=SNAPSHOT, key=snapshot.name, owner=_snapshot_owner(snapshot.name))
            for snapshot in self._snapshotter.walk()
            if snapshot.kind is not SnapshotKind.COMMITTED or snapshot.name.startswith(BRANCH)
        ]


def _snapshot_owner(key: str) -> str:
    """The pod of a pause container's, the container of its own and of its image volumes'."""
    return key.removeprefix(pause_snapshot("")).partition(VOLUME)[0]


class TaskKind(BlockingKind):
    """A container in its OCI runtime; released without its shim, which has done it long before where it lives.

    What is needed for that is in the record that the shim, or the driver of a foreign one, wrote into the bundle before
    the container was made; where there is none nothing was made.
    """

    name = TASK
    volatile = True
    limit_s: float = 60.0

    def __init__(self, paths: Paths, reaper: orphans.Orphans, blocking: Blocking) -> None:
        super().__init__(blocking)
        self._paths = paths
        self._orphans = reaper

    def free(self, entry: Entry) -> bool:
        return not (self._paths.bundles / entry.key / records.TASK).exists()

    async def finish(self, entry: Entry) -> None:
        await self._orphans.delete(self._paths.bundles / entry.key)

    async def exists(self, entry: Entry) -> bool:
        # Until the container is removed the entry stands for what may be made at any time by a start.
        return True

    async def scan(self) -> list[Found]:
        return await self.blocking.run(self._scan)

    def _scan(self) -> list[Found]:
        bundles = self._paths.bundles
        names = [name for name in _names(bundles) if (bundles / name / records.TASK).exists()]
        return [Found(kind=TASK, key=name, owner=name) for name in names]


def recorded_attachment(entry: Entry) -> Attachment | None:
    """The attachment in a network's entry, None where it never came to one; raises `DataLoss` for a damaged one."""
    if "attachment" not in entry.data:
        return None
    try:
        return msgspec.json.decode(entry.data["attachment"], type=Attachment)
    except UNREADABLE as error:
        raise errors.DataLoss(f"network entry {entry.key[:13]}: its attachment cannot be read: {error}") from error


def make(
    paths: Paths,
    config: Config,
    *,
    network: Network,
    hosts: Hosts,
    snapshotter: Snapshotter,
    hierarchies: Hierarchies,
    reaper: orphans.Orphans,
    blocking: Blocking,
) -> dict[str, Kind]:
    """Every kind of this daemon but `RelayKind`, `LinksKind` and the strays, by name."""

    def attached() -> frozenset[str]:
        return frozenset(key.container_id for key in network.cni.cache.recorded())

    kinds: tuple[Kind, ...] = (
        MountedFolderKind(POD_FILES, paths.pods, blocking),
        NetworkKind(network, blocking),
        CgroupKind(f"{config.cgroup_parent}/{paths.instance}", hierarchies, blocking),
        SandboxKind(hosts, config, paths.shims, blocking),
        DirectoryKind(VOLUMES, paths.volumes, blocking),
        DirectoryKind(CHECKPOINT, paths.containers, blocking),
        SnapshotRemovalKind(snapshotter, blocking),
        BundleKind(BUNDLE, paths.bundles, blocking),
        TaskKind(paths, reaper, blocking),
        strays.StrayAddressKind(network.default.leases, attached, blocking),
    )
    return {kind.name: kind for kind in kinds}


def pod_intents(
    pod_id: str,
    handler: str,
    request: AttachRequest | None,
    *,
    own_cgroup: bool,
    has_pause: bool,
    has_relay: bool,
    has_volumes: bool = False,
) -> tuple[Intent, ...]:
    """What a pod is about to acquire; `request` is None with the host's network."""
    intents = [Intent(owner=pod_id, kind=POD_FILES, key=pod_id)]
    if has_volumes:
        intents.append(Intent(owner=pod_id, kind=VOLUMES, key=pod_id))
    if request is not None:
        data = {"request": msgspec.json.encode(request).decode()}
        intents.append(Intent(owner=NETWORK_OWNER + pod_id, kind=NETWORK, key=pod_id, data=data))
    if own_cgroup:
        intents.append(Intent(owner=pod_id, kind=CGROUP, key=pod_id))
    if has_pause:
        intents.append(Intent(owner=pod_id, kind=SNAPSHOT, key=pause_snapshot(pod_id)))
    if has_relay:
        intents.append(Intent(owner=pod_id, kind=RELAY, key=pod_id))
    intents.append(Intent(owner=pod_id, kind=SANDBOX, key=pod_id, data={"handler": handler}))
    return tuple(intents)


def container_intents(container_id: str, volumes: Iterable[str] = ()) -> tuple[Intent, ...]:
    """What a container is about to acquire; `volumes` are the keys of its image volumes' snapshots."""
    snapshots = [(SNAPSHOT, container_id), *((SNAPSHOT, key) for key in volumes)]
    wanted = [(CHECKPOINT, container_id), *snapshots, (BUNDLE, container_id), (TASK, container_id)]
    return tuple(Intent(owner=container_id, kind=kind, key=key) for kind, key in wanted)


def network_data(attachment: Attachment) -> dict[str, str]:
    """What the network's entry says once it is known."""
    return {"attachment": msgspec.json.encode(attachment).decode()}


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return []
