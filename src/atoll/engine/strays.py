"""What a crash, a bug or a hand can leave that no entry of a pod or container stands for; `fsck` looks for it.

    shim      a shim of ours, a relay's process or the holder of a pod's namespaces whose bundle is gone
    mount     a mount below the daemon's folders, outside of those whose kinds see to their own mounts
    socket    a shim's socket where nobody listens, and no bundle's
    helper    a program that hangs, whose shim or daemon is gone (`lost_helpers`)
    oci       what an OCI runtime still knows of a container whose bundle is gone
    address   an address of the default network leased to nobody that is attached

Nothing of these is ever entered by an operation, so every one found is a stray; an entry lives while one is released.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import Blocking
from atoll.engine.lost_helpers import Helpers
from atoll.engine.lost_records import CRUN_RECORD, RUNC_RECORD
from atoll.engine.paths import Paths
from atoll.ledger.kind import Entry, Found, Kind
from atoll.linux import mounts, process
from atoll.linux.process import Spawner
from atoll.oci.runtime import ENVIRONMENT, OCIRuntime
from atoll.runtime import ending, hung
from atoll.shim import records
from atoll.shim.pod_holder import holders_in
from atoll.unreadable import UNREADABLE

SHIM = "shim"
"""Its kind."""
RELAY = "atoll-relay"
DELETED = " (deleted)"


class StrayShimKind(Kind):
    """A shim is known by its socket, whose name its bundle tells; its process may serve others, which go on.

    A relay is known by its working folder, which is its bundle; it keeps it when the bundle is removed. A holder has
    its bundle in its command line, and the record there names it. The socket of a shim that was given up is put aside
    (`runtime.hung`); it goes with the shim, or with its process.
    """

    name = SHIM
    volatile = True
    limit_s: float = 15.0

    def __init__(self, paths: Paths, namespaces: Callable[[], frozenset[str]], blocking: Blocking) -> None:
        self._paths = paths
        self._namespaces = namespaces
        self._relays = paths.relays.resolve()
        self._blocking = blocking

    async def scan(self) -> list[Found]:
        return await self._blocking.run(lambda: [*self._stray_shims(), *self._stray_relays(), *self._stray_holders()])

    def _stray_shims(self) -> Iterator[Found]:
        # Sockets first: a bundle is there before its socket, and after it.
        live = [name for name in _names(self._paths.sockets) if _is_live(self._paths.sockets / name)]
        owned = _owned_sockets(self._paths, self._namespaces())
        return (Found(kind=self.name, key=name) for name in live if name not in owned)

    def _stray_relays(self) -> Iterator[Found]:
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            seen = process.stat(int(name))
            if seen is None or seen.command != RELAY or seen.state in "ZX":
                continue
            try:
                folder = os.readlink(f"/proc/{name}/cwd")
            except OSError:
                continue
            if folder.endswith(DELETED) and Path(folder.removesuffix(DELETED)).parent == self._relays:
                owner = Path(folder.removesuffix(DELETED)).name
                data = {"start": str(seen.start_ticks), "boot": process.boot_id()}
                yield Found(kind=self.name, key=name, owner=owner, data=data)

    def _stray_holders(self) -> Iterator[Found]:
        for who, bundle in holders_in(self._paths.shims):
            try:
                record = records.read(bundle / records.SANDBOX, records.SandboxRecord)
            except errors.DataLoss:
                continue  # of a pod that is there: whoever frees it frees its holder
            if record is None or record.holder != who:
                data = {"start": str(who.start_ticks), "boot": who.boot_id}
                yield Found(kind=self.name, key=str(who.pid), owner=bundle.name, data=data)

    def _identity(self, entry: Entry) -> process.ProcessId:
        pid = int(entry.data.get("pid", "") or entry.key)
        return process.ProcessId(pid=pid, start_ticks=int(entry.data["start"]), boot_id=entry.data["boot"])

    async def release(self, entry: Entry) -> None:
        if entry.key.endswith(hung.ASIDE):
            await self._release_aside(entry)
            return
        if not entry.data:
            await ending.end_shared(self._socket(entry), entry.key)
            return
        pidfd = process.open_pidfd(self._identity(entry))
        if pidfd is None:
            return
        try:
            await ending.kill(pidfd, entry.owner)
        finally:
            os.close(pidfd)

    async def _release_aside(self, entry: Entry) -> None:
        path = self._socket(entry)
        if not entry.data or process.is_alive(self._identity(entry)):
            who = f"{entry.owner.rpartition('.')[2][:13]} of process {entry.data.get('pid', 'unknown')}"
            await ending.end_shared(path, who)
        path.unlink(missing_ok=True)

    async def exists(self, entry: Entry) -> bool:
        if entry.key.endswith(hung.ASIDE):
            return await self._blocking.run(os.path.lexists, self._socket(entry))
        if not entry.data:
            return await self._blocking.run(_is_live, self._socket(entry))
        return process.is_alive(self._identity(entry))

    def _socket(self, entry: Entry) -> Path:
        path = self._paths.sockets / entry.key
        if path.parent != self._paths.sockets:
            raise errors.InvalidArgument(f"shim {entry.key!r}: is no socket of this daemon")
        return path


class StrayMountKind(Kind):
    """Mounts in the folders of this daemon that belong to none of the other kinds."""

    name = "mount"
    volatile = True

    def __init__(self, paths: Paths, blocking: Blocking) -> None:
        # The mount table has the paths without symbolic links.
        managed = (paths.netns, paths.pods, paths.shims, paths.bundles, paths.images)
        self._places = (paths.root.resolve(), paths.state.resolve())
        self._managed = tuple(one.resolve() for one in managed)
        self._blocking = blocking

    def _is_stray(self, point: Path) -> bool:
        if any(point == one or one in point.parents for one in self._managed):
            return False
        # A root inside the state, or a disk mounted at one of the two, is the operator's choice.
        return point not in self._places and any(one in point.parents for one in self._places)

    async def scan(self) -> list[Found]:
        table = await self._blocking.run(mounts.read_mountinfo)
        return [
            Found(kind=self.name, key=str(found.mount_point))
            for found in reversed(table)
            if self._is_stray(Path(found.mount_point))
        ]

    async def release(self, entry: Entry) -> None:
        if not self._is_stray(Path(entry.key)):
            raise errors.FailedPrecondition(f"mount {entry.key}: is not below this daemon's folders")
        try:
            await self._blocking.run(mounts.unmount, Path(entry.key))
        except OSError as error:
            raise errors.Unavailable(f"mount {entry.key}: cannot be unmounted: {error.strerror}") from error

    async def exists(self, entry: Entry) -> bool:
        return await self._blocking.run(mounts.is_mount_point, Path(entry.key))


class StraySocketKind(Kind):
    """Sockets are named after the sandbox whose shim listens there, so a bundle tells which are somebody's."""

    name = "socket"
    volatile = True

    def __init__(self, paths: Paths, namespaces: Callable[[], frozenset[str]], blocking: Blocking) -> None:
        self._paths = paths
        self._namespaces = namespaces
        self._blocking = blocking

    async def scan(self) -> list[Found]:
        return await self._blocking.run(self._scan)

    def _scan(self) -> list[Found]:
        dead = [name for name in _names(self._paths.sockets) if _is_dead(self._paths.sockets / name)]
        owned = _owned_sockets(self._paths, self._namespaces())
        return [Found(kind=self.name, key=name) for name in dead if name not in owned]

    async def release(self, entry: Entry) -> None:
        path = self._paths.sockets / entry.key
        if path.parent != self._paths.sockets or not await self._blocking.run(_is_dead, path):
            return
        path.unlink(missing_ok=True)

    async def exists(self, entry: Entry) -> bool:
        return await self._blocking.run(os.path.lexists, self._paths.sockets / entry.key)


