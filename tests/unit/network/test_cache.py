"""The record of what was added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atoll import errors
from atoll.network import config
from atoll.network.cache import AttachmentCache, AttachmentKey, Entry

NETWORK = config.parse(
    json.dumps(
        {"cniVersion": "1.1.0", "name": "net", "disableGC": True, "plugins": [{"type": "x", "own": 1}]}
    ).encode(),
    source="f",
)
KEY = AttachmentKey(network="net", container_id="c1", ifname="eth0")


def entry(**changes: object) -> Entry:
    said: dict[str, object] = {
        "key": KEY,
        "network": NETWORK,
        "netns_path": "/run/ns/c1",
        "cni_args": (("IgnoreUnknown", "1"),),
        "capability_args": {"mac": "02:00:00:00:00:01"},
        "result": {"ips": []},
    }
    return Entry(**{**said, **changes})  # type: ignore[arg-type]


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = AttachmentCache(tmp_path / "cache")
    cache.store(entry())
    kept = cache.load(KEY)
    assert kept is not None
    assert (kept.key, kept.netns_path, kept.cni_args, kept.capability_args, kept.result) == (
        KEY,
        "/run/ns/c1",
        (("IgnoreUnknown", "1"),),
        {"mac": "02:00:00:00:00:01"},
        {"ips": []},
    )
    assert (kept.network.plugins, kept.network.disable_gc) == (NETWORK.plugins, True)


def test_removing_is_idempotent_and_listing_tells_the_keys(tmp_path: Path) -> None:
    cache = AttachmentCache(tmp_path / "cache")
    assert cache.recorded() == []
    cache.store(entry())
    (tmp_path / "cache" / "net" / "stray").write_text("")
    (tmp_path / "cache" / "net" / "@.json").write_text("")
    assert cache.recorded() == [KEY]
    cache.remove(KEY)
    cache.remove(KEY)
    assert cache.load(KEY) is None


def test_a_write_that_was_cut_short_is_swept(tmp_path: Path) -> None:
    cache = AttachmentCache(tmp_path / "cache")
    cache.sweep()
    (cache.folder / "net").mkdir(parents=True)
    for name in (".a@eth0.json.tmp", "a@eth0.json"):
        (cache.folder / "net" / name).touch()
    cache.sweep()
    assert [path.name for path in (cache.folder / "net").iterdir()] == ["a@eth0.json"]


@pytest.mark.parametrize("torn", [b"", b"{", b'{"kind":"other"}', b"\xff"])
def test_a_torn_entry_is_data_loss_naming_the_file(tmp_path: Path, torn: bytes) -> None:
    cache = AttachmentCache(tmp_path)
    cache.store(entry())
    (tmp_path / "net" / "c1@eth0.json").write_bytes(torn)
    with pytest.raises(errors.DataLoss, match=r"c1@eth0\.json"):
        cache.load(KEY)


@pytest.mark.parametrize(
    ("network", "container_id", "ifname"),
    [("..", "c", "eth0"), ("n/x", "c", "eth0"), ("n", "../c", "eth0"), ("n", "", "eth0"), ("n", "c", "a/b"),
     ("n", "c", ".."), ("n", "c", "sixteen-letters-"), ("n", "c\n", "eth0")],
)  # fmt: skip
def test_no_name_leaves_the_folder(network: str, container_id: str, ifname: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        AttachmentKey(network=network, container_id=container_id, ifname=ifname)


def test_a_disk_that_refuses_is_an_error_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "c1@eth0.json").mkdir()
    with pytest.raises(errors.FailedPrecondition, match="cannot be recorded"):
        AttachmentCache(tmp_path).store(entry())
    assert [path.name for path in (tmp_path / "net").iterdir()] == ["c1@eth0.json"]
