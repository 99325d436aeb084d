"""Documents of images, chain IDs, the choice of a platform, the index of names."""

from __future__ import annotations

import json

import pytest

from atoll import errors
from atoll.image.index import ImageIndex, canonical_names
from atoll.image.model import (
    ConfigDocument,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    chain_ids,
    choose,
    decode,
    digest_of,
    is_index,
    parse_config,
    parse_manifest,
)
from atoll.image.records import Stored
from atoll.image.reference import Reference

A, B = digest_of(b"a"), digest_of(b"b")


def test_chain_ids_are_those_of_the_specification() -> None:
    assert chain_ids([]) == ()
    assert chain_ids([A]) == (A,)
    assert chain_ids([A, B, A])[1:] == (
        digest_of(f"{A} {B}".encode()),
        digest_of(f"{digest_of(f'{A} {B}'.encode())} {A}".encode()),
    )


def test_config_takes_null_for_nothing() -> None:
    """As docker writes them."""
    text = {
        "rootfs": {"diff_ids": [A]},
        "config": {
            "Env": None,
            "Cmd": None,
            "Volumes": {"/b": {}, "/a": {}},
            "Labels": None,
            "ExposedPorts": {"80/tcp": {}},
        },
        "os": "linux",
    }
    config = decode(json.dumps(text).encode(), ConfigDocument, "config").parsed()
    assert config == ImageConfig(volumes=("/a", "/b"), exposed_ports=("80/tcp",), os="linux")


def manifest(**changes: object) -> bytes:
    document = {
        "schemaVersion": 2,
        "config": {"digest": A, "size": 3},
        "layers": [{"digest": B, "size": 4}],
        **changes,
    }
    return json.dumps(document).encode()


def parsed(data: bytes) -> Manifest:
    return parse_manifest(data, "m", max_layers=2, max_layer=100, max_config=10)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"digest": "sha256:x", "size": 3}},
        {"config": {"digest": A, "size": 11}},
        {"config": {"digest": A, "size": -1}},
        {"config": None},
        {"layers": [{"digest": "../../etc", "size": 1}]},
        {"layers": [{"digest": B, "size": 101}]},
        {"layers": [{"digest": B, "size": 1}] * 3},
        {"layers": {}},
        {"layers": [{"digest": B, "size": 1.5}]},
    ],
)
def test_hostile_manifests_are_refused(changes: dict[str, object]) -> None:
    assert parsed(manifest()).layers[0].digest == B
    with pytest.raises(errors.InvalidArgument, match="m"):
        parsed(manifest(**changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"mediaType": "text/plain"}',
        b"{}",
        b'{"schemaVersion": 1, "fsLayers": []}',
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        is_index(data, "it")


def test_index_and_manifest_are_told_apart() -> None:
    assert not is_index(manifest(), "m")
    assert not is_index(manifest(mediaType="application/vnd.docker.distribution.manifest.v2+json"), "m")
    assert is_index(b'{"schemaVersion": 2, "manifests": []}', "i")
    assert is_index(b'{"mediaType": "application/vnd.docker.distribution.manifest.list.v2+json"}', "i")


@pytest.mark.parametrize("diff_ids", [[], [A, B], ["sha256:00"], ["../x"]])
def test_diff_ids_must_fit_the_layers(diff_ids: list[str]) -> None:
    with pytest.raises(errors.InvalidArgument, match=A):
        parse_config(json.dumps({"rootfs": {"diff_ids": diff_ids}}).encode(), parsed(manifest()))


def test_choice_from_an_index() -> None:
    def one(os: str, architecture: str, variant: str = "") -> Descriptor:
        platform = Platform(os=os, architecture=architecture, variant=variant)
        return Descriptor(digest=digest_of(f"{os}{architecture}{variant}".encode()), size=1, platform=platform)

    windows, amd, v7, v8 = (
        one("windows", "amd64"),
        one("linux", "amd64"),
        one("linux", "arm", "v7"),
        one("linux", "arm", "v8"),
    )
    index = Index(schema_version=2, manifests=[windows, amd, v7, v8])
    assert choose(index, "i", architecture="amd64", variant="") is amd
    assert choose(index, "i", architecture="arm", variant="v8") is v8
    assert choose(index, "i", architecture="arm", variant="") is v7
    with pytest.raises(errors.NotFound, match="linux/riscv64; it has linux/amd64, linux/arm, windows/amd64"):
        choose(index, "i", architecture="riscv64", variant="")
    lone = Descriptor(digest=A, size=1)
    assert choose(Index(schema_version=2, manifests=[lone]), "i", architecture="amd64", variant="") is lone


def stored(letter: str, image_id: str = "") -> Stored:
    data = f'{{"{letter}": 1}}'.encode()
    return Stored(
        id=image_id or digest_of(data),
        manifest_digest=digest_of(data + b"m"),
        blobs={},
        size=1,
        config=ImageConfig(),
        chain_ids=(A,),
        created="",
    )


def test_names_move_and_every_image_knows_its_own() -> None:
    index = ImageIndex()
    first, second = stored("x"), stored("y")
    names = canonical_names(Reference.parse("app:v1"), first.manifest_digest)
    index.put(first, names, pinned=False)
    index.put(second, ["docker.io/library/app:v1"], pinned=True)
    images = {image.id: image for image in index}
    assert images[first.id].repo_tags == ()
    assert images[first.id].repo_digests == (f"docker.io/library/app@{first.manifest_digest}",)
    assert images[second.id].repo_tags == ("docker.io/library/app:v1",)
    index.forget(second.id)
    assert index.find("app:v1") is None
    assert index.find(first.id) == (images[first.id], None)


def test_ambiguous_prefix_is_told() -> None:
    index = ImageIndex()
    for number in range(2):
        index.put(stored("x", f"sha256:abcd{number}{'0' * 59}"), [], pinned=False)
    with pytest.raises(errors.InvalidArgument, match="2 image ids"):
        index.find("abcd")
    assert index.find("abcd1") is not None


def test_a_tag_wins_over_a_prefix() -> None:
    index = ImageIndex()
    first, second = stored("x"), stored("y")
    prefix = first.id.removeprefix("sha256:")[:6]
    index.put(first, [], pinned=False)
    index.put(second, [f"docker.io/library/{prefix}:latest"], pinned=False)
    found = index.find(prefix)
    assert found is not None
    assert found[0].id == second.id
