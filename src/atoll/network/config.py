"""CNI network configurations: read from a folder, validated, followed without a watcher.

A folder holds `.conflist` files (lists) and `.conf` or `.json` files (a list, or one plugin, which is
a list of one); they count in lexical order. Members that Atoll does not know are kept and handed to the
plugins as they are.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from atoll import errors
from atoll.network.model import JSON, NETWORK_NAME
from atoll.unreadable import UNREADABLE

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Spec versions that Atoll speaks, oldest first."""
SUFFIXES = (".conf", ".conflist", ".json")
CONFIG_LIMIT_BYTES = 1 << 20
TICK_NS = 20_000_000
"""A file may change again within a tick of the file system's clock, and look the same."""
PLUGINS_LIMIT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginConfig:
    """One plugin of a list: what Atoll looks at, and everything that the file says."""

    type: str
    ipam_type: str
    capabilities: frozenset[str]
    raw: dict[str, JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfigList:
    """A network; `digest` tells one content from another, `source` says where it was read."""

    name: str
    cni_version: str
    cni_versions: tuple[str, ...]
    disable_check: bool
    disable_gc: bool
    plugins: tuple[PluginConfig, ...]
    source: str
    digest: str

    def speaks(self, version: str) -> bool:
        """Whether the list's version is at least `version`."""
        return VERSIONS.index(self.cni_version) >= VERSIONS.index(version)

    def at_version(self, version: str) -> NetworkConfigList:
        return replace(self, cni_version=version)

    def has_capability(self, name: str) -> bool:
        return any(name in plugin.capabilities for plugin in self.plugins)


class _Ipam(msgspec.Struct):
    type: str = ""


class _Plugin(msgspec.Struct):
    type: str
    capabilities: dict[str, bool] | None = None
    ipam: _Ipam | None = None


_LIST_NAMES = {
    "cni_version": "cniVersion",
    "cni_versions": "cniVersions",
    "disable_check": "disableCheck",
    "disable_gc": "disableGC",
}


class _List(msgspec.Struct, rename=_LIST_NAMES):
    name: str
    plugins: list[dict[str, JSON]]
    cni_version: str = ""
    cni_versions: list[str] = []
    disable_check: bool | str = False
    disable_gc: bool | str = False


def parse(data: bytes, *, source: str) -> NetworkConfigList:
    """The network that `data` describes; `InvalidArgument` naming `source` where it is not valid."""
    try:
        said = msgspec.json.decode(data, type=dict[str, JSON])
        if "plugins" not in said:
            plugin = {key: value for key, value in said.items() if key not in ("name", "cniVersion", "cniVersions")}
            said = {key: said[key] for key in ("name", "cniVersion", "cniVersions") if key in said}
            said["plugins"] = [plugin]
        listed = msgspec.convert(said, type=_List)
        plugins = tuple(_plugin(raw, source) for raw in listed.plugins)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"{source}: not a CNI network configuration: {error}") from error
    if not NETWORK_NAME.fullmatch(listed.name):
        raise errors.InvalidArgument(f"{source}: the network name {listed.name!r} is not of letters, digits, _ . -")
    if not 0 < len(plugins) <= PLUGINS_LIMIT:
        raise errors.InvalidArgument(f"{source}: a network needs 1 to {PLUGINS_LIMIT} plugins, not {len(plugins)}")
    version, versions = _versions(listed, source)
    return NetworkConfigList(
        name=listed.name,
        cni_version=version,
        cni_versions=versions,
        disable_check=_true(listed.disable_check),
        disable_gc=_true(listed.disable_gc),
        plugins=plugins,
        source=source,
        digest=hashlib.sha256(data).hexdigest()[:16],
    )


def to_json(network: NetworkConfigList) -> dict[str, JSON]:
    """The list again, as `parse` takes it."""
    return {
        "cniVersion": network.cni_version,
        "name": network.name,
        "disableCheck": network.disable_check,
        "disableGC": network.disable_gc,
        "plugins": [plugin.raw for plugin in network.plugins],
    }


def _plugin(raw: dict[str, JSON], source: str) -> PluginConfig:
    plugin = msgspec.convert(raw, type=_Plugin)
    ipam_type = plugin.ipam.type if plugin.ipam else ""
    for name in (plugin.type, ipam_type or "none"):
        if not NETWORK_NAME.fullmatch(name):
            raise errors.InvalidArgument(f"{source}: {name!r} is not the name of a CNI plugin")
    wanted = frozenset(name for name, on in (plugin.capabilities or {}).items() if on)
    return PluginConfig(type=plugin.type, ipam_type=ipam_type, capabilities=wanted, raw=raw)


def _versions(listed: _List, source: str) -> tuple[str, tuple[str, ...]]:
    said = [*listed.cni_versions, *([listed.cni_version] if listed.cni_version else [])]
    versions = tuple(version for version in VERSIONS if version in said)
    if not versions:
        raise errors.InvalidArgument(
            f"{source}: says CNI version {', '.join(said) or 'nothing'}; set cniVersion to one of {', '.join(VERSIONS)}"
        )
    return versions[-1], versions


def _true(said: bool | str) -> bool:
    return said if isinstance(said, bool) else said.lower() == "true"


Look = tuple[tuple[str, int, int, int], ...]
"""Of each file its name, time in ns, size and inode."""


class ConfigFolder:
    """The networks of a folder, read again only when a file there has changed.

    `networks` stats the folder's files and re-reads when any differs; nothing watches or polls.
    """

    def __init__(self, folder: Path, *, limit: int = 1) -> None:
        """`limit` is the most networks a pod joins; 0 is no limit."""
        self.folder = folder
        self._limit = limit
        self._seen: Look | None = None
        self._networks: tuple[NetworkConfigList, ...] = ()
        self._error: errors.AtollError | None = None

    def networks(self) -> tuple[NetworkConfigList, ...]:
        """The networks in order; empty where there is no file. `InvalidArgument` names a broken file."""
        seen = self._look()
        if seen != self._seen:
            self._seen, self._networks, self._error = seen if _settled(seen) else None, (), None
            try:
                self._networks = self._read([name for name, *_ in seen])
            except errors.AtollError as error:
                self._error = error
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._networks

    def _look(self) -> Look:
        found: list[tuple[str, int, int, int]] = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIXES) and entry.is_file():
                        status = entry.stat()
                        found.append((entry.name, status.st_mtime_ns, status.st_size, status.st_ino))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise errors.FailedPrecondition(f"{self.folder}: cannot read the CNI configurations: {error}") from error
        return tuple(sorted(found))

    def _read(self, names: list[str]) -> tuple[NetworkConfigList, ...]:
        networks: list[NetworkConfigList] = []
        for name in names[: self._limit or None]:
            path = self.folder / name
            try:
                with path.open("rb") as file:
                    data = file.read(CONFIG_LIMIT_BYTES + 1)
            except OSError as error:
                raise errors.FailedPrecondition(f"{path}: cannot be read: {error}") from error
            if len(data) > CONFIG_LIMIT_BYTES:
                raise errors.InvalidArgument(f"{path}: larger than {CONFIG_LIMIT_BYTES} bytes")
            network = parse(data, source=str(path))
            if any(network.name == other.name for other in networks):
                raise errors.InvalidArgument(f"{path}: the network name {network.name} is taken by another file")
            networks.append(network)
        return tuple(networks)


def _settled(seen: Look) -> bool:
    """Whether the next change of any file shows in what a look sees."""
    now = time.time_ns()
    return all(now - at > TICK_NS for _, at, _, _ in seen)
