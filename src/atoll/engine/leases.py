"""Addresses of configured networks that are leased and that nobody on this host has.

host-local keeps a file an address, whose first line is the container ID that it was given to. Such a folder may be
shared with other runtimes, so that a lease is only told of, never taken back: where neither an attachment of ours has
its ID, nor any network namespace of the host its address, and it is not as young as an ADD that is under way.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from atoll.concurrency import Blocking
from atoll.ledger.fsck import Finding, Problem, disagreement
from atoll.linux import mounts, netlink, netns
from atoll.network.config import NetworkConfigList
from atoll.network.service import Network

DEFAULT_FOLDER = Path("/var/lib/cni/networks")
YOUNGEST_S = 60.0
MAX_NAMESPACES = 4096
KIND = "lease"


class _Ipam(msgspec.Struct):
    type: str = ""
    data_dir: str = msgspec.field(name="dataDir", default="")


class _Plugin(msgspec.Struct):
    ipam: _Ipam = msgspec.field(default_factory=_Ipam)


async def unheld(network: Network, blocking: Blocking) -> tuple[Finding, ...]:
    """A finding for each such lease of the networks that are configured now."""
    attached = frozenset(key.container_id for key in await blocking.run(network.cni.cache.recorded))
    return await blocking.run(_unheld, network.configured(), attached)


def _unheld(networks: Iterable[NetworkConfigList], attached: Collection[str]) -> tuple[Finding, ...]:
    leases = {path: owner for path, owner in _leases(networks) if owner not in attached and _is_old(path)}
    if not leases:
        return ()
    held = _addresses()
    return tuple(
        disagreement(Problem.UNHELD, KIND, str(path), owner)
        for path, owner in sorted(leases.items())
        if held is not None and ipaddress.ip_address(path.name) not in held
    )


def _leases(networks: Iterable[NetworkConfigList]) -> Iterator[tuple[Path, str]]:
    for folder in sorted({folder for network in networks for folder in _folders(network)}):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if not _is_address(name):
                    continue
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    first, *_ = (folder / name).read_text().splitlines() or [""]
                    yield folder / name, first.strip()


def _folders(network: NetworkConfigList) -> Iterator[Path]:
    for plugin in network.plugins:
        with contextlib.suppress(msgspec.MsgspecError):
            ipam = msgspec.convert(dict(plugin.raw), type=_Plugin).ipam
            if ipam.type == "host-local":
                yield Path(ipam.data_dir or DEFAULT_FOLDER) / network.name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > YOUNGEST_S
    except OSError:
        return False


def _addresses() -> frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address] | None:
    """Every address of every network namespace that can be reached; None where there are too many to look at."""
    places = _namespaces()
    if len(places) > MAX_NAMESPACES:
        return None
    found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    for place in places.values():
        with contextlib.suppress(OSError):  # it has gone meanwhile
            found.update(one.interface.ip for one in netns.inside(place, netlink.addresses))
    return frozenset(found)


def _namespaces() -> dict[int, Path]:
    """By inode: those that a process lives in, and those that are pinned."""
    found: dict[int, Path] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            place = Path("/proc", name, "ns/net")
            with contextlib.suppress(OSError):
                found.setdefault(place.stat().st_ino, place)
    for mount in mounts.read_mountinfo():
        if mount.filesystem == "nsfs" and mount.root.startswith("net:"):
            place = Path(mount.mount_point)
            with contextlib.suppress(OSError):
                found.setdefault(place.stat().st_ino, place)
    return found
