"""The words of the network package; frozen, durable as JSON by `encode` and `decode_attachment`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from atoll import errors
from atoll.linux.userns import IDMap
from atoll.unreadable import UNREADABLE

JSON: TypeAlias = object
"""A decoded JSON value: None, bool, int, float, str, list or dict; narrowed where it is looked at."""

CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
NETWORK_NAME = CONTAINER_ID
IFNAME = re.compile(r"[^\s/:\0]{1,15}")
PROTOCOLS = ("tcp", "udp", "sctp")
UNLIMITED_BURST_BITS = 2**32 - 1
"""The burst handed to the bandwidth plugin, the largest it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """A port of the host led into the pod; `host_ip` empty means every address of the host."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Limits in bits a second as seen from the pod; 0 is none."""

    ingress_rate_bits: int = 0
    egress_rate_bits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """Resolver settings, as asked of a plugin or told by one."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A link that a plugin made; `sandbox` is the netns path, empty for a link of the host."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IPConfig:
    """An address with its prefix length; `interface` is an index into the result's interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route inside the pod."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What ADD of a whole config list has made, whatever spec version told it."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginTiming:
    """How long one plugin took for one verb."""

    network: str
    plugin: str
    verb: str
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttachment:
    """One network of a pod: its name, the link inside the pod and what ADD told."""

    network: str
    ifname: str
    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """A pod's wish for a network.

    `sandbox_id` is the CNI container ID unless a pooled namespace is taken. `netns_path` is where the
    pod's namespace is pinned, or is to be pinned; `users` are the ids of the user namespace that is to own it.
    """

    sandbox_id: str
    netns_path: str
    name: str = ""
    namespace: str = ""
    uid: str = ""
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    ports: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    dns: Dns | None = None
    ips: tuple[str, ...] = ()
    mac: str = ""
    cgroup_parent: str = ""
    users: IDMap | None = None

    @property
    def needs_own_add(self) -> bool:
        """Whether the request says what a namespace prepared beforehand cannot know."""
        return bool(self.ports or self.bandwidth or self.ips or self.mac or self.users)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A pod's network as it stands: what `Network.detach` needs, and what the pod is told.

    `container_id` is what the plugins know the attachment by: the sandbox ID, or the pool's ID of a
    namespace taken from there. `netns_path` is the real pin.
    """

    sandbox_id: str
    container_id: str
    netns_path: str
    networks: tuple[NetworkAttachment, ...] = ()
    ip: str = ""
    additional_ips: tuple[str, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    timings: tuple[PluginTiming, ...] = ()

    @property
    def pooled(self) -> bool:
        return self.container_id != self.sandbox_id


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStatus:
    """Whether a pod can get a network now; `reason` is the CamelCase word the kubelet reads."""

    ready: bool
    reason: str = ""
    message: str = ""


def encode(record: Attachment | AttachRequest) -> bytes:
    """`record` as JSON."""
    return msgspec.json.encode(record)


def decode_attachment(data: bytes | str) -> Attachment:
    """The attachment that `encode` wrote; `DataLoss` where it is not one."""
    try:
        return msgspec.json.decode(data, type=Attachment)
    except UNREADABLE as error:
        raise errors.DataLoss(f"a network attachment's record cannot be read: {error}") from error
