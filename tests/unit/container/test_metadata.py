"""A container's metadata: containerd's JSON, both ways."""

from __future__ import annotations

import json

import pytest

from atoll import errors
from atoll.container.config import ContainerConfig
from atoll.container.metadata import Metadata, decode_metadata, encode_metadata

FULL = Metadata(
    id="c1",
    name="web_pod_default_1_0",
    sandbox_id="box",
    config=ContainerConfig(command=("sh",), stdin=True),
    image_ref="sha256:0",
    log_path="/var/log/pods/web/0.log",
    stop_signal="SIGTERM",
    process_label="system_u:system_r:container_t:s0",
)


@pytest.mark.parametrize("metadata", [FULL, Metadata(id="c1")])
def test_round_trip(metadata: Metadata) -> None:
    assert decode_metadata(encode_metadata(metadata)) == metadata


def test_the_json_has_the_names_that_containerd_uses() -> None:
    assert json.loads(encode_metadata(FULL)) == {
        "Version": "v1",
        "Metadata": {
            "ID": "c1",
            "Name": "web_pod_default_1_0",
            "SandboxID": "box",
            "Config": {"command": ["sh"], "stdin": True},
            "ImageRef": "sha256:0",
            "LogPath": "/var/log/pods/web/0.log",
            "StopSignal": "SIGTERM",
            "ProcessLabel": "system_u:system_r:container_t:s0",
        },
    }


def test_an_older_one_without_stop_signal_and_label_is_read() -> None:
    text = b'{"Version":"v1","Metadata":{"ID":"c1","SandboxID":"box","Config":null}}'
    assert decode_metadata(text) == Metadata(id="c1", sandbox_id="box")


@pytest.mark.parametrize("text", [b"", b"{}", b'{"Version":"v2","Metadata":{"ID":"a"}}', b'{"Version":"v1"}', b"\xff"])
def test_what_cannot_be_read_is_data_loss(text: bytes) -> None:
    with pytest.raises(errors.DataLoss, match="container metadata"):
        decode_metadata(text)
