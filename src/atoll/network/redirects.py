"""Host ports that a rule of the firewall leads elsewhere: those of pods of other daemons and of other programs.

A published port is a DNAT rule, which no socket shows. Where two rules lead one port away the first takes all of the
traffic, in silence. What is read are the rules of iptables; their words are anybody's, so nothing of them is trusted.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

PROGRAMS = ("iptables-save", "ip6tables-save")
SEARCHED = "/usr/sbin:/sbin:/usr/bin:/bin"
TIMEOUT_S = 5.0
BUILT_IN = ("PREROUTING", "OUTPUT")
TARGETS = (" -j DNAT", " -j REDIRECT")
_COMMENT = re.compile(r' --comment ("(?:\\.|[^"\\])*"|\S+)')
_ID = re.compile(r'id: \\?"([^"\\]+)')
_TARGET = re.compile(r" -[jg] (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Ports that one rule leads away, first to last; `address` is a network, empty for every one.

    `container_id` is whose pod's they are, where a CNI plugin tells.
    """

    protocol: str
    first: int
    last: int
    address: str = ""
    chain: str = ""
    container_id: str = ""

    def leads(self, protocol: str, port: int, host_ip: str) -> bool:
        """Whether it is this port's at that address of the host; empty or `0.0.0.0` is any."""
        if protocol != self.protocol or not self.first <= port <= self.last:
            return False
        if not self.address or not host_ip or ipaddress.ip_address(host_ip).is_unspecified:
            return True
        return ipaddress.ip_address(host_ip) in ipaddress.ip_network(self.address, strict=False)


def read() -> tuple[Redirect, ...]:
    """Those of this network namespace, IPv4 and IPv6; blocks for some milliseconds. None where no tool tells."""
    found: list[Redirect] = []
    for name in PROGRAMS:
        program = shutil.which(name, path=SEARCHED)
        if program is None:
            continue
        try:
            told = subprocess.run([program, "-t", "nat"], capture_output=True, check=False, timeout=TIMEOUT_S).stdout
        except subprocess.TimeoutExpired:
            continue
        found += parse(told.decode("utf-8", "replace").split("\n"))
    return tuple(found)


def parse(lines: Iterable[str]) -> Iterator[Redirect]:
    """The redirects among the lines of an `iptables-save`, of the chains that traffic to this host can reach."""
    rules = [line for line in lines if line.startswith("-A ")]
    owners: dict[str, str] = {}
    jumps: dict[str, set[str]] = {}
    leading: list[str] = []
    for rule in rules:
        if "CNI-DN-" in rule and (owner := _ID.search(rule)):
            owners[rule.rpartition(" -j ")[2]] = owner.group(1)
        bare = _COMMENT.sub("", rule)
        if target := _TARGET.search(bare):
            jumps.setdefault(bare.split(" ", 2)[1], set()).add(target.group(1))
        if any(target in bare for target in TARGETS):
            leading.append(bare)
    reached = _reached(jumps)
    for rule in leading:
        words = rule.split()
        if words[1] in reached:
            yield from _redirects(words, owners.get(words[1], ""))


def _reached(jumps: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    left: list[str] = list(BUILT_IN)
    while left:
        chain = left.pop()
        if chain not in reached:
            reached.add(chain)
            left.extend(jumps.get(chain, ()))
    return reached


def _redirects(words: Sequence[str], owner: str) -> Iterator[Redirect]:
    """One for each range of ports; none for a rule that is for some sources only, or for all but some ports."""
    options: dict[str, str] = {}
    for before, option, value in zip(words, words[1:], words[2:], strict=False):
        if before == "!" and option in ("-p", "-d", "--dport", "--dports"):
            return
        options.setdefault(option, value)
    ports = options.get("--dport") or options.get("--dports", "")
    if "-p" not in options or "-s" in options:
        return
    for ends in (part.partition(":") for part in ports.split(",")):
        first, last = ends[0], ends[2] or ends[0]
        if first.isdecimal() and last.isdecimal():
            yield Redirect(
                protocol=options["-p"],
                first=int(first),
                last=int(last),
                address=_network(options.get("-d", "")),
                chain=words[1],
                container_id=owner,
            )


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False)) if text else ""
    except ValueError:
        return ""
