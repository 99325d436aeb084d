"""The default bridge network, for hosts without a CNI configuration.

One bridge an Atoll root, an address range that overlaps no route of the host, addresses by host-local,
published ports by portmap. What Atoll itself keeps on the host, all named after the bridge:

    nft table `ip <bridge>_...` one masquerade rule for the whole range (iptables where there is no nft)
    iptables FORWARD            two accept rules, only where the policy of that chain is DROP (as Docker sets it)
    net.ipv4.ip_forward         set to 1, and left so: others may count on it by then
    <root>/network/default.json the range chosen, so that it stays the same
    <state>/network/ipam        host-local's addresses; volatile, as the namespaces are

`ensure` makes what is missing, `remove` takes all of it away but ip_forward.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from atoll import errors
from atoll.linux import netlink
from atoll.network import config
from atoll.network.config import NetworkConfigList
from atoll.network.masquerade import Masquerade, find_program, run_program
from atoll.network.plugin import PluginRun
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)

DEFAULT_ROOT = Path("/var/lib/atoll")
DEFAULT_BRIDGE = "atoll0"
DEFAULT_SUBNET = "10.89.0.0/16"
SUBNETS = tuple(f"10.{second}.0.0/16" for second in range(88, 128))
"""Ranges tried after the preferred one."""
PLUGINS = ("bridge", "host-local")
"""The CNI plugins it cannot do without; portmap and bandwidth are executed for pods that ask for them."""
VETHS_GONE_S = 2.0
"""How long `remove` waits for the kernel to delete the links of namespaces that were dropped before."""
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a root has settled on; kept in a file."""

    bridge: str
    subnet: str


def bridge_name(root: Path) -> str:
    """The bridge of the Atoll under `root`: atoll0, or atoll- and eight digits derived from another root."""
    if root == DEFAULT_ROOT:
        return DEFAULT_BRIDGE
    return f"atoll-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


