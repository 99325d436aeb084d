"""The sysctls of a pod: which ones a pod may have, its defaults, and how they are written.

A pod may set what its own namespaces hold: kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* with an IPC
namespace, net.* with a network namespace, kernel.domainname with a UTS namespace (namespaces(7), sysctl of Kubernetes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from atoll import errors

PROC_SYS = Path("/proc/sys")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_@:,-]*(?:[./][A-Za-z0-9_@:,-]+)*")
_IPC = re.compile(r"kernel\.(shm[a-z_]*|msg[a-z_]*|sem)|fs\.mqueue\.[a-z_]+")
VALUE_LIMIT = 4096
DOMAINNAME = "kernel.domainname"

UNPRIVILEGED_PORTS = ("net.ipv4.ip_unprivileged_port_start", "0")
UNPRIVILEGED_ICMP = ("net.ipv4.ping_group_range", "0 2147483647")


def checked(sysctls: Mapping[str, str], *, network: bool, ipc: bool, uts: bool) -> dict[str, str]:
    """`sysctls` by names with dots, if every one is held by a namespace of the pod; else `InvalidArgument`.

    `network`, `ipc`, `uts`: whether the pod has that namespace of its own.
    """
    found: dict[str, str] = {}
    for asked, value in sysctls.items():
        name = _with_dots(asked)
        if not _PART.fullmatch(asked) or len(value) > VALUE_LIMIT or "\0" in value or "\n" in value:
            raise errors.InvalidArgument(f"sysctl {asked!r}: is not a name with a value of one line")
        if name.startswith("net."):
            _require(network, asked, "network")
        elif _IPC.fullmatch(name):
            _require(ipc, asked, "IPC")
        elif name == DOMAINNAME:
            _require(uts, asked, "UTS")
        else:
            raise errors.InvalidArgument(f"sysctl {asked}: belongs to the host, a pod cannot have its own")
        found[name] = value
    return found


def with_defaults(sysctls: Mapping[str, str], *, network: bool, users: bool = False) -> dict[str, str]:
    """With a network namespace: ports below 1024 and ping for everybody, unless the pod says otherwise.

    Where it has `users` of its own there is no ping, for the kernel takes only groups that are mapped.
    """
    defaults = dict((UNPRIVILEGED_PORTS, UNPRIVILEGED_ICMP)[: 1 if users else 2]) if network else {}
    return {**defaults, **sysctls}


def file_of(name: str) -> Path:
    """Where a sysctl of that name with dots is written; it means the namespaces of whoever opens it."""
    return PROC_SYS / name.translate(str.maketrans("./", "/."))


def _require(held: bool, name: str, namespace: str) -> None:
    if not held:
        raise errors.InvalidArgument(f"sysctl {name}: the pod has no {namespace} namespace of its own")


def _with_dots(name: str) -> str:
    # sysctl(8): whichever of . and / comes first separates; the other is part of a name (net/ipv4/conf/eth0.1).
    first = next((letter for letter in name if letter in "./"), ".")
    return name if first == "." else name.translate(str.maketrans("./", "/."))
