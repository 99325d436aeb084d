"""atoll.network.redirects: what an iptables-save tells."""

from __future__ import annotations

from atoll.network.redirects import Redirect, parse

OWNER = r'-m comment --comment "dnat name: \"web\" id: \"abc123\""'
SAVED = rf"""*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-DN-0a1b -s 10.9.0.0/16 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-0a1b -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.9.0.2:80
-A CNI-DN-0a1b -d 127.0.0.1/32 -p udp -m udp --dport 5353 -j DNAT --to-destination 10.9.0.2:53
-A CNI-HOSTPORT-DNAT -p tcp {OWNER} -m multiport --dports 8081 -j CNI-DN-0a1b
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE
COMMIT
"""


def test_rules_that_lead_a_port_away_are_told_with_their_owner() -> None:
    assert list(parse(SAVED.splitlines())) == [
        Redirect(protocol="tcp", port=8081, chain="CNI-DN-0a1b", container_id="abc123"),
        Redirect(protocol="udp", port=5353, address="127.0.0.1", chain="CNI-DN-0a1b", container_id="abc123"),
        Redirect(protocol="tcp", port=8080, chain="DOCKER"),
    ]