class DefaultNetwork:
    """The default network of one root."""

    def __init__(
        self, *, root: Path, state: Path, masquerade: Masquerade, subnet: str = DEFAULT_SUBNET, bridge: str = ""
    ) -> None:
        """`subnet` is preferred where nothing was chosen before; an empty `bridge` is derived from `root`."""
        try:
            self._preferred = ipaddress.IPv4Network(subnet)
        except ValueError as error:
            raise errors.InvalidArgument(f"default_subnet {subnet!r}: not an IPv4 range: {error}") from error
        self.bridge = bridge or bridge_name(root)
        self._masquerade = masquerade
        self._record = root / "network" / "default.json"
        self._ipam = state / "network" / "ipam"
        self._network: NetworkConfigList | None = None
        self._ensuring = asyncio.Lock()

    @property
    def leases(self) -> Path:
        """Where host-local keeps the addresses of this network: a folder a network, a file an address."""
        return self._ipam

    async def ensure(self) -> NetworkConfigList:
        """The network's config list, with all that it needs on the host in place; quick after the first call.

        Raises `FailedPrecondition` where no range is free or forwarding and masquerading cannot be had.
        """
        if self._network is not None:
            return self._network
        async with self._ensuring:
            if self._network is None:
                chosen = self._choose()
                _enable_forwarding()
                await self._install_masquerade(chosen)
                await self._accept_forwarding()
                self._network = self._config(chosen)
            return self._network

    async def remove(self) -> None:
        """Take the bridge, the rules and the files away; idempotent. `FailedPrecondition` while a pod uses it."""
        deadline = time.monotonic() + VETHS_GONE_S
        while users := self._users():  # the kernel deletes the links of a dropped namespace behind our back
            if time.monotonic() > deadline:
                raise errors.FailedPrecondition(
                    f"bridge {self.bridge} is still used by {', '.join(users)}; stop the pods first"
                )
            await asyncio.sleep(0.02)
        self._network = None
        await self._masquerade.remove_all()
        if find_program("iptables"):
            await self._remove_iptables_rules()
        netlink.delete_link(self.bridge)
        shutil.rmtree(self._ipam / self.bridge, ignore_errors=True)
        self._record.unlink(missing_ok=True)

    def _users(self) -> list[str]:
        links = {link.name: link for link in netlink.links()}
        bridge = links.get(self.bridge)
        return [link.name for link in links.values() if bridge is not None and link.master == bridge.index]

    def _choose(self) -> Chosen:
        foreign = self._foreign_ranges()
        kept = self._kept()
        if kept is not None and not _overlapping(ipaddress.IPv4Network(kept.subnet), foreign):
            return kept
        for candidate in self._candidates():
            if not _overlapping(candidate, foreign):
                if candidate != self._preferred:
                    log.info("bridge %s uses %s, for %s overlaps a route", self.bridge, candidate, self._preferred)
                chosen = Chosen(bridge=self.bridge, subnet=str(candidate))
                self._record.parent.mkdir(parents=True, exist_ok=True)
                temporary = self._record.with_suffix(".tmp")
                temporary.write_bytes(msgspec.json.encode(chosen))
                temporary.rename(self._record)
                return chosen
        raise errors.FailedPrecondition(
            f"no range for the default network: {self._preferred} and 10.88.0.0/16 to 10.127.0.0/16 overlap routes of "
            "this host; set default_subnet in [network]"
        )

    def _candidates(self) -> Iterator[ipaddress.IPv4Network]:
        """The preferred range first; then all others, each root from a start of its own, so that two roots differ."""
        yield self._preferred
        start = int(hashlib.sha256(self.bridge.encode()).hexdigest(), 16) % len(SUBNETS)
        for at in range(len(SUBNETS)):
            yield ipaddress.IPv4Network(SUBNETS[(start + at) % len(SUBNETS)])

    def _foreign_ranges(self) -> list[ipaddress.IPv4Network]:
        own = {link.index for link in netlink.links() if link.name == self.bridge}
        return [
            route.destination
            for route in netlink.routes()
            if isinstance(route.destination, ipaddress.IPv4Network)
            and route.destination.prefixlen > 0
            and route.link not in own
        ]

    def _kept(self) -> Chosen | None:
        try:
            kept = msgspec.json.decode(self._record.read_bytes(), type=Chosen)
            ipaddress.IPv4Network(kept.subnet)
        except FileNotFoundError:
            return None
        except (ValueError, *UNREADABLE) as error:
            log.warning("%s: cannot be read and is made anew: %s", self._record, error)
            return None
        return kept if kept.bridge == self.bridge else None

    def _config(self, chosen: Chosen) -> NetworkConfigList:
        bridge = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "capabilities": {"ips": True, "mac": True},
            "ipam": {
                "type": "host-local",
                "dataDir": str(self._ipam),
                "ranges": [[{"subnet": chosen.subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
        bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
        said = {"cniVersion": "1.0.0", "name": self.bridge, "plugins": [bridge, portmap, bandwidth]}
        return config.parse(msgspec.json.encode(said), source="the default network")

    async def _install_masquerade(self, chosen: Chosen) -> None:
        if find_program("nft"):
            await self._masquerade.install(self.bridge, [chosen.subnet])
        elif find_program("iptables"):
            await self._iptables("nat", "POSTROUTING", ["-s", chosen.subnet, "!", "-d", chosen.subnet], "MASQUERADE")
        else:
            raise errors.FailedPrecondition(
                "the default network needs nft or iptables to masquerade; install one (Debian packages nftables, "
                "iptables) or put a CNI configuration of your own into conf_dir"
            )

    async def _accept_forwarding(self) -> None:
        if find_program("iptables") and "-P FORWARD DROP" in (await _iptables_run(["-S", "FORWARD"])).stdout.decode():
            for direction in ("-i", "-o"):
                await self._iptables("filter", "FORWARD", [direction, self.bridge], "ACCEPT")

    async def _iptables(self, table: str, chain: str, match: list[str], target: str) -> None:
        rule = [*match, "-m", "comment", "--comment", self.bridge, "-j", target]
        if (await _iptables_run(["-t", table, "-C", chain, *rule])).returncode != 0:
            done = await _iptables_run(["-t", table, "-I", chain, "1", *rule])
            if done.returncode != 0:
                raise errors.FailedPrecondition(
                    f"iptables refused a rule for bridge {self.bridge}: {done.stderr.decode(errors='replace').strip()}"
                )

    async def _remove_iptables_rules(self) -> None:
        for table, chain in (("nat", "POSTROUTING"), ("filter", "FORWARD")):
            listed = await _iptables_run(["-t", table, "-S", chain])
            for line in listed.stdout.decode(errors="replace").splitlines():
                words = [word.strip('"') for word in line.split()]
                if words[:1] == ["-A"] and "--comment" in words and words[words.index("--comment") + 1] == self.bridge:
                    await _iptables_run(["-t", table, "-D", *words[1:]])


def can_masquerade() -> bool:
    """Whether the host has a program to install the masquerade rule with."""
    return find_program("nft") is not None or find_program("iptables") is not None


def missing_on_host() -> list[str]:
    """What the default network lacks on this host, one sentence each, with the way to fix it."""
    lacking: list[str] = []
    if not can_masquerade():
        lacking.append("neither nft nor iptables: pods cannot reach other hosts; install Debian package nftables")
    if not find_program("iptables"):
        lacking.append(
            "no iptables, which the portmap plugin executes: no published ports; install Debian package iptables"
        )
    return lacking


def _overlapping(candidate: ipaddress.IPv4Network, ranges: list[ipaddress.IPv4Network]) -> bool:
    return any(candidate.overlaps(other) for other in ranges)


def _enable_forwarding() -> None:
    try:
        if IP_FORWARD.read_text().strip() != "1":
            IP_FORWARD.write_text("1\n")
    except OSError as error:
        raise errors.FailedPrecondition(
            f"{IP_FORWARD}: cannot be set to 1, so pods would reach nothing but this host: {error.strerror}"
        ) from error


async def _iptables_run(arguments: list[str]) -> PluginRun:
    return await run_program("iptables", ("--wait", "5", *arguments))
