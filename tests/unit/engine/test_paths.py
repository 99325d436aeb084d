"""The daemon's folders, and the ID that is in every name of its things."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from atoll import errors
from atoll.engine.paths import Paths


def test_the_instance_is_made_once_and_kept(tmp_path: Path) -> None:
    first = Paths.prepare(tmp_path / "root", tmp_path / "state")
    assert len(first.instance) == 8
    assert Paths.prepare(tmp_path / "root", tmp_path / "state") == first
    assert stat.S_IMODE((tmp_path / "root" / "instance").stat().st_mode) == 0o600
    assert not [path.name for path in (tmp_path / "root").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("text", [b"", b"\0\0\0\0\0\0\0\0\n", b"1234", b"../../..", b"ABCDEF00", b"\xff" * 8])
def test_what_is_no_instance_is_never_believed(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "instance").write_bytes(text)
    with pytest.raises(errors.FailedPrecondition, match="eight hex digits"):
        Paths.prepare(tmp_path, tmp_path / "state")
    assert (tmp_path / "instance").read_bytes() == text