class StrayContainerKind(Kind):
    """Records of OCI runtimes in the folders that are ours; each names the container's bundle, whoever made that."""

    name = "oci"
    volatile = True
    limit_s: float = 30.0

    def __init__(self, paths: Paths, spawner: Spawner, blocking: Blocking) -> None:
        self._paths = paths
        self._spawner = spawner
        self._blocking = blocking

    def _roots(self) -> list[Path]:
        others = self._paths.state / "oci.d"
        return [self._paths.state / "oci", *(others / name for name in _names(others))]

    async def scan(self) -> list[Found]:
        return await self._blocking.run(self._scan)

    def _scan(self) -> list[Found]:
        return [
            Found(kind=self.name, key=str((root / name).relative_to(self._paths.state)))
            for root in self._roots()
            for name in _names(root)
            if self._is_stray(root / name)
        ]

    @staticmethod
    def _is_stray(record: Path) -> bool:
        bundle = _bundle_of(record)
        return bundle is not None and not bundle.is_dir()

    def _record(self, entry: Entry) -> Path:
        path = self._paths.state / entry.key
        if path.parent not in self._roots() or ".." in path.parts:
            raise errors.InvalidArgument(f"container record {entry.key!r}: is not in a folder of this daemon")
        return path

    async def release(self, entry: Entry) -> None:
        record = self._record(entry)
        if not await self._blocking.run(self._is_stray, record):
            return
        program = "crun" if (record / CRUN_RECORD).exists() else "runc"
        binary = shutil.which(program, path=ENVIRONMENT["PATH"])
        if binary is None:
            raise errors.FailedPrecondition(f"container record {entry.key}: {program}, which made it, is not installed")
        with contextlib.suppress(errors.NotFound):
            await OCIRuntime(Path(binary), record.parent, self._spawner).delete(record.name, force=True)

    async def exists(self, entry: Entry) -> bool:
        return await self._blocking.run(self._is_stray, self._record(entry))


