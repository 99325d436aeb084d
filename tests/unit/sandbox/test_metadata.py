"""The extension `metadata`: containerd's JSON, both ways."""

from __future__ import annotations

import json

import msgspec
import pytest

from atoll import errors
from atoll.sandbox.config import DNSConfig, PodConfig, PodMetadata
from atoll.sandbox.controller import TypedAny
from atoll.sandbox.metadata import TYPE_URL, SandboxMetadata, decode_metadata, encode_metadata

FULL = SandboxMetadata(
    id="abc",
    name="web_default_1_0",
    config=PodConfig(
        metadata=PodMetadata(name="web", uid="1", namespace="default"), dns_config=DNSConfig(servers=("10.0.0.10",))
    ),
    netns_path="/run/netns/abc",
    ip="10.4.0.2",
    additional_ips=("fd00::2",),
    runtime_handler="runc",
    cni_result=msgspec.Raw(b'{"Interfaces":{"eth0":{}}}'),
)


@pytest.mark.parametrize("metadata", [FULL, SandboxMetadata(id="abc")])
def test_round_trip(metadata: SandboxMetadata) -> None:
    extension = encode_metadata(metadata)
    assert extension.type_url == TYPE_URL
    assert decode_metadata(extension) == metadata


def test_the_json_has_the_names_that_containerd_uses() -> None:
    text = json.loads(encode_metadata(FULL).value)
    assert text["Version"] == "v1"
    assert text["Metadata"] == {
        "ID": "abc",
        "Name": "web_default_1_0",
        "Config": {
            "metadata": {"name": "web", "uid": "1", "namespace": "default"},
            "dns_config": {"servers": ["10.0.0.10"]},
        },
        "NetNSPath": "/run/netns/abc",
        "IP": "10.4.0.2",
        "AdditionalIPs": ["fd00::2"],
        "RuntimeHandler": "runc",
        "CNIResult": {"Interfaces": {"eth0": {}}},
        "ProcessLabel": "",
    }


def test_what_containerd_wrote_for_the_host_network_is_read() -> None:
    text = (
        b'{"Version":"v1","Metadata":{"ID":"a","Name":"n","Config":null,"NetNSPath":"","IP":"",'
        b'"AdditionalIPs":null,"RuntimeHandler":"","CNIResult":null,"ProcessLabel":"","Newer":1}}'
    )
    assert decode_metadata(TypedAny(type_url=TYPE_URL, value=text)) == SandboxMetadata(id="a", name="n")


@pytest.mark.parametrize(
    "text",
    [
        b'{"Version":"v2","Metadata":{"ID":"a"}}',
        b'{"Metadata":{"ID":"a"}}',
        b'{"Version":"v1"}',
        b'{"Version":"v1","Metadata":{"ID":1}}',
        b'{"Version":"v1","Metadata":{"ID":"a"}',
        b'{"Version":"v1","Metadata":{"ID":"\xff"}}',
        b"",
    ],
)
def test_what_cannot_be_read_is_data_loss(text: bytes) -> None:
    with pytest.raises(errors.DataLoss, match="sandbox metadata"):
        decode_metadata(TypedAny(type_url=TYPE_URL, value=text))


def test_another_type_is_data_loss() -> None:
    with pytest.raises(errors.DataLoss, match=r"runtime\.v1\.Foo"):
        decode_metadata(TypedAny(type_url="runtime.v1.Foo", value=b"{}"))
