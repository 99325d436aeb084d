"""The answers of several plugins to one request, put together in the order in which they were asked.

Each plugin sees the container as those before it left it. What two of them set conflicts, and fails the request; what
one takes away, by a key that is marked with `-`, the next may set. Hooks and rules for devices add up.

An update of another container conflicts in the same way; one that may fail is then left out instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, MutableSequence
from typing import TypeVar

from google.protobuf.message import Message

from atoll import errors
from atoll.api import nri_v1alpha1_pb2 as pb
from atoll.nri.limits import CLASSES, CPU, CPU_SETS, MEMORY
from atoll.nri.owners import REMOVAL, Owners, removed

ItemT = TypeVar("ItemT", pb.Mount, pb.LinuxDevice)
MessageT = TypeVar("MessageT", bound=Message)

HOOKS = ("prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop")
WHOLE = (
    ("oom_score_adj", pb.OomScoreAdj),
    ("io_priority", pb.IoPriority),
    ("seccomp_policy", pb.SeccompPolicy),
    ("scheduler", pb.LinuxSched),
    ("memory_policy", pb.MemoryPolicy),
)
"""Parts of an adjustment that are set as a whole."""
RDT = (("clos_id", pb.RdtClosID), ("schemata", pb.RdtSchemata), ("enable_monitoring", pb.RdtEnableMonitoring))


class Updates:
    """Updates of containers that exist, and evictions, from one request's answers.

    `own` is the container that an UpdateContainer request is about, with the limits that it asks for: they change as
    plugins answer. `making` is the one that a CreateContainer request is about, which cannot be updated yet.
    """

    def __init__(self, own: tuple[str, pb.LinuxResources] | None = None, making: str = "") -> None:
        self._own = own
        self._making = making
        self._updates: dict[str, pb.ContainerUpdate] = {}
        self.owners = Owners()
        self.evictions: list[pb.ContainerEviction] = []

    @property
    def others(self) -> list[pb.ContainerUpdate]:
        """What is to be changed of other containers, in the order in which it was asked for first."""
        return [one for key, one in self._updates.items() if self._own is None or key != self._own[0]]

    def apply(self, updates: Iterable[pb.ContainerUpdate], plugin: str) -> None:
        """Take one plugin's; raises `FailedPrecondition` for a conflict, `InvalidArgument` for the one in making."""
        for update in updates:
            if update.container_id == self._making:
                raise errors.InvalidArgument(f"nri plugin {plugin}: updates the container that is being created")
            known = self._updates.get(update.container_id)
            merged, trial = pb.ContainerUpdate(), self.owners.copy()
            if known is not None:
                merged.CopyFrom(known)
            merged.container_id = update.container_id
            merged.ignore_failure = update.ignore_failure and (known is None or known.ignore_failure)
            try:
                resources(update.linux.resources, merged.linux.resources, trial, update.container_id, plugin)
            except errors.FailedPrecondition:
                if not update.ignore_failure:
                    raise
                continue
            self._updates[update.container_id] = merged
            self.owners = trial
            if self._own is not None and self._own[0] == update.container_id:
                resources(update.linux.resources, self._own[1], Owners(), update.container_id, plugin)


