"""CNI results: parsed from spec 0.3.0 to 1.1.0, chosen from, and told in containerd's shape."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from atoll import errors
from atoll.network.model import JSON, Dns, Interface, IPConfig, NetworkAttachment, Result, Route

RESULT_LIMIT = 1024
"""Most interfaces, addresses or routes that are taken from one result."""


class _Interface(msgspec.Struct, rename={"socket_path": "socketPath", "pci_id": "pciID"}):
    name: str = ""
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socket_path: str = ""
    pci_id: str = ""


class _IP(msgspec.Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _Route(msgspec.Struct):
    dst: str
    gw: str | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0


class _Dns(msgspec.Struct):
    nameservers: list[str] | None = None
    domain: str = ""
    search: list[str] | None = None
    options: list[str] | None = None


class _Result(msgspec.Struct):
    interfaces: list[_Interface] | None = None
    ips: list[_IP] | None = None
    routes: list[_Route] | None = None
    dns: _Dns | None = None


def parse(raw: dict[str, JSON]) -> Result:
    """The result that `raw` tells; spec 0.3, 0.4, 1.0 and 1.1 differ only in members not needed here.

    Raises `InvalidArgument` where `raw` is no such result: wrong types, an address without a prefix
    length, an index past the interfaces.
    """
    try:
        told = msgspec.convert(raw, type=_Result)
    except msgspec.ValidationError as error:
        raise errors.InvalidArgument(f"not a CNI result: {error}") from error
    interfaces = told.interfaces or []
    ips = told.ips or []
    routes = told.routes or []
    if max(len(interfaces), len(ips), len(routes)) > RESULT_LIMIT:
        raise errors.InvalidArgument(f"a CNI result with more than {RESULT_LIMIT} entries")
    return Result(
        interfaces=tuple(
            Interface(name=i.name, mac=i.mac, sandbox=i.sandbox, mtu=i.mtu, socket_path=i.socket_path, pci_id=i.pci_id)
            for i in interfaces
        ),
        ips=tuple(_ip(ip, len(interfaces)) for ip in ips),
        routes=tuple(Route(dst=r.dst, gw=r.gw or "", mtu=r.mtu, advmss=r.advmss, priority=r.priority) for r in routes),
        dns=_dns(told.dns or _Dns()),
    )


def _ip(told: _IP, interfaces: int) -> IPConfig:
    try:
        if "/" not in told.address:
            raise ValueError(f"{told.address} has no prefix length")
        ipaddress.ip_interface(told.address)
        if told.gateway:
            ipaddress.ip_address(told.gateway)
    except ValueError as error:
        raise errors.InvalidArgument(f"not an address in a CNI result: {error}") from error
    if told.interface is not None and not 0 <= told.interface < max(interfaces, 1):
        raise errors.InvalidArgument(f"a CNI result's address {told.address} names interface {told.interface} of none")
    return IPConfig(address=told.address, gateway=told.gateway or "", interface=told.interface)


def _dns(told: _Dns) -> Dns:
    return Dns(
        nameservers=tuple(told.nameservers or ()),
        domain=told.domain,
        search=tuple(told.search or ()),
        options=tuple(told.options or ()),
    )


def pod_addresses(attachment: NetworkAttachment) -> list[str]:
    """The addresses, without prefix length, of the link inside the pod; those without an index are its."""
    result = attachment.result
    return [
        ip.ip
        for ip in result.ips
        if ip.interface is None
        or not result.interfaces
        or (result.interfaces[ip.interface].name == attachment.ifname and result.interfaces[ip.interface].sandbox)
    ]


def choose_ip(addresses: list[str], preference: str = "ipv4") -> tuple[str, tuple[str, ...]]:
    """The pod's IP and the others in their order; `preference` is ipv4, ipv6 or cni (the order given).

    Where no address is of the family wanted the first one is chosen; ("", ()) where there is none.
    """
    wanted = {"ipv4": 4, "ipv6": 6}.get(preference)
    for at, address in enumerate(addresses):
        if wanted is None or ipaddress.ip_address(address).version == wanted:
            return address, tuple(addresses[:at] + addresses[at + 1 :])
    return (addresses[0], tuple(addresses[1:])) if addresses else ("", ())


def to_containerd_json(networks: Iterable[NetworkAttachment], netns_path: str) -> dict[str, JSON]:
    """The CNIResult member of containerd's sandbox metadata: all networks joined, the loopback first."""
    interfaces: dict[str, JSON] = {
        "lo": {
            "IPConfigs": [{"IP": "127.0.0.1", "Gateway": ""}, {"IP": "::1", "Gateway": ""}],
            "Mac": "00:00:00:00:00:00",
            "Sandbox": netns_path,
            "PciID": "",
            "SocketPath": "",
        }
    }
    dns: list[JSON] = [{}]
    routes: list[JSON] = []
    for network in networks:
        result = network.result
        for at, link in enumerate(result.interfaces):
            configs: list[JSON] = [
                {"IP": ip.ip, "Gateway": ip.gateway}
                for ip in result.ips
                if ip.interface == at or (ip.interface is None and link.name == network.ifname)
            ]
            interfaces[link.name] = {
                "IPConfigs": configs or None,
                "Mac": link.mac,
                "Sandbox": link.sandbox,
                "PciID": link.pci_id,
                "SocketPath": link.socket_path,
            }
        dns.append(_dns_json(result.dns))
        routes += [{"dst": route.dst, "gw": route.gw} if route.gw else {"dst": route.dst} for route in result.routes]
    return {"Interfaces": interfaces, "DNS": dns, "Routes": routes or None}


def _dns_json(dns: Dns) -> JSON:
    said: dict[str, JSON] = {}
    if dns.nameservers:
        said["nameservers"] = list(dns.nameservers)
    if dns.domain:
        said["domain"] = dns.domain
    if dns.search:
        said["search"] = list(dns.search)
    if dns.options:
        said["options"] = list(dns.options)
    return said
