"""Masquerading by one rule a range, in place of the plugins' chains a pod.

With `ipMasq` the bridge and ptp plugins execute nine iptables commands for each pod that comes and three
for each that goes, and their chains leak when a namespace has vanished before DEL. The effect, for every
pod of the list's ranges, is that of one rule: what leaves the range for elsewhere, multicast excepted, gets the
host's address. So that rule is installed once, and the plugins are told `ipMasq: false`.

Each network has an nft table `ip <label>_<digits>` of its own, replaced atomically, its rule marked with
the label and the root folder; `remove_all` finds them by the label, and so does `of_others`, which `atoll fsck`
asks. A list stays as it is, and its plugins masquerade, where there is no nft, where its ranges are not told by
host-local, or where one of them is IPv6.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from atoll import errors
from atoll.network import plugin as program
from atoll.network.config import NetworkConfigList, PluginConfig

FIREWALL_TIMEOUT_S = 10.0
PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASQUERADING = frozenset({"bridge", "ptp"})
MULTICAST = "224.0.0.0/4"
COMMENT_LIMIT_BYTES = 120
"""nft refuses a comment of 128 bytes."""
QUOTABLE = re.compile(r"[A-Za-z0-9_./+:@=-]+")


class _Range(msgspec.Struct):
    subnet: str


class _HostLocal(msgspec.Struct):
    type: str
    subnet: str = ""
    ranges: list[list[_Range]] = []


class Masquerade:
    """The masquerade rules of one Atoll root; `label` marks them as its own, and tells people of `root`."""

    def __init__(self, label: str, root: Path) -> None:
        self._label = re.sub(r"[^A-Za-z0-9]", "_", label)
        told = str(root) if QUOTABLE.fullmatch(str(root)) else ""
        self._comment = f"{label} {told}"[:COMMENT_LIMIT_BYTES].rstrip()
        self._done: dict[str, NetworkConfigList] = {}
        self._installing = asyncio.Lock()

    async def take_over(self, network: NetworkConfigList) -> NetworkConfigList:
        """`network` without its plugins' masquerading, with our rule in place; unchanged where that cannot be.

        The digest stays that of the file. Quick but for the first call with a content.
        """
        if network.digest in self._done:
            return self._done[network.digest]
        ranges = ranges_to_masquerade(network)
        if not ranges or find_program("nft") is None:
            return network
        async with self._installing:
            if network.digest not in self._done:
                await self.install(network.name, ranges)
                plugins = tuple(_without(plugin) for plugin in network.plugins)
                self._done[network.digest] = replace(network, plugins=plugins)
            return self._done[network.digest]

    async def install(self, network: str, ranges: list[str]) -> None:
        """Put the rule of `network` in place of an earlier one; `FailedPrecondition` where nft refuses."""
        table = self._table(network)
        own = ", ".join(ranges)
        await _nft(
            f"add table ip {table}\n"
            f"delete table ip {table}\n"
            f"table ip {table} {{\n"
            "  chain postrouting {\n"
            "    type nat hook postrouting priority srcnat; policy accept;\n"
            f"    ip saddr {{ {own} }} ip daddr != {{ {own}, {MULTICAST} }} masquerade"
            f' comment "{self._comment}"\n'
            "  }\n}\n"
        )

    async def remove_all(self) -> None:
        """Delete every table of the label; idempotent."""
        if find_program("nft") is None:
            return
        await self.remove(await self._tables())

    async def of_others(self, networks: Collection[str]) -> tuple[str, ...]:
        """The tables of the label that are of none of these networks: each is of one that has gone since."""
        if find_program("nft") is None:
            return ()
        ours = {self._table(network) for network in networks}
        return tuple(table for table in await self._tables() if table not in ours)

    async def remove(self, tables: Iterable[str]) -> None:
        """Delete these tables; idempotent. Whoever joins their networks again makes them anew."""
        self._done.clear()
        for name in tables:
            await _nft(f"add table ip {name}\ndelete table ip {name}\n")

    async def _tables(self) -> list[str]:
        listed = (await _nft("list tables ip\n")).stdout.decode()
        return re.findall(rf"^table ip ({re.escape(self._label)}_[0-9a-f]{{8}})$", listed, re.MULTILINE)

    def _table(self, network: str) -> str:
        return f"{self._label}_{hashlib.sha256(network.encode()).hexdigest()[:8]}"


def ranges_to_masquerade(network: NetworkConfigList) -> list[str]:
    """The ranges of the masquerading plugins of `network`, none where one cannot be told."""
    found: list[str] = []
    for plugin in network.plugins:
        if plugin.raw.get("ipMasq") is not True:
            continue
        try:
            ipam = msgspec.convert(plugin.raw.get("ipam"), type=_HostLocal)
            told = [ipam.subnet] if ipam.subnet else []
            told += [one.subnet for choice in ipam.ranges for one in choice]
            networks = [ipaddress.IPv4Network(subnet, strict=False) for subnet in told]
        except (msgspec.ValidationError, ValueError):
            return []
        if plugin.type not in MASQUERADING or ipam.type != "host-local" or not networks:
            return []
        found += map(str, ipaddress.collapse_addresses(networks))
    return found


def _without(plugin: PluginConfig) -> PluginConfig:
    return replace(plugin, raw={**plugin.raw, "ipMasq": False}) if plugin.raw.get("ipMasq") else plugin


def find_program(name: str) -> Path | None:
    """A firewall program of the host."""
    found = shutil.which(name, path=PROGRAM_PATH)
    return Path(found) if found else None


async def run_program(name: str, arguments: tuple[str, ...], stdin: str = "") -> program.PluginRun:
    """Execute a firewall program; `FailedPrecondition` where it is not there."""
    path = find_program(name)
    if path is None:
        raise errors.FailedPrecondition(f"{name} is not installed")
    return await program.run(
        path,
        arguments=arguments,
        env={"PATH": PROGRAM_PATH},
        stdin=stdin.encode(),
        timeout_s=FIREWALL_TIMEOUT_S,
    )


async def _nft(script: str) -> program.PluginRun:
    done = await run_program("nft", ("-f", "-"), script)
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise errors.FailedPrecondition(f"nft refused the masquerade rule: {said}")
    return done
