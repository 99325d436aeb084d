"""A pod's user namespace as the CRI asks for it.

Source: the CRI on UserNamespace; user_namespaces(7) on what a namespace of an owner of one may be.
"""

from __future__ import annotations

from collections.abc import Sequence

from atoll import errors
from atoll.linux.userns import IDMap, IDRange, checked
from atoll.oci import spec
from atoll.oci.config import IDMapping, NamespaceMode, NamespaceOption, UserNamespace

FIELD = "namespace_options.userns_options"


def of_pod(namespaces: NamespaceOption) -> IDMap | None:
    """The ids of a pod's user namespace, None where it has the host's; `InvalidArgument` for what cannot be."""
    asked = namespaces.userns_options
    if asked is None or is_host(asked):
        return None
    if asked.mode is not NamespaceMode.POD:
        raise errors.InvalidArgument(f"{FIELD}.mode {asked.mode.name}: must be POD or NODE")
    for name, mode in (("pid", namespaces.pid), ("ipc", namespaces.ipc)):
        if mode is NamespaceMode.NODE:
            # proc and mqueue can be mounted only by who owns the PID and the IPC namespace (user_namespaces(7)).
            raise errors.InvalidArgument(f"{FIELD}: a pod on the host's {name} namespace cannot have a user namespace")
    return checked(id_map(asked.uids, asked.gids), FIELD)


def is_host(asked: UserNamespace) -> bool:
    """Whether the host's is asked for, which has no mappings."""
    if asked.mode is NamespaceMode.NODE and (asked.uids or asked.gids):
        raise errors.InvalidArgument(f"{FIELD}: mode NODE takes no mappings")
    return asked.mode is NamespaceMode.NODE


def id_map(uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> IDMap:
    """Ranges in the words of the kernel; `checked` looks at them."""
    return IDMap(uids=_ranges(uids), gids=_ranges(gids))


def _ranges(mappings: Sequence[IDMapping]) -> tuple[IDRange, ...]:
    return tuple(IDRange(container_id=one.container_id, host_id=one.host_id, length=one.length) for one in mappings)


def in_spec(ranges: Sequence[IDRange]) -> tuple[spec.IDMapping, ...]:
    """Ranges in the words of the runtime spec."""
    return tuple(spec.IDMapping(containerID=one.container_id, hostID=one.host_id, size=one.length) for one in ranges)
