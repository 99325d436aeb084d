"""Kernel parameters of a pod: which ones belong to its namespaces, and the two that it gets by itself.

Source: sysctl(5), namespaces(7), Documentation/admin-guide/sysctl of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from atoll import errors
from atoll.oci.config import NamespaceMode, NamespaceOption

VALUE_LIMIT = 4096
_NAME = re.compile(r"[a-z0-9_]+([./][A-Za-z0-9_.\-]+)+")
_IPC = frozenset(
    (
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
        "kernel.shmmni", "kernel.shm_rmid_forced",
    )
)  # fmt: skip


def resolve(asked: Mapping[str, str], namespaces: NamespaceOption) -> dict[str, str]:
    """The sysctls of a pod, dotted names; what it may do with low ports and ping is in them unless it shares the
    host's network or says otherwise.

    Raises `InvalidArgument` for one that is not the pod's own: it would change the host.
    """
    chosen = {_checked(name, value, namespaces): value for name, value in asked.items()}
    if namespaces.network is not NamespaceMode.NODE:
        chosen.setdefault("net.ipv4.ip_unprivileged_port_start", "0")
        if namespaces.userns_options is None or namespaces.userns_options.mode is NamespaceMode.NODE:
            chosen.setdefault("net.ipv4.ping_group_range", "0 2147483647")
    return chosen


def _checked(name: str, value: str, namespaces: NamespaceOption) -> str:
    parts = re.split(r"[./]", name)
    if not _NAME.fullmatch(name) or "" in parts:
        raise errors.InvalidArgument(f"sysctl {name[:100]!r}: is no name of a kernel parameter")
    if len(value) > VALUE_LIMIT or "\0" in value:
        raise errors.InvalidArgument(f"sysctl {name}: the value is too long or holds a zero byte")
    # A slash as the first separator means that dots belong to a name, as in net/ipv4/conf/eth0.100/forwarding.
    dotted = name if name.find("/") < 0 or 0 <= name.find(".") < name.find("/") else name.translate(_SWAP)
    if dotted.startswith("net."):
        if namespaces.network is NamespaceMode.NODE:
            raise errors.InvalidArgument(f"sysctl {name}: the pod uses the host's network, so it would change the host")
        return dotted
    if dotted in _IPC or dotted.startswith("fs.mqueue."):
        if namespaces.ipc is NamespaceMode.NODE:
            raise errors.InvalidArgument(f"sysctl {name}: the pod uses the host's IPC, so it would change the host")
        return dotted
    raise errors.InvalidArgument(f"sysctl {name}: belongs to no namespace of the pod, so it would change the host")


_SWAP = str.maketrans("./", "/.")
