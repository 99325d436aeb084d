"""What a pod may ask for, and how it is told to the plugins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atoll import errors
from atoll.network import ports, service
from atoll.network.default import bridge_name
from atoll.network.model import AttachRequest, Bandwidth, Dns, PortMapping

REQUEST = AttachRequest(sandbox_id="s1", netns_path="/run/ns/s1", name="pod", namespace="ns", uid="u")


@pytest.mark.parametrize(
    "change",
    [
        {"sandbox_id": "../s"},
        {"netns_path": "relative"},
        {"name": "a;CNI_X=1"},
        {"namespace": "a=b"},
        {"uid": "a\nb"},
        {"ips": ("10.0.0",)},
        {"mac": "02:00"},
        {"bandwidth": Bandwidth(ingress_rate_bits=-1)},
        {"ports": (PortMapping(host_port=70000, container_port=1),)},
        {"ports": (PortMapping(host_port=1, container_port=0),)},
        {"ports": (PortMapping(host_port=1, container_port=1, protocol="TCP"),)},
        {"ports": (PortMapping(host_port=1, container_port=1, host_ip="localhost"),)},
        {"ports": (PortMapping(host_port=1, container_port=1), PortMapping(host_port=1, container_port=2))},
    ],
)
def test_bad_requests_are_invalid(change: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument):
        service.validate(replace(REQUEST, **change))


def test_one_port_for_two_addresses_or_protocols_is_fine() -> None:
    ports.validate(
        (
            PortMapping(host_port=1, container_port=1, host_ip="127.0.0.1"),
            PortMapping(host_port=1, container_port=1, host_ip="127.0.0.2"),
            PortMapping(host_port=1, container_port=1, protocol="udp"),
        )
    )


def test_capability_arguments_have_the_conventions_names() -> None:
    asked = replace(
        REQUEST,
        annotations={"a": "b"},
        ports=(PortMapping(host_port=8080, container_port=80, host_ip="127.0.0.1"),),
        bandwidth=Bandwidth(egress_rate_bits=1000),
        dns=Dns(nameservers=("10.0.0.1",), search=("x",)),
        ips=("10.0.0.5/24",),
        mac="02:00:00:00:00:01",
        cgroup_parent="/pods",
    )
    assert service.capability_args(asked) == {
        "io.kubernetes.cri.pod-annotations": {"a": "b"},
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}],
        "bandwidth": {"egressRate": 1000, "egressBurst": 2**32 - 1},
        "dns": {"servers": ["10.0.0.1"], "searches": ["x"], "options": []},
        "ips": ["10.0.0.5/24"],
        "mac": "02:00:00:00:00:01",
        "cgroupPath": "/pods",
    }
    assert service.capability_args(REQUEST) == {}


async def test_a_port_has_one_owner_and_is_free_again() -> None:
    held = ports.HostPorts()
    sctp = PortMapping(host_port=4000, container_port=80, protocol="sctp")
    held.note("s1", (sctp,))
    with pytest.raises(errors.AlreadyExists, match="host port 4000/sctp is published by sandbox s1"):
        await held.claim("s2", (sctp,))
    held.release("s1", (sctp,))
    held.release("s1", (sctp,))
    await held.claim("s2", (sctp,))
    await held.claim("s2", (sctp,))
    held.release("s2", (sctp,))
    await held.claim("s3", (sctp,))


def test_bridges_of_two_roots_differ_and_fit_a_link_name() -> None:
    names = {bridge_name(Path(root)) for root in ("/var/lib/atoll", "/a", "/b")}
    assert len(names) == 3
    assert "atoll0" in names
    assert all(len(name) <= 15 for name in names)
