"""Host ports that a rule of the firewall leads elsewhere: those of pods of other daemons and of other programs.

A published port is a DNAT rule, which no socket shows. Where two rules lead one port away the first takes all of the
traffic, in silence.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PROGRAMS = ("iptables-save", "ip6tables-save")
SEARCHED = "/usr/sbin:/sbin:/usr/bin:/bin"
TIMEOUT_S = 5.0
_ID = re.compile(r'id: \\?"([^"\\]+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """One port that a rule leads away; `address` is empty for every one, `container_id` where no CNI plugin tells."""

    protocol: str
    port: int
    address: str = ""
    chain: str = ""
    container_id: str = ""


def read() -> tuple[Redirect, ...]:
    """Those of this network namespace, IPv4 and IPv6; blocks for some milliseconds. None where no tool tells."""
    found: list[Redirect] = []
    for name in PROGRAMS:
        program = shutil.which(name, path=SEARCHED)
        if program is None:
            continue
        try:
            told = subprocess.run(
                [program, "-t", "nat"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
            ).stdout
        except subprocess.TimeoutExpired:
            continue
        found += parse(told.splitlines())
    return tuple(found)


def parse(lines: Iterable[str]) -> Iterator[Redirect]:
    """The redirects among the lines of an `iptables-save`."""
    rules = [line for line in lines if line.startswith("-A ")]
    owners = {
        chain: found.group(1)
        for rule in rules
        if (chain := rule.rpartition(" -j ")[2]).startswith("CNI-DN-") and (found := _ID.search(rule))
    }
    for rule in rules:
        words = shlex.split(rule)
        options = dict(itertools.pairwise(words))
        if options.get("-j") != "DNAT" or not options.get("--dport", "").isdecimal() or "-p" not in options:
            continue
        chain, address = options["-A"], options.get("-d", "").partition("/")[0]
        yield Redirect(
            protocol=options["-p"],
            port=int(options["--dport"]),
            address=address,
            chain=chain,
            container_id=owners.get(chain, ""),
        )
