"""Bundles: all of one or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll import errors
from atoll.runtime.bundle import Bundle, remove_mounted_tree


def bundle(folder: Path) -> Bundle:
    return Bundle(id="one", namespace="test", path=folder / "shims" / "one")


def test_a_bundle_is_private_and_has_its_spec(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    made.create(b"{}")
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert made.rootfs.is_dir()
    assert made.read_spec() == b"{}"
    made.write_spec(b"[]")
    assert made.read_spec() == b"[]"


def test_a_bundle_without_a_spec_says_so(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    made.create(None)
    with pytest.raises(errors.NotFound, match=r"config\.json"):
        made.read_spec()


def test_a_bundle_that_is_there_is_not_touched(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    made.create(b"{}")
    with pytest.raises(errors.AlreadyExists):
        made.create(b"other")
    assert made.read_spec() == b"{}"


def test_a_refused_bundle_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "shims").write_text("a file is in the way")
    with pytest.raises(errors.Unavailable, match="shims/one"):
        bundle(tmp_path).create(b"{}")


def test_removal_is_idempotent_and_follows_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    made = bundle(tmp_path)
    made.create(b"{}")
    (made.rootfs / "way-out").symlink_to(kept)
    made.delete()
    made.delete()
    assert not made.path.exists()
    assert (kept / "file").exists()


def test_removal_of_nothing_is_done(tmp_path: Path) -> None:
    remove_mounted_tree(tmp_path / "absent")
