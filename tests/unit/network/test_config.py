"""CNI configurations: what is taken, what is refused with the file's name, what is read again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.network import config


def conflist(**changes: object) -> bytes:
    said = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}
    return json.dumps({**said, **changes}).encode()


def test_a_list_keeps_members_it_does_not_know() -> None:
    network = config.parse(
        conflist(plugins=[{"type": "x", "capabilities": {"portMappings": True, "dns": False}, "own": {"a": [1]}}]),
        source="f",
    )
    assert network.plugins[0].raw["own"] == {"a": [1]}
    assert network.plugins[0].capabilities == {"portMappings"}
    assert config.parse(json.dumps(config.to_json(network)).encode(), source="f").plugins == network.plugins


def test_a_single_plugin_becomes_a_list_of_one() -> None:
    network = config.parse(b'{"cniVersion":"0.3.1","name":"one","type":"ptp","ipam":{}}', source="f")
    assert [plugin.type for plugin in network.plugins] == ["ptp"]
    assert network.name == "one"
    assert "name" not in network.plugins[0].raw


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (conflist(name="../evil"), "network name '../evil'"),
        (conflist(plugins=[]), "1 to 64 plugins"),
        (conflist(plugins=[{"type": "../../bin/sh"}]), "'../../bin/sh' is not the name"),
        (conflist(plugins=[{"type": "a", "ipam": {"type": "/x"}}]), "'/x' is not the name"),
        (conflist(cniVersion="0.2.0"), "says CNI version 0.2.0"),
        (conflist(cniVersion=""), "says CNI version nothing"),
        (conflist(plugins="bridge"), "not a CNI network configuration"),
        (b"{", "not a CNI network configuration"),
        (b"[" * 100_000, "not a CNI network configuration"),
        (b"\xff\xfe", "not a CNI network configuration"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(said: bytes, told: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"^/etc/x\.conflist: ") as raised:
        config.parse(said, source="/etc/x.conflist")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=200))
def test_no_bytes_get_past_as_another_error(data: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        config.parse(data, source="f")


def test_the_newest_version_offered_is_taken_and_all_are_kept() -> None:
    network = config.parse(conflist(cniVersions=["1.0.0", "1.1.0", "9.0.0"]), source="f")
    assert (network.cni_version, network.cni_versions) == ("1.1.0", ("1.0.0", "1.1.0"))
    assert network.speaks("0.4.0")
    assert not network.at_version("0.3.1").speaks("0.4.0")


@pytest.mark.parametrize("said", [True, "true", "True"])
def test_disable_flags_may_be_words(said: object) -> None:
    network = config.parse(conflist(disableCheck=said, disableGC=said), source="f")
    assert network.disable_check
    assert network.disable_gc


def test_a_folder_counts_in_lexical_order_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "20-b.conflist").write_bytes(conflist(name="b"))
    (tmp_path / "10-a.json").write_bytes(conflist(name="a"))
    (tmp_path / "30-c.conf").write_bytes(b"broken, but past the limit")
    (tmp_path / "05-readme.txt").write_bytes(b"no configuration")
    assert [network.name for network in config.ConfigFolder(tmp_path, limit=2).networks()] == ["a", "b"]
    assert [network.name for network in config.ConfigFolder(tmp_path).networks()] == ["a"]


def test_a_missing_folder_has_no_networks(tmp_path: Path) -> None:
    assert config.ConfigFolder(tmp_path / "none").networks() == ()


def test_a_change_is_seen_at_the_next_look(tmp_path: Path) -> None:
    folder = config.ConfigFolder(tmp_path)
    path = tmp_path / "10-a.conflist"
    path.write_bytes(conflist(name="before"))
    os.utime(path, ns=(1, 1))
    first = folder.networks()
    assert folder.networks() is first
    path.write_bytes(conflist(name="behind"))
    os.utime(path, ns=(2, 2))
    assert [network.name for network in folder.networks()] == ["behind"]
    path.write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(errors.InvalidArgument, match=r"10-a\.conflist"):
            folder.networks()
    path.unlink()
    assert folder.networks() == ()


def test_a_change_within_a_tick_of_the_clock_is_seen_too(tmp_path: Path) -> None:
    folder = config.ConfigFolder(tmp_path)
    path = tmp_path / "10-a.conflist"
    path.write_bytes(conflist(name="before"))
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    assert [network.name for network in folder.networks()] == ["before"]
    path.write_bytes(conflist(name="behind"))
    os.utime(path, ns=(now, now))
    assert [network.name for network in folder.networks()] == ["behind"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("1.conflist", "2.conflist"):
        (tmp_path / name).write_bytes(conflist())
    with pytest.raises(errors.InvalidArgument, match=r"2\.conflist: the network name net is taken"):
        config.ConfigFolder(tmp_path, limit=0).networks()
