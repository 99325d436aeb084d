"""atoll.network.redirects: what an iptables-save tells."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.network.redirects import Redirect, parse

OWNER = r'-m comment --comment "dnat name: \"web\" id: \"abc123\""'
SAVED = rf"""*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A CNI-DN-0a1b -s 10.9.0.0/16 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-0a1b -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.9.0.2:80
-A CNI-DN-0a1b -d 127.0.0.1/32 -p udp -m udp --dport 5353 -j DNAT --to-destination 10.9.0.2:53
-A CNI-HOSTPORT-DNAT -p tcp {OWNER} -m multiport --dports 8081 -j CNI-DN-0a1b
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE
COMMIT
"""


def rule(words: str) -> list[Redirect]:
    return list(parse([f"-A PREROUTING {words}"]))


def test_rules_that_lead_a_port_away_are_told_with_their_owner() -> None:
    assert list(parse(SAVED.splitlines())) == [
        Redirect(protocol="tcp", first=8081, last=8081, chain="CNI-DN-0a1b", container_id="abc123"),
        Redirect(
            protocol="udp", first=5353, last=5353, address="127.0.0.1/32", chain="CNI-DN-0a1b", container_id="abc123"
        ),
        Redirect(protocol="tcp", first=8080, last=8080, chain="DOCKER"),
    ]


@pytest.mark.parametrize(
    ("words", "ports"),
    [
        ("-p tcp -m tcp --dport 8000:8100 -j DNAT --to-destination 1.2.3.4", [(8000, 8100)]),
        ("-p tcp -m multiport --dports 80,8081,9:10 -j DNAT", [(80, 80), (8081, 8081), (9, 10)]),
        ("-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080", [(80, 80)]),
        ('-p tcp -m comment --comment "a --dport 1 -j X" -m tcp --dport 80 -j DNAT', [(80, 80)]),
        ("-p tcp -m tcp ! --dport 80 -j DNAT", []),
        ("! -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j DNAT", []),
        ("-s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j DNAT", []),
        ("-p tcp -j DNAT", []),
        ("-p tcp --dport x -j DNAT", []),
        ("-p tcp --dport 80 -j ACCEPT", []),
    ],
)
def test_ports_of_every_form_are_read(words: str, ports: list[tuple[int, int]]) -> None:
    assert [(one.first, one.last) for one in rule(words)] == ports


def test_a_chain_that_nobody_jumps_to_leads_nothing_away() -> None:
    assert list(parse(["-A OLD -p tcp -m tcp --dport 80 -j DNAT"])) == []
    assert len(list(parse(["-A PREROUTING -g OLD", "-A OLD -p tcp -m tcp --dport 80 -j DNAT"]))) == 1


def test_addresses_are_compared_as_networks() -> None:
    (one,) = rule("-d 10.0.0.0/8 -p tcp -m tcp --dport 80 -j DNAT")
    assert one.leads("tcp", 80, "10.1.2.3")
    assert one.leads("tcp", 80, "")
    assert one.leads("tcp", 80, "0.0.0.0")
    assert not one.leads("tcp", 80, "192.168.1.1")
    assert not one.leads("tcp", 80, "::1")
    assert not one.leads("udp", 80, "")
    assert not one.leads("tcp", 81, "")


@given(st.lists(st.text(alphabet='-AjPREROUTING dp"\\!,:0189\ufffd\x00', max_size=80), max_size=8))
def test_whatever_others_wrote_is_read(lines: list[str]) -> None:
    list(parse([*lines, *(f"-A PREROUTING {line} -j DNAT" for line in lines)]))


def test_a_long_table_is_read_soon() -> None:
    lines = [f"-A PREROUTING -p tcp -m tcp --dport {n % 65535} -j ACCEPT" for n in range(20_000)]
    begun = time.process_time()
    assert list(parse(lines)) == []
    assert time.process_time() - begun < 1
