"""The table of what plugins leave on the host."""

from __future__ import annotations

import json

import pytest

from atoll.network import config, teardown
from atoll.network.config import NetworkConfigList

BRIDGE: dict[str, object] = {"type": "bridge", "ipam": {"type": "host-local"}}
PORTMAP: dict[str, object] = {"type": "portmap", "capabilities": {"portMappings": True}}
PORTS: dict[str, object] = {"portMappings": [{"hostPort": 1}]}


def network(*plugins: dict[str, object]) -> NetworkConfigList:
    return config.parse(json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": plugins}).encode(), source="f")


@pytest.mark.parametrize(
    ("plugins", "droppable"),
    [
        ([BRIDGE], True),
        ([BRIDGE, PORTMAP], True),
        ([{**BRIDGE, "ipMasq": True}], False),
        ([{**BRIDGE, "macspoofchk": True}], False),
        ([{"type": "bridge", "ipam": {"type": "dhcp"}}], False),
        ([{"type": "bridge", "ipam": {"type": "static"}}], True),
        ([{"type": "macvlan", "ipam": {}}], True),
        ([BRIDGE, {"type": "firewall"}], False),
        ([{"type": "calico"}], False),
        ([{"type": "host-device"}], False),
    ],
)
def test_only_known_plugins_without_host_state_are_dropped(plugins: list[dict[str, object]], droppable: bool) -> None:
    assert teardown.is_droppable(network(*plugins), {}) is droppable
    assert teardown.is_droppable(network(*plugins), PORTS) is droppable


@pytest.mark.parametrize(
    ("plugin", "args", "idle"),
    [
        (PORTMAP, {}, True),
        (PORTMAP, PORTS, False),
        (PORTMAP, {"portMappings": []}, True),
        ({"type": "portmap"}, PORTS, True),
        ({"type": "bandwidth", "capabilities": {"bandwidth": True}}, {}, True),
        ({"type": "bandwidth", "ingressRate": 1000, "ingressBurst": 1000}, {}, False),
        (BRIDGE, {}, False),
        ({"type": "firewall"}, {}, False),
    ],
)
def test_a_plugin_is_idle_only_without_its_capability(
    plugin: dict[str, object], args: dict[str, object], idle: bool
) -> None:
    assert teardown.is_idle(network(plugin).plugins[0], args) is idle


def test_after_a_drop_only_what_needs_no_namespace_is_executed() -> None:
    chain = network(BRIDGE, PORTMAP, {"type": "macvlan", "ipam": {"type": "static"}}).plugins
    assert [teardown.executed_for_del(plugin, dropped=True) for plugin in chain] == ["host-local", "portmap", ""]
    assert [teardown.executed_for_del(plugin, dropped=False) for plugin in chain] == ["bridge", "portmap", "macvlan"]
