"""Host ports: who holds which, so that a port in use is refused before CNI runs.

A port mapping made by iptables would take traffic away from a process that listens there, without any
error; two pods with one host port would shadow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from atoll import errors
from atoll.network import redirects
from atoll.network.model import PROTOCOLS, PortMapping

TURN_WITHIN_S = 30.0
TURN_PAUSE_S = 0.02
TCP_LISTEN = "0A"
UDP_UNCONNECTED = "07"
ANY = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, never bound to


def validate(ports: tuple[PortMapping, ...]) -> None:
    """Raise `InvalidArgument` for a port out of range, a protocol or address that is none, or a port named twice."""
    for at, port in enumerate(ports):
        if not (0 < port.host_port < 65536 and 0 < port.container_port < 65536):
            raise errors.InvalidArgument(f"port mapping {port.host_port}:{port.container_port}: ports are 1 to 65535")
        if port.protocol not in PROTOCOLS:
            raise errors.InvalidArgument(
                f"port mapping {port.host_port}: protocol {port.protocol!r} is not tcp, udp or sctp"
            )
        if port.host_ip:
            try:
                ipaddress.ip_address(port.host_ip)
            except ValueError:
                raise errors.InvalidArgument(f"port mapping {port.host_port}: {port.host_ip!r} is no address") from None
        if any(_overlap(port, other) for other in ports[:at]):
            raise errors.InvalidArgument(f"port mapping {port.host_port}/{port.protocol} is asked for twice")


@contextlib.asynccontextmanager
async def publishing(ports: tuple[PortMapping, ...]) -> AsyncGenerator[None]:
    """Within, no other Atoll of this network namespace publishes one of `ports`: each looks first, then adds its rule.

    Raises `Unavailable` where another one takes longer than `TURN_WITHIN_S` for it. Abstract sockets are what is held:
    they are the network namespace's, as the ports are, and go with whoever holds them (unix(7)).
    """
    with contextlib.ExitStack() as stack:
        for protocol, number in sorted({(port.protocol, port.host_port) for port in ports}):
            held = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
            try:
                async with asyncio.timeout(TURN_WITHIN_S):
                    while not _takes(held, f"\0atoll/host-port/{protocol}/{number}"):  # noqa: ASYNC110
                        await asyncio.sleep(TURN_PAUSE_S)
            except TimeoutError:
                raise errors.Unavailable(
                    f"host port {number}/{protocol} is being given to another pod for {TURN_WITHIN_S:g} s; try again"
                ) from None
        yield


def _takes(held: socket.socket, name: str) -> bool:
    try:
        held.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


class HostPorts:
    """The host ports of Atoll's attachments, by owner."""

    def __init__(self) -> None:
        self._held: defaultdict[tuple[str, int], list[tuple[PortMapping, str]]] = defaultdict(list)

    async def claim(self, owner: str, ports: tuple[PortMapping, ...]) -> None:
        """Note `ports` as `owner`'s, all or none; idempotent.

        Raises `AlreadyExists` naming the pod that has one, `FailedPrecondition` naming the process that
        listens on one, whose pod of another daemon it leads to, or the address that the host does not have.
        """
        for port in ports:
            for other, holder in self._held[port.protocol, port.host_port]:
                if holder != owner and _overlap(port, other):
                    raise errors.AlreadyExists(
                        f"host port {port.host_port}/{port.protocol} is published by sandbox {holder}; "
                        "choose another host port or remove that sandbox"
                    )
        fresh = tuple(port for port in ports if (port, owner) not in self._held[port.protocol, port.host_port])
        self.note(owner, fresh)  # before the first await: two requests for one port cannot both pass
        try:
            for port in fresh:
                if port.host_ip not in ANY and not _has_address(port.host_ip):
                    raise errors.FailedPrecondition(
                        f"host port {port.host_port}/{port.protocol}: the host has no address {port.host_ip}; name one "
                        "that `ip address` shows, or leave it out for all"
                    )
                if not _can_bind(port) and (user := await asyncio.to_thread(_listener, port)):
                    raise errors.FailedPrecondition(
                        f"host port {port.host_port}/{port.protocol} is in use by {user}; "
                        "choose another host port or stop that process"
                    )
            taken = await asyncio.to_thread(redirects.read) if fresh else ()
            for port in fresh:
                self._refuse_redirected(owner, port, taken)
        except BaseException:
            self._drop(owner, fresh)
            raise

    def _refuse_redirected(self, owner: str, port: PortMapping, taken: Iterable[redirects.Redirect]) -> None:
        for other in taken:
            if other.container_id != owner and other.leads(port.protocol, port.host_port, port.host_ip):
                whose = f"sandbox {other.container_id} of another program" if other.container_id else "another program"
                raise errors.FailedPrecondition(
                    f"host port {port.host_port}/{port.protocol} leads to {whose} already (chain {other.chain} of "
                    "the nat table); choose another host port or remove that one"
                )

    def note(self, owner: str, ports: tuple[PortMapping, ...]) -> None:
        """Note `ports` as `owner`'s without asking the host, as at start for what already runs."""
        for port in ports:
            self._held[port.protocol, port.host_port].append((port, owner))

    def release(self, owner: str, ports: tuple[PortMapping, ...]) -> None:
        """Forget `owner`'s `ports`; idempotent."""
        self._drop(owner, ports)

    def _drop(self, owner: str, ports: tuple[PortMapping, ...]) -> None:
        for port in ports:
            key = (port.protocol, port.host_port)
            left = [held for held in self._held.get(key, ()) if held != (port, owner)]
            if left:
                self._held[key] = left
            else:
                self._held.pop(key, None)


def _overlap(one: PortMapping, other: PortMapping) -> bool:
    return (one.protocol, one.host_port) == (other.protocol, other.host_port) and (
        one.host_ip in ANY or other.host_ip in ANY or one.host_ip == other.host_ip
    )


def _has_address(host_ip: str) -> bool:
    """Whether a socket may be bound to the address (ip(7): EADDRNOTAVAIL for one that is not local)."""
    family = socket.AF_INET6 if ":" in host_ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind((host_ip, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _can_bind(port: PortMapping) -> bool:
    """Whether no socket of the host has the port, as far as a bind of our own can tell."""
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}.get(port.protocol)
    if kind is None:
        return True
    hosts = [port.host_ip] if port.host_ip not in ANY else ["0.0.0.0", "::"]  # noqa: S104 - bound, never listened on
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, kind | socket.SOCK_CLOEXEC) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if kind == socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port.host_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            # without IPv6, or with an address that the host does not have, nobody listens there either
    return True


def _listener(port: PortMapping) -> str:
    """The process that listens on the port, "" where only a passing connection has it. Reads /proc."""
    wanted = {TCP_LISTEN} if port.protocol == "tcp" else {UDP_UNCONNECTED}
    for table in (port.protocol, f"{port.protocol}6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if int(number, 16) == port.host_port and fields[3] in wanted and _covers(address, port.host_ip):
                return _owner_of(fields[9])
    return ""


def _covers(listening: str, host_ip: str) -> bool:
    """Whether a socket bound to `listening` (hex words in host order, as /proc tells) hears `host_ip`."""
    packed = b"".join(bytes.fromhex(listening[at : at + 8])[::-1] for at in range(0, len(listening), 8))
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return host_ip in ANY or address.is_unspecified or address == ipaddress.ip_address(host_ip)


def _owner_of(inode: str) -> str:
    target = f"socket:[{inode}]"
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") == target:
                        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return "a process of another namespace"
