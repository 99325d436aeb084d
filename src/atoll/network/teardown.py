"""What the known CNI plugins leave on the host, so that nothing is executed in vain.

    plugin                       keeps on the host                    so
    bridge, ptp                  a veth (dies with the netns); with    dropped, unless ipMasq or
                                 ipMasq iptables chains; with          macspoofchk is on
                                 macspoofchk nft rules
    macvlan, ipvlan, dummy,      a virtual link inside the netns       dropped
    vlan, loopback, vrf, sbr
    portmap                      nothing without port mappings, else   idle without them, else its DEL,
                                 iptables rules by container ID        which needs no netns
    bandwidth                    nothing without a rate, else an ifb   the same
                                 device named by container ID
    IPAM host-local              a file an address                     its own DEL
    IPAM static, none            nothing                               nothing
    any other                    not known                             full DEL of its whole list

`dropped`: once the netns goes, all that DEL with an empty CNI_NETNS still does is the IPAM's own DEL, so
that alone is executed. `idle`: without its capability the plugin passes the result through and its
DEL looks for rules that were never made, so it is executed for no verb of that attachment.
"""

from __future__ import annotations

from collections.abc import Mapping

from atoll.network.config import NetworkConfigList, PluginConfig
from atoll.network.model import JSON

DIES_WITH_NETNS = frozenset({"bridge", "ptp", "macvlan", "ipvlan", "dummy", "vlan", "loopback", "vrf", "sbr"})
BY_ID = frozenset({"portmap", "bandwidth"})
"""Plugins whose DEL finds what they made by the container ID alone, so it may run after the netns has gone."""
IPAM_BY_ID = frozenset({"host-local"})
"""IPAM plugins whose DEL needs the container ID and nothing of the netns."""
IPAM_STATELESS = frozenset({"static", ""})
HOST_STATE_SWITCHES = ("ipMasq", "macspoofchk")
IDLE_WITHOUT = {
    "portmap": ("portMappings", ()),
    "bandwidth": ("bandwidth", ("ingressRate", "egressRate")),
}
"""Plugin: the capability that gives it work, and members of its own configuration that do as well."""


def is_idle(plugin: PluginConfig, capability_args: Mapping[str, JSON]) -> bool:
    """Whether `plugin` has nothing to do for an attachment with `capability_args`."""
    if plugin.type not in IDLE_WITHOUT:
        return False
    capability, members = IDLE_WITHOUT[plugin.type]
    given = capability in plugin.capabilities and bool(capability_args.get(capability))
    return not given and not any(plugin.raw.get(member) for member in members)


def dies_with_netns(plugin: PluginConfig) -> bool:
    """Whether dropping the netns undoes all that `plugin` made, but for the address of its IPAM."""
    return (
        plugin.type in DIES_WITH_NETNS
        and plugin.ipam_type in IPAM_BY_ID | IPAM_STATELESS
        and not any(plugin.raw.get(switch) for switch in HOST_STATE_SWITCHES)
    )


def is_known(network: NetworkConfigList) -> bool:
    """Whether every plugin of `network` is of the table, so that what it does not declare it does not do."""
    return all(plugin.type in DIES_WITH_NETNS | BY_ID for plugin in network.plugins)


def is_droppable(network: NetworkConfigList, capability_args: Mapping[str, JSON]) -> bool:
    """Whether an attachment to `network` can be torn down by dropping its netns and its addresses."""
    return all(
        dies_with_netns(plugin) or plugin.type in BY_ID or is_idle(plugin, capability_args)
        for plugin in network.plugins
    )


def executed_for_del(plugin: PluginConfig, *, dropped: bool) -> str:
    """The program that DEL of `plugin` executes: itself, or its IPAM where the rest was dropped; "" for none."""
    if not dropped or plugin.type in BY_ID:
        return plugin.type
    return "" if plugin.ipam_type in IPAM_STATELESS else plugin.ipam_type