class Creation:
    """The adjustment of a container that is being created.

    `request` is what the next plugin is asked: it changes as plugins answer. `adjust` is what all have asked for.
    """

    def __init__(self, request: pb.CreateContainerRequest) -> None:
        self.request = request
        self.adjust = pb.ContainerAdjustment()
        self.updates = Updates(making=request.container.id)
        self.plugins: list[str] = []
        """Those that have asked for something."""

    @property
    def owners(self) -> Owners:
        return self.updates.owners

    def apply(self, answer: pb.CreateContainerResponse, plugin: str) -> None:
        """Take one plugin's answer; raises `FailedPrecondition` for a conflict with an earlier one."""
        asked, container = answer.adjust, self.request.container
        if asked.ByteSize():
            self.plugins.append(plugin)
        self._map(asked.annotations, self.adjust.annotations, container.annotations, pb.Annotations, plugin)
        self._items(asked.mounts, self.adjust.mounts, container.mounts, "destination", pb.Mounts, plugin)
        self._env(asked.env, plugin)
        self._args(list(asked.args), plugin)
        self._hooks(asked.hooks, plugin)
        if asked.HasField("linux"):
            self._linux(asked.linux, plugin)
        for limit in asked.rlimits:
            self._claim(pb.Rlimits, plugin, limit.type)
            self.adjust.rlimits.append(limit)
            container.rlimits.append(limit)
        for device in asked.CDI_devices:
            self._claim(pb.CdiDevices, plugin, device.name)
            self.adjust.CDI_devices.append(device)
        self.updates.apply(answer.update, plugin)
        self.updates.evictions.extend(answer.evict)

    def _claim(self, field: int, plugin: str, key: str | None = None) -> None:
        self.owners.claim(self.request.container.id, field, plugin, key)

    def _clear(self, field: int, plugin: str, key: str | None = None) -> None:
        self.owners.clear(self.request.container.id, field, plugin, key)

    def _linux(self, asked: pb.LinuxContainerAdjustment, plugin: str) -> None:
        merged, seen, container = self.adjust.linux, self.request.container.linux, self.request.container.id
        self._items(asked.devices, merged.devices, seen.devices, "path", pb.Devices, plugin)
        resources(asked.resources, merged.resources, self.owners, container, plugin)
        resources(asked.resources, seen.resources, Owners(), container, plugin)
        merged.resources.devices.extend(asked.resources.devices)
        seen.resources.devices.extend(asked.resources.devices)
        if asked.cgroups_path:
            self._claim(pb.CgroupsPath, plugin)
            merged.cgroups_path = seen.cgroups_path = asked.cgroups_path
        for name, field in WHOLE:
            if asked.HasField(name):
                self._claim(field, plugin)
                getattr(merged, name).CopyFrom(getattr(asked, name))
                if name in seen.DESCRIPTOR.fields_by_name:
                    getattr(seen, name).CopyFrom(getattr(asked, name))
        for namespace in asked.namespaces:
            kind = removed(namespace.type) or namespace.type
            self._claim(pb.Namespace, plugin, kind)
            merged.namespaces.append(namespace)
            _drop(seen.namespaces, "type", {kind})
            if kind == namespace.type:
                seen.namespaces.append(namespace)
        self._map(asked.sysctl, merged.sysctl, seen.sysctl, pb.Sysctl, plugin)
        self._net_devices(asked, plugin)
        if asked.HasField("rdt"):
            self._rdt(asked.rdt, plugin)

    def _map(
        self,
        asked: Mapping[str, str],
        merged: MutableMapping[str, str],
        seen: MutableMapping[str, str],
        field: int,
        plugin: str,
    ) -> None:
        for marked in asked:
            key = removed(marked)
            if key is not None:
                self._clear(field, plugin, key)
                merged.pop(key, None)
                seen.pop(key, None)
                merged[marked] = ""
        for key, value in asked.items():
            if removed(key) is None:
                self._claim(field, plugin, key)
                merged.pop(REMOVAL + key, None)
                merged[key] = seen[key] = value

    def _items(
        self,
        asked: Iterable[ItemT],
        merged: MutableSequence[ItemT],
        seen: MutableSequence[ItemT],
        name: str,
        field: int,
        plugin: str,
    ) -> None:
        keys: list[tuple[str, ItemT]] = [(getattr(item, name), item) for item in asked]
        taken = {key for marked, _ in keys if (key := removed(marked)) is not None}
        for key in taken:
            self._clear(field, plugin, key)
        _drop(merged, name, taken)
        _drop(seen, name, taken | {key for key, _ in keys})
        added = {key for key, _ in keys if removed(key) is None}
        for key, item in keys:
            gone = removed(key)
            if gone is None:
                self._claim(field, plugin, key)
                merged.append(item)
                seen.append(item)
            elif gone not in added:
                merged.append(item)

    def _env(self, asked: Iterable[pb.KeyValue], plugin: str) -> None:
        entries = list(asked)
        if not entries:
            return
        merged, seen = self.adjust.env, self.request.container.env
        taken = {key for entry in entries if (key := removed(entry.key)) is not None}
        added = {entry.key for entry in entries if removed(entry.key) is None}
        for key in taken:
            self._clear(pb.Env, plugin, key)
        _drop(merged, "key", taken)
        kept = [entry for entry in seen if entry.partition("=")[0] not in taken | added]
        del seen[:]
        seen.extend(kept)
        for entry in entries:
            gone = removed(entry.key)
            if gone is None:
                self._claim(pb.Env, plugin, entry.key)
                seen.append(f"{entry.key}={entry.value}")
            if gone not in added:
                merged.append(entry)

    def _args(self, asked: list[str], plugin: str) -> None:
        """A first argument that is empty says that what another plugin has set is replaced."""
        if asked[:1] == [""]:
            self._clear(pb.Args, plugin)
            del asked[0]
        if asked:
            self._claim(pb.Args, plugin)
            for args in (self.adjust.args, self.request.container.args):
                del args[:]
                args.extend(asked)

    def _hooks(self, asked: pb.Hooks, plugin: str) -> None:
        names = [name for name in HOOKS if getattr(asked, name)]
        for name in names:
            getattr(self.adjust.hooks, name).extend(getattr(asked, name))
            getattr(self.request.container.hooks, name).extend(getattr(asked, name))
        if names:
            self.owners.join(self.request.container.id, pb.OciHooks, plugin)

    def _net_devices(self, asked: pb.LinuxContainerAdjustment, plugin: str) -> None:
        merged, seen = self.adjust.linux.net_devices, self.request.container.linux.net_devices
        for marked in asked.net_devices:
            key = removed(marked)
            if key is not None:
                self._clear(pb.LinuxNetDevices, plugin, key)
                merged.pop(key, None)
                seen.pop(key, None)
                merged[marked].SetInParent()
        for key, device in asked.net_devices.items():
            if removed(key) is None:
                self._claim(pb.LinuxNetDevices, plugin, key)
                merged.pop(REMOVAL + key, None)
                merged[key].CopyFrom(device)
                seen[key].CopyFrom(device)

    def _rdt(self, asked: pb.LinuxRdt, plugin: str) -> None:
        merged = self.adjust.linux.rdt
        if asked.remove:
            for _, field in RDT:
                self._clear(field, plugin)
            merged.Clear()
            merged.remove = True
        for name, field in RDT:
            if asked.HasField(name):
                self._claim(field, plugin)
                getattr(merged, name).CopyFrom(getattr(asked, name))
                merged.remove = False


