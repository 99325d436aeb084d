"""What was added, on disk from before ADD until DEL has succeeded.

    <folder>/<network>/<container ID>@<ifname>.json

An entry without a result is an ADD that did not finish; its DEL is due all the same. No entry: nothing to
delete. Files are replaced atomically and not synced: the ledger is what survives a power cut, and a
torn entry counts as unreadable.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from atoll import errors
from atoll.network import config
from atoll.network.config import NetworkConfigList
from atoll.network.model import CONTAINER_ID, IFNAME, JSON, NETWORK_NAME
from atoll.unreadable import UNREADABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentKey:
    """What CNI knows an attachment by."""

    network: str
    container_id: str
    ifname: str

    def __post_init__(self) -> None:
        for value, pattern, what in (
            (self.network, NETWORK_NAME, "network name"),
            (self.container_id, CONTAINER_ID, "container ID"),
            (self.ifname, IFNAME, "interface name"),
        ):
            if not pattern.fullmatch(value) or value in (".", ".."):
                raise errors.InvalidArgument(f"{value!r} is not a CNI {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One attachment as it was asked for, with the raw result of the last plugin once there is one."""

    key: AttachmentKey
    network: NetworkConfigList
    netns_path: str
    cni_args: tuple[tuple[str, str], ...] = ()
    capability_args: dict[str, JSON] = field(default_factory=dict[str, JSON])
    result: dict[str, JSON] | None = None


class _Stored(msgspec.Struct):
    kind: str
    config: dict[str, JSON]
    source: str
    netns: str
    cni_args: list[tuple[str, str]]
    capability_args: dict[str, JSON]
    result: dict[str, JSON] | None


KIND = "atoll.network.v1"


class AttachmentCache:
    """The entries under one folder, which is made when first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, entry: Entry) -> None:
        """Write or replace `entry`; `ResourceExhausted` where the disk is full, else `FailedPrecondition`."""
        path = self._path(entry.key)
        stored = _Stored(
            kind=KIND,
            config=config.to_json(entry.network),
            source=entry.network.source,
            netns=entry.netns_path,
            cni_args=list(entry.cni_args),
            capability_args=entry.capability_args,
            result=entry.result,
        )
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            try:
                temporary.write_bytes(msgspec.json.encode(stored))
            except FileNotFoundError:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                temporary.write_bytes(msgspec.json.encode(stored))
            temporary.rename(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            kind = (
                errors.ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else errors.FailedPrecondition
            )
            raise kind(f"{path}: the attachment cannot be recorded: {error.strerror}") from error

    def sweep(self) -> None:
        """Remove what an earlier daemon had begun to write when it was killed; for the only one that writes here."""
        for left in self.folder.glob("*/.*.tmp"):
            left.unlink(missing_ok=True)

    def load(self, key: AttachmentKey) -> Entry | None:
        """The entry of `key`, None where there is none; `DataLoss` where it cannot be read."""
        path = self._path(key)
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
            if stored.kind != KIND:
                raise errors.DataLoss(f"{path}: is of kind {stored.kind!r}, not {KIND}")
            network = config.parse(msgspec.json.encode(stored.config), source=stored.source)
        except FileNotFoundError:
            return None
        except (errors.InvalidArgument, *UNREADABLE) as error:
            raise errors.DataLoss(f"{path}: the attachment's record cannot be read: {error}") from error
        return Entry(
            key=key,
            network=network,
            netns_path=stored.netns,
            cni_args=tuple(stored.cni_args),
            capability_args=stored.capability_args,
            result=stored.result,
        )

    def remove(self, key: AttachmentKey) -> None:
        """Forget `key`; idempotent."""
        with contextlib.suppress(FileNotFoundError):
            self._path(key).unlink()

    def recorded(self) -> list[AttachmentKey]:
        """Every attachment recorded, of every network."""
        found: list[AttachmentKey] = []
        for network in _listed(self.folder):
            for name in _listed(self.folder / network):
                stem, suffix = os.path.splitext(name)
                container_id, at, ifname = stem.partition("@")
                if suffix == ".json" and at and CONTAINER_ID.fullmatch(container_id) and IFNAME.fullmatch(ifname):
                    found.append(AttachmentKey(network=network, container_id=container_id, ifname=ifname))
        return found

    def _path(self, key: AttachmentKey) -> Path:
        return self.folder / key.network / f"{key.container_id}@{key.ifname}.json"


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
