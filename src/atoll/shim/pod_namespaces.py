"""The namespaces of a pod: which ones it has of its own. A process of its own holds them: see `pod_holder`.

    network  joined by path                     unless the pod uses the host's
    uts      made, with the pod's hostname      unless the pod uses the host's network
    ipc      made                               unless the pod uses the host's
    pid      made                               where its containers share one

The mount, cgroup and user namespaces are not the pod's: each container has its own, or the host's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from atoll import errors
from atoll.linux import nsfs
from atoll.linux.userns import IDMap
from atoll.oci.config import NamespaceMode
from atoll.sandbox.config import PodConfig

HOSTNAME_LIMIT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNamespaces:
    """Which namespaces a pod has of its own; `netns` is the path of its network namespace.

    `users` are the ids of its user namespace, None where it has none.
    """

    netns: str
    uts: bool
    ipc: bool
    pid: bool
    users: IDMap | None = None

    @property
    def network(self) -> bool:
        return bool(self.netns)

    @classmethod
    def of(cls, pod: PodConfig, netns: str) -> PodNamespaces:
        """What `pod` asks for; `InvalidArgument` for what cannot be."""
        asked = pod.namespaces
        for what, mode in (("network", asked.network), ("ipc", asked.ipc)):
            if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
                raise errors.InvalidArgument(f"{what} namespace mode {mode.name}: a pod has POD or NODE")
        if asked.pid is NamespaceMode.TARGET:
            raise errors.InvalidArgument("pid namespace mode TARGET: is for containers, not for pods")
        host_network = asked.network is NamespaceMode.NODE
        if host_network and netns:
            raise errors.InvalidArgument(f"network namespace {netns}: given, but the pod uses the host's network")
        if not host_network and not netns:
            raise errors.InvalidArgument("network namespace: the pod has one of its own, but no path was given")
        if host_network and pod.hostname and pod.hostname != os.uname().nodename:
            raise errors.InvalidArgument(f"hostname {pod.hostname!r}: a pod on the host's network has the host's name")
        if len(pod.hostname.encode()) > HOSTNAME_LIMIT_BYTES:
            raise errors.InvalidArgument(f"hostname {pod.hostname!r}: longer than {HOSTNAME_LIMIT_BYTES} bytes")
        return cls(
            netns=netns,
            uts=not host_network,
            ipc=asked.ipc is NamespaceMode.POD,
            pid=asked.pid is NamespaceMode.POD,
            users=pod.users,
        )

    def require_network(self) -> None:
        """Raise `InvalidArgument` where the path given is no network namespace."""
        if self.network:
            nsfs.require_network(self.netns)
