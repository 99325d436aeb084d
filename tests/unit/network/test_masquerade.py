"""Which lists' masquerading is taken over."""

from __future__ import annotations

import json

import pytest

from atoll.network import config
from atoll.network.masquerade import ranges_to_masquerade

LOCAL = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}]]}


@pytest.mark.parametrize(
    ("plugin", "ranges"),
    [
        ({"type": "bridge", "ipMasq": True, "ipam": LOCAL}, ["10.1.0.0/16"]),
        ({"type": "ptp", "ipMasq": True, "ipam": {"type": "host-local", "subnet": "10.2.3.4/24"}}, ["10.2.3.0/24"]),
        ({"type": "bridge", "ipMasq": False, "ipam": LOCAL}, []),
        ({"type": "bridge", "ipam": LOCAL}, []),
        ({"type": "other", "ipMasq": True, "ipam": LOCAL}, []),
        ({"type": "bridge", "ipMasq": True, "ipam": {"type": "dhcp"}}, []),
        ({"type": "bridge", "ipMasq": True, "ipam": {**LOCAL, "type": "whereabouts"}}, []),
        ({"type": "bridge", "ipMasq": True, "ipam": {"type": "host-local", "subnet": "fd00::/64"}}, []),
        ({"type": "bridge", "ipMasq": True, "ipam": {"type": "host-local", "subnet": "10.0.0.0/8; flush ruleset"}}, []),
        ({"type": "bridge", "ipMasq": True}, []),
    ],
)
def test_only_ipv4_ranges_told_by_host_local(plugin: dict[str, object], ranges: list[str]) -> None:
    said = {"cniVersion": "1.0.0", "name": "n", "plugins": [plugin, {"type": "portmap"}]}
    assert ranges_to_masquerade(config.parse(json.dumps(said).encode(), source="f")) == ranges
