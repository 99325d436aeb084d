"""rtnetlink: the links, addresses and routes of the calling thread's network namespace (rtnetlink(7)).

For another namespace call through `netns.inside`. Every call opens its own socket, asks one question
and blocks for some tens of microseconds.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_GETADDR = 22
RTM_GETROUTE = 26
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x10
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_STATS64 = 1, 3, 4, 10, 18, 23
IFLA_LINK, IFLA_LINK_NETNSID = 5, 37
IFLA_INFO_KIND = 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_TABLE = 1, 4, 15
NLA_TYPE_MASK = 0x3FFF
IFF_UP = 1
RECEIVE_BYTES = 1 << 18
TIMEOUT_S = 5.0
DUMP_TRIES = 5

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCounters:
    """What went through a link since it was made."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link; `kind` is veth, bridge, ... and empty for a device of the hardware; `master` an index or 0.

    `has_peer_here`: it is one end of a pair whose other end is in this network namespace.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    master: int
    is_up: bool
    counters: LinkCounters
    has_peer_here: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address of the link with index `link`."""

    link: int
    interface: IPInterface


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route to `destination` through the link with index `link` (0 where it names none)."""

    destination: Network
    link: int
    table: int


def links() -> list[Link]:
    """Every link, by index."""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    return [_link(payload) for payload in _dump(RTM_GETLINK, body)]


def addresses() -> list[Address]:
    """Every address of every link."""
    found: list[Address] = []
    for payload in _dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, prefix, _, _, index = struct.unpack_from("=BBBBI", payload)
        said = _attributes(payload, 8)
        packed = said.get(IFA_LOCAL, said.get(IFA_ADDRESS))
        if packed is not None:
            interface = ipaddress.ip_interface(f"{ipaddress.ip_address(packed)}/{prefix}")
            found.append(Address(link=index, interface=interface))
    return found


def routes() -> list[Route]:
    """Every route of every table, IPv4 and IPv6, the default routes too."""
    found: list[Route] = []
    for payload in _dump(RTM_GETROUTE, struct.pack("=BBBBBBBBI", socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        family, prefix, _, _, table = struct.unpack_from("=BBBBB", payload)
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        said = _attributes(payload, 12)
        packed = said.get(RTA_DST, bytes(4 if family == socket.AF_INET else 16))
        destination = ipaddress.ip_network(f"{ipaddress.ip_address(packed)}/{prefix}")
        table = _u32(said.get(RTA_TABLE)) or table
        found.append(Route(destination=destination, link=_u32(said.get(RTA_OIF)), table=table))
    return found


def delete_link(name: str) -> bool:
    """Delete the link `name`; False where there is none. Takes up to tens of milliseconds."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return False
    with _socket() as rtnetlink:
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
        rtnetlink.send(_message(RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, body))
        for kind, _, payload in _messages(rtnetlink.recv(RECEIVE_BYTES)):
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                if code == errno.ENODEV:
                    return False
                if code:
                    raise OSError(code, os.strerror(code), name)
    return True


def _link(payload: bytes) -> Link:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", payload)
    said = _attributes(payload, 16)
    info = _attributes(said.get(IFLA_LINKINFO, b""), 0)
    return Link(
        index=index,
        name=_text(said.get(IFLA_IFNAME, b"")),
        kind=_text(info.get(IFLA_INFO_KIND, b"")),
        mac=said.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=_u32(said.get(IFLA_MTU)),
        master=_u32(said.get(IFLA_MASTER)),
        is_up=bool(flags & IFF_UP),
        counters=_counters(said.get(IFLA_STATS64, b"")),
        has_peer_here=IFLA_LINK in said and IFLA_LINK_NETNSID not in said,
    )


def _counters(data: bytes) -> LinkCounters:
    if len(data) < 64:
        return LinkCounters()
    # struct rtnl_link_stats64: each measure is told for rx, then for tx
    packets, tx_packets, octets, tx_octets, rx_errors, tx_errors, rx_dropped, tx_dropped = struct.unpack_from(
        "=8Q", data
    )
    return LinkCounters(
        rx_bytes=octets,
        rx_packets=packets,
        rx_errors=rx_errors,
        rx_dropped=rx_dropped,
        tx_bytes=tx_octets,
        tx_packets=tx_packets,
        tx_errors=tx_errors,
        tx_dropped=tx_dropped,
    )


def _dump(kind: int, body: bytes) -> list[bytes]:
    """All answers to a dump; asked again where the kernel says that it changed under way."""
    found: list[bytes] = []
    for _ in range(DUMP_TRIES):
        found, consistent = _dump_once(kind, body)
        if consistent:
            break
    return found


def _dump_once(kind: int, body: bytes) -> tuple[list[bytes], bool]:
    found: list[bytes] = []
    consistent = True
    with _socket() as rtnetlink:
        rtnetlink.send(_message(kind, NLM_F_REQUEST | NLM_F_DUMP, body))
        while True:
            for answer, flags, payload in _messages(rtnetlink.recv(RECEIVE_BYTES)):
                consistent = consistent and not flags & NLM_F_DUMP_INTR
                if answer == NLMSG_DONE:
                    return found, consistent
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    raise OSError(code, os.strerror(code), "rtnetlink")
                found.append(payload)


def _socket() -> socket.socket:
    rtnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    rtnetlink.settimeout(TIMEOUT_S)
    rtnetlink.bind((0, 0))
    return rtnetlink


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        size, kind, flags = struct.unpack_from("=IHH", data, at)
        if size < 16:
            return
        yield kind, flags, data[at + 16 : at + size]
        at += size + 3 & ~3


def _attributes(data: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + size]
        at += size + 3 & ~3
    return found


def _u32(data: bytes | None) -> int:
    return struct.unpack("=I", data)[0] if data else 0


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()
