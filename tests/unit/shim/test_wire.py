"""Names and paths from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.api import containerd_runc_v1_pb2 as runc_pb2
from atoll.shim import wire


@pytest.mark.parametrize("good", ["a", "A1", "a.b", "a_b-c", "f" * 64, "0" * 76])
def test_identifiers(good: str) -> None:
    assert wire.identifier(good, "id") == good


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a..b", "-a", "a-", "a b", "é", "a\n", "0" * 77, "a\0"])
def test_what_is_no_identifier(bad: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="id"):
        wire.identifier(bad, "id")


@given(st.text(max_size=80))
def test_an_identifier_never_leaves_its_folder(text: str) -> None:
    try:
        name = wire.identifier(text, "id")
    except errors.InvalidArgument:
        return
    assert Path("/folder", name).resolve().parent == Path("/folder")


@pytest.mark.parametrize("bad", ["", "a", "./a", "/a/../b", "/a\0b", "../a"])
def test_paths_are_absolute_and_go_nowhere_upwards(bad: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        wire.absolute(bad, "bundle")
    assert wire.absolute("/a/b", "bundle") == Path("/a/b")


@given(st.integers(0, 1 << 60))
def test_timestamps_keep_their_nanoseconds(at_ns: int) -> None:
    assert wire.timestamp(at_ns).ToNanoseconds() == at_ns


def test_an_any_has_the_bare_name() -> None:
    packed = wire.pack(runc_pb2.ProcessDetails(exec_id="e"))
    assert packed.type_url == "containerd.runc.v1.ProcessDetails"
    assert wire.type_name(packed) == packed.type_url
    packed.type_url = "type.googleapis.com/containerd.runc.v1.ProcessDetails"
    assert wire.type_name(packed) == "containerd.runc.v1.ProcessDetails"