def resources(asked: pb.LinuxResources, into: pb.LinuxResources, owners: Owners, container: str, plugin: str) -> None:
    """Put every limit that is set in `asked` into `into`, and claim it; raises `FailedPrecondition` for a conflict."""
    for part, fields in (("memory", MEMORY), ("cpu", CPU)):
        source: pb.LinuxMemory | pb.LinuxCPU = getattr(asked, part)
        for name, field in fields:
            if source.HasField(name):
                owners.claim(container, field, plugin)
                getattr(getattr(into, part), name).CopyFrom(getattr(source, name))
    for name, field in CPU_SETS:
        if getattr(asked.cpu, name):
            owners.claim(container, field, plugin)
            setattr(into.cpu, name, getattr(asked.cpu, name))
    for limit in asked.hugepage_limits:
        owners.claim(container, pb.HugepageLimits, plugin, limit.page_size)
        _drop(into.hugepage_limits, "page_size", {limit.page_size})
        into.hugepage_limits.append(limit)
    for key, value in asked.unified.items():
        owners.claim(container, pb.CgroupsUnified, plugin, key)
        into.unified[key] = value
    for name, field in CLASSES:
        if asked.HasField(name):
            owners.claim(container, field, plugin)
            getattr(into, name).CopyFrom(getattr(asked, name))
    if asked.HasField("pids"):
        owners.claim(container, pb.PidsLimit, plugin)
        into.pids.CopyFrom(asked.pids)


def _drop(items: MutableSequence[MessageT], name: str, keys: set[str]) -> None:
    kept = [item for item in items if getattr(item, name) not in keys]
    if len(kept) != len(items):
        copies: list[MessageT] = []
        for item in kept:  # they go with the list that they are in
            copied = type(item)()
            copied.CopyFrom(item)
            copies.append(copied)
        del items[:]
        items.extend(copies)