class StrayAddressKind(Kind):
    """Leases of host-local for the default network: a file an address, whose first line is the container ID."""

    name = "address"

    def __init__(self, folder: Path, attached: Callable[[], frozenset[str]], blocking: Blocking) -> None:
        """`attached` gives the container IDs that have an attachment, or are getting one."""
        self._folder = folder
        self._attached = attached
        self._blocking = blocking

    async def scan(self) -> list[Found]:
        leases = await self._blocking.run(self._leases)
        attached = self._attached()
        return [
            Found(kind=self.name, key=key, owner=owner if owner.isalnum() else "")
            for key, owner in leases
            if owner not in attached
        ]

    def _leases(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for network in _names(self._folder):
            for name in _names(self._folder / network):
                if _is_address(name):
                    try:
                        first, *_ = (self._folder / network / name).read_text().splitlines() or [""]
                    except (OSError, UnicodeDecodeError):
                        continue
                    found.append((f"{network}/{name}", first.strip()))
        return found

    def _path(self, entry: Entry) -> Path:
        network, _, name = entry.key.partition("/")
        if not _is_address(name) or network not in _names(self._folder):
            raise errors.InvalidArgument(f"address {entry.key!r}: is none of the default network")
        return self._folder / network / name

    async def release(self, entry: Entry) -> None:
        if not await self.exists(entry):
            return
        path = self._path(entry)
        try:
            await self._blocking.run(path.unlink)
        except FileNotFoundError:
            return
        except OSError as error:
            raise errors.Unavailable(f"{path}: cannot be given back: {error.strerror}") from error

    async def exists(self, entry: Entry) -> bool:
        return await self._blocking.run(os.path.lexists, self._folder / entry.key)


def make(
    paths: Paths, namespaces: Callable[[], frozenset[str]], spawner: Spawner, blocking: Blocking
) -> dict[str, Kind]:
    """Those that need only our own folders, by name; `namespaces` tells the containerd namespaces with sandboxes."""
    kinds: tuple[Kind, ...] = (
        StrayShimKind(paths, namespaces, blocking),
        StrayMountKind(paths, blocking),
        StraySocketKind(paths, namespaces, blocking),
        StrayContainerKind(paths, spawner, blocking),
        Helpers(paths, blocking),
    )
    return {kind.name: kind for kind in kinds}


def _owned_sockets(paths: Paths, namespaces: frozenset[str]) -> set[str]:
    """The names of the sockets of every shim and relay whose bundle is there."""
    owners = [one for folder in (paths.shims, paths.bundles) for one in _names(folder)]
    owners += [f"relay/{one}" for one in _names(paths.relays)]
    return {
        hashlib.sha256(f"{namespace}/{one}".encode()).hexdigest()[:32] for one in owners for namespace in namespaces
    }


class _Crun(msgspec.Struct):
    bundle: str = ""


class _RuncConfig(msgspec.Struct):
    labels: list[str] = []


class _Runc(msgspec.Struct):
    config: _RuncConfig = msgspec.field(default_factory=_RuncConfig)


def _bundle_of(record: Path) -> Path | None:
    """The bundle that a runtime's record of a container names; None for what is no such record."""
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            bundle = msgspec.json.decode((record / CRUN_RECORD).read_bytes(), type=_Crun).bundle
            return Path(bundle) if bundle else None
        labels = msgspec.json.decode((record / RUNC_RECORD).read_bytes(), type=_Runc).config.labels
    except (OSError, *UNREADABLE):
        return None
    named = [label.removeprefix("bundle=") for label in labels if label.startswith("bundle=")]
    return Path(named[0]) if named else None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_dead(path: Path) -> bool:
    """Whether there is a socket at which nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def _is_live(path: Path) -> bool:
    """Whether somebody listens at a socket; one whose backlog is full is somebody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)
