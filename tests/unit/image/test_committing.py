"""Images made of others: the instructions that change a config, and the documents that come of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atoll import errors
from atoll.image.committing import Commit, apply, config_document, layer_descriptor, manifest_document
from atoll.image.model import OCI_LAYER, OCI_MANIFEST, digest_of, parse_config, parse_manifest

LAYER = "sha256:" + "1" * 64
NEW = "sha256:" + "2" * 64
BASE = {
    "architecture": "amd64",
    "os": "linux",
    "variant": "v9",
    "x-own": [1],
    "config": {"Env": ["PATH=/bin", "A=old"], "Cmd": ["sh"], "Labels": {"k": "v"}, "Healthcheck": {"Test": ["NONE"]}},
    "rootfs": {"type": "layers", "diff_ids": [LAYER]},
    "history": [{"created_by": "base"}],
}


def changed(*changes: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(BASE["config"]))
    for change in changes:
        apply(config, change)
    return config


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ('CMD ["cat", "/x y"]', "Cmd", ["cat", "/x y"]),
        ("cmd echo $A | cat", "Cmd", ["/bin/sh", "-c", "echo $A | cat"]),
        ("USER 1000:1000", "User", "1000:1000"),
        ("WORKDIR '/a b'", "WorkingDir", "/a b"),
        ("STOPSIGNAL SIGINT", "StopSignal", "SIGINT"),
        ("EXPOSE 80 53/udp", "ExposedPorts", {"80/tcp": {}, "53/udp": {}}),
        ('VOLUME ["/data", "/b"]', "Volumes", {"/data": {}, "/b": {}}),
        ("ENV A='new one' B=2", "Env", ["PATH=/bin", "A=new one", "B=2"]),
        ("ENV C old form", "Env", ["PATH=/bin", "A=old", "C=old form"]),
        ('LABEL a="b c"', "Labels", {"k": "v", "a": "b c"}),
        ("ONBUILD RUN true", "OnBuild", ["RUN true"]),
    ],
)
def test_an_instruction_changes_its_key_alone(change: str, key: str, value: object) -> None:
    expected = {**BASE["config"], key: value}
    assert changed(change) == expected


def test_an_entrypoint_takes_the_place_of_the_command_too() -> None:
    config = changed('ENTRYPOINT ["run"]')
    assert config["Entrypoint"] == ["run"]
    assert "Cmd" not in config


@pytest.mark.parametrize("change", ["", "CMD", "RUN true", "CMD [1]", "ENV =x", "ENV A=1 B", "USER '", "CMD a\0b"])
def test_what_is_no_instruction_is_refused_by_name(change: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="change"):
        changed(change)


def test_the_documents_are_those_of_an_image_and_keep_what_they_do_not_know() -> None:
    commit = Commit(changes=("USER 5",), author="me", message="why", created="2026-01-01T00:00:00Z", created_by="sh")
    config = config_document(json.dumps(BASE).encode(), NEW, commit)
    document = json.loads(config)
    assert (document["x-own"], document["config"]["Healthcheck"]) == ([1], {"Test": ["NONE"]})
    assert document["history"][1:] == [
        {"created": "2026-01-01T00:00:00Z", "created_by": "sh", "author": "me", "comment": "why"}
    ]
    base = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"digest": digest_of(b"base"), "size": 4},
        "layers": [
            {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": LAYER, "size": 9},
        ],
    }
    manifest = manifest_document(json.dumps(base).encode(), config, layer_descriptor(NEW, 7))
    parsed = parse_manifest(manifest, "new", max_layers=9, max_layer=99, max_config=1 << 20)
    assert [one.media_type for one in parsed.layers] == [f"{OCI_LAYER}+gzip", OCI_LAYER]
    assert json.loads(manifest)["mediaType"] == OCI_MANIFEST
    assert parse_config(config, parsed).parsed().user == "5"
