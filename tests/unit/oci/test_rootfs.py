from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.oci.rootfs import RootfsView


def layer(base: Path, name: str, files: dict[str, str]) -> Path:
    root = base / name
    root.mkdir()
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def test_upper_layer_hides_and_lower_shows_through(tmp_path: Path) -> None:
    upper = layer(tmp_path, "upper", {"etc/passwd": "upper"})
    lower = layer(tmp_path, "lower", {"etc/passwd": "lower", "etc/group": "group"})
    view = RootfsView((upper, lower))
    assert view.read("/etc/passwd", limit_bytes=100) == b"upper"
    assert view.read("/etc/group", limit_bytes=100) == b"group"
    assert view.read("/etc/shadow", limit_bytes=100) is None
    assert view.read("/etc", limit_bytes=100) is None


def test_file_above_hides_a_folder_below(tmp_path: Path) -> None:
    upper = layer(tmp_path, "upper", {"etc": "a file"})
    lower = layer(tmp_path, "lower", {"etc/passwd": "lower"})
    assert RootfsView((upper, lower)).read("/etc/passwd", limit_bytes=100) is None


def test_links_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host")
    root = layer(tmp_path, "root", {"real/passwd": "image"})
    (root / "etc").symlink_to("/real")
    (root / "up").symlink_to("../../../../secret")
    (root / "absolute").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to("loop")
    view = RootfsView((root,))
    assert view.read("/etc/passwd", limit_bytes=100) == b"image"
    assert view.read("/etc/../real/./passwd", limit_bytes=100) == b"image"
    for path in ("/up", "/absolute", "/loop", "/../secret"):
        assert view.read(path, limit_bytes=100) is None


def test_fifo_is_not_opened_and_size_is_bounded(tmp_path: Path) -> None:
    root = layer(tmp_path, "root", {"big": "x" * 11})
    os.mkfifo(root / "fifo")
    view = RootfsView((root,))
    assert view.read("/fifo", limit_bytes=10) is None
    with pytest.raises(OSError, match="larger than 10"):
        view.read("/big", limit_bytes=10)


@given(st.lists(st.sampled_from(["..", ".", "", "etc", "l", "out", "passwd"]), max_size=12))
def test_no_path_leads_out(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    base = tmp_path_factory.mktemp("view")
    (base / "passwd").write_text("host")
    root = layer(base, "root", {"etc/passwd": "image"})
    (root / "l").symlink_to("..")
    (root / "out").symlink_to("/../etc/../..")
    assert RootfsView((root,)).read("/".join(parts), limit_bytes=100) in (None, b"image")
