"""Results of every spec version become one shape; nonsense becomes an error."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.network import result as results
from atoll.network.model import (
    Attachment,
    Dns,
    Interface,
    IPConfig,
    NetworkAttachment,
    PluginTiming,
    Result,
    Route,
    decode_attachment,
    encode,
)

NEW: dict[str, object] = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "br0", "mac": "aa:aa:aa:aa:aa:aa"},
        {"name": "veth1"},
        {"name": "eth0", "mac": "bb:bb:bb:bb:bb:bb", "sandbox": "/run/ns/x", "mtu": 1400, "pciID": "0:1"},
    ],
    "ips": [
        {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2},
        {"address": "fd00::5/64", "interface": 2},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}],
    "dns": {"nameservers": ["10.1.0.1"], "search": ["x"]},
}
OLD = {**NEW, "cniVersion": "0.3.1", "ips": [{"version": "4", **ip} for ip in NEW["ips"]]}  # type: ignore[attr-defined]


@pytest.mark.parametrize("raw", [NEW, OLD])
def test_every_version_gives_one_result(raw: dict[str, object]) -> None:
    told = results.parse(raw)
    assert told.interfaces[2] == Interface(
        name="eth0", mac="bb:bb:bb:bb:bb:bb", sandbox="/run/ns/x", mtu=1400, pci_id="0:1"
    )
    assert told.ips == (
        IPConfig(address="10.1.0.5/16", gateway="10.1.0.1", interface=2),
        IPConfig(address="fd00::5/64", interface=2),
    )
    assert told.routes == (Route(dst="0.0.0.0/0"), Route(dst="10.9.0.0/16", gw="10.1.0.9"))
    assert told.dns == Dns(nameservers=("10.1.0.1",), search=("x",))


@pytest.mark.parametrize(
    "raw",
    [
        {"ips": [{"address": "10.0.0.1"}]},
        {"ips": [{"address": "ten/8"}]},
        {"ips": [{"address": "10.0.0.1/8", "gateway": "gw"}]},
        {"ips": [{"address": "10.0.0.1/8", "interface": 1}], "interfaces": [{"name": "a"}]},
        {"ips": [{"address": "10.0.0.1/8", "interface": -1}]},
        {"ips": {"address": "10.0.0.1/8"}},
        {"interfaces": [{"name": str(n)} for n in range(2000)]},
    ],
)
def test_nonsense_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument):
        results.parse(raw)


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
members = st.dictionaries(st.sampled_from(["address", "name", "interface", "dst"]), scalars, max_size=3)
json_values = scalars | members | st.lists(members, max_size=2)


@given(st.dictionaries(st.sampled_from(["ips", "interfaces", "routes", "dns", "cniVersion"]), json_values))
def test_any_json_is_a_result_or_invalid(raw: dict[str, object]) -> None:
    try:
        results.parse(raw)
    except errors.InvalidArgument:
        pass


@pytest.mark.parametrize(
    ("preference", "chosen"),
    [
        ("ipv4", ("10.0.0.1", ("fd00::1", "10.0.0.2"))),
        ("ipv6", ("fd00::1", ("10.0.0.1", "10.0.0.2"))),
        ("cni", ("fd00::1", ("10.0.0.1", "10.0.0.2"))),
    ],
)
def test_the_preferred_family_is_chosen_and_the_rest_keep_their_order(
    preference: str, chosen: tuple[str, tuple[str, ...]]
) -> None:
    assert results.choose_ip(["fd00::1", "10.0.0.1", "10.0.0.2"], preference) == chosen


def test_without_the_wanted_family_the_first_is_chosen() -> None:
    assert results.choose_ip(["fd00::1", "fd00::2"], "ipv4") == ("fd00::1", ("fd00::2",))
    assert results.choose_ip([]) == ("", ())


def test_only_addresses_of_the_pods_link_count() -> None:
    told = Result(
        interfaces=(Interface(name="br0"), Interface(name="eth0", sandbox="/ns")),
        ips=(
            IPConfig(address="10.0.0.1/8", interface=0),
            IPConfig(address="10.0.0.2/8", interface=1),
            IPConfig(address="10.0.0.3/8"),
        ),
    )
    attachment = NetworkAttachment(network="n", ifname="eth0", result=told)
    assert results.pod_addresses(attachment) == ["10.0.0.2", "10.0.0.3"]


def test_the_shape_that_clients_of_containerd_read() -> None:
    attachment = NetworkAttachment(network="n", ifname="eth0", result=results.parse(NEW))
    said = msgspec.json.decode(msgspec.json.encode(results.to_containerd_json([attachment], "/run/ns/x")))
    assert said["Interfaces"]["eth0"] == {
        "IPConfigs": [{"IP": "10.1.0.5", "Gateway": "10.1.0.1"}, {"IP": "fd00::5", "Gateway": ""}],
        "Mac": "bb:bb:bb:bb:bb:bb",
        "Sandbox": "/run/ns/x",
        "PciID": "0:1",
        "SocketPath": "",
    }
    assert said["Interfaces"]["br0"]["IPConfigs"] is None
    assert set(said["Interfaces"]) == {"lo", "br0", "veth1", "eth0"}
    assert said["DNS"] == [{}, {"nameservers": ["10.1.0.1"], "search": ["x"]}]
    assert said["Routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}]


def test_an_attachment_survives_its_record() -> None:
    attachment = Attachment(
        sandbox_id="s",
        container_id="pool-1",
        netns_path="/run/ns/x",
        networks=(NetworkAttachment(network="n", ifname="eth0", result=results.parse(NEW)),),
        ip="10.1.0.5",
        timings=(PluginTiming(network="n", plugin="bridge", verb="ADD", duration_s=0.5),),
    )
    assert decode_attachment(encode(attachment)) == attachment
    assert attachment.pooled
    with pytest.raises(errors.DataLoss):
        decode_attachment(b"{}")
