"""The namespaces of a pod: the shim lives in them, so its pid stands for the pod.

    network  joined by path                     unless the pod uses the host's
    uts      made, with the pod's hostname      unless the pod uses the host's network
    ipc      made                               unless the pod uses the host's

They belong to the calling thread and are inherited by threads made later, so the shim enters them on
its only thread (setns(2), unshare(2)). The mount, pid, cgroup and user namespaces stay the daemon's. A stopped
pod's shim goes back to where it came from: a network namespace, and the link in it, lives for as long as a process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from atoll import errors
from atoll.linux import syscalls
from atoll.oci.config import NamespaceMode
from atoll.sandbox.config import PodConfig

HOSTNAME_LIMIT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNamespaces:
    """Which namespaces a pod has of its own; `netns` is the path of its network namespace."""

    netns: str
    uts: bool
    ipc: bool
    pid: bool

    @property
    def network(self) -> bool:
        return bool(self.netns)

    @classmethod
    def of(cls, pod: PodConfig, netns: str) -> PodNamespaces:
        """What `pod` asks for; `InvalidArgument` for what cannot be, `Unimplemented` for a user namespace."""
        asked = pod.namespaces
        for what, mode in (("network", asked.network), ("ipc", asked.ipc)):
            if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
                raise errors.InvalidArgument(f"{what} namespace mode {mode.name}: a pod has POD or NODE")
        if asked.pid is NamespaceMode.TARGET:
            raise errors.InvalidArgument("pid namespace mode TARGET: is for containers, not for pods")
        if asked.userns_options is not None and asked.userns_options.mode is not NamespaceMode.NODE:
            raise errors.Unimplemented("a pod's user namespace: the shim sandboxer has none; use mode NODE")
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
        )


def enter(namespaces: PodNamespaces, hostname: str) -> None:
    """Make and join the namespaces on the calling thread; raises `OSError` naming the path."""
    if namespaces.netns:
        fd = os.open(namespaces.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
        except OSError as error:
            raise OSError(error.errno, error.strerror, namespaces.netns) from None
        finally:
            os.close(fd)
    flags = (syscalls.CLONE_NEWUTS if namespaces.uts else 0) | (syscalls.CLONE_NEWIPC if namespaces.ipc else 0)
    if flags:
        syscalls.unshare(flags)
    if namespaces.uts and hostname:
        syscalls.sethostname(hostname)


def open_network() -> int:
    """The network namespace of the calling thread, for `return_to_network`; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def return_to_network(fd: int) -> None:
    """Leave the pod's network namespace for the one that `fd` holds; raises `OSError`."""
    syscalls.setns(fd, syscalls.CLONE_NEWNET)
