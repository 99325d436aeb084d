"""The writable layer of a container as an archive."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from atoll.snapshot import archive


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    folder = tmp_path / "fs"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "file").write_bytes(b"content")
    os.link(folder / "sub" / "file", folder / "sub" / "same")
    (folder / "link").symlink_to("/etc/shadow")
    os.mkfifo(folder / "sub" / "fifo")
    os.setxattr(folder / "sub" / "file", "user.mark", b"\xff\x00")
    (folder / "sub" / os.fsdecode(b"\xff")).touch()
    return folder


def test_files_links_and_attributes_are_kept_and_nothing_is_followed(tmp_path: Path, layer: Path) -> None:
    archive.write(layer, tmp_path / "diff.tar")
    with tarfile.open(tmp_path / "diff.tar") as packed:
        found = {one.name: one for one in packed.getmembers()}
        file = packed.extractfile("sub/file")
        assert file is not None
        assert file.read() == b"content"
    assert sorted(found) == sorted(
        ["link", "sub", "sub/deep", "sub/fifo", "sub/file", "sub/same", os.fsdecode(b"sub/\xff")]
    )
    assert (found["link"].issym(), found["link"].linkname) == (True, "/etc/shadow")
    assert (found["sub/same"].islnk(), found["sub/same"].linkname) == (True, "sub/file")
    assert found["sub/fifo"].isfifo()
    kept = found["sub/file"].pax_headers["SCHILY.xattr.user.mark"]
    assert kept.encode("utf-8", "surrogateescape") == b"\xff\x00"


def test_the_marks_of_overlay_become_those_of_a_layer(tmp_path: Path, layer: Path) -> None:
    os.setxattr(layer / "sub", "user.overlay.opaque", b"y")
    try:
        os.mknod(layer / "sub" / "gone", 0o020000, 0)
    except PermissionError:
        pytest.skip("only root makes devices")
    archive.write(layer, tmp_path / "diff.tar")
    with tarfile.open(tmp_path / "diff.tar") as packed:
        found = {one.name: one for one in packed.getmembers()}
    assert {"sub/.wh.gone", "sub/.wh..wh..opq"} <= set(found)
    assert "sub/gone" not in found
    assert set(found["sub"].pax_headers) <= {"mtime"}
