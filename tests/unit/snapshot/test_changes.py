"""Changes of overlay layers, as a list and as a layer; and copies of an upper folder."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from atoll.snapshot.changes import Roots, changes, write_layer
from atoll.snapshot.copying import copy_tree

root = pytest.mark.skipif(os.geteuid() != 0, reason="overlay's marks can be made by root alone")


def tree(folder: Path, *names: str) -> Path:
    """Folders end in a slash, `-name` is a whiteout, `!name/` an opaque folder; others are files of their name."""
    folder.mkdir()
    for name in names:
        path = folder / name.strip("-!/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("-"):
            os.mknod(path, stat.S_IFCHR, 0)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
            if name.startswith("!"):
                os.setxattr(path, "trusted.overlay.opaque", b"y")
        else:
            path.write_text(name)
    return folder


def told(uppers: list[Path], lowers: list[Path], mounts: tuple[str, ...] = ()) -> list[str]:
    return [f"{one.change.value[0]} {one.path}" for one in changes(Roots([*uppers, *lowers], lowers, mounts))]


def names(uppers: list[Path], lowers: list[Path], target: Path, mounts: tuple[str, ...] = ()) -> list[str]:
    write_layer(Roots([*uppers, *lowers], lowers, mounts), target)
    with tarfile.open(target) as layer:
        return layer.getnames()


def test_added_changed_and_folders_in_their_order(tmp_path: Path) -> None:
    upper = tree(tmp_path / "u", "a/", "a/b", "etc/passwd", "z")
    lower = tree(tmp_path / "l", "etc/passwd", "etc/group")
    assert told([upper], [lower]) == ["a /a", "a /a/b", "c /etc", "c /etc/passwd", "a /z"]
    assert names([upper], [lower], tmp_path / "t") == ["a", "a/b", "etc", "etc/passwd", "z"]


def test_a_folder_that_looks_the_same_and_has_nothing_is_no_change(tmp_path: Path) -> None:
    upper, lower = tree(tmp_path / "u", "a/", "b/"), tree(tmp_path / "l", "a/", "b/")
    (upper / "b").chmod(0o700)
    assert told([upper], [lower]) == ["c /b"]


def test_what_a_mount_stands_on_is_no_change_unless_something_is_in_it(tmp_path: Path) -> None:
    upper = tree(tmp_path / "u", "run/secrets/", "data/file", "own/")
    (upper / "hosts").touch()
    lower = tree(tmp_path / "l", "etc")
    mounts = ("/hosts", "/run/secrets", "/data")
    assert told([upper], [lower], mounts) == ["a /data", "a /data/file", "a /own"]
    assert names([upper], [lower], tmp_path / "t", mounts) == ["data", "data/file", "own"]


@root
def test_whiteouts_count_only_for_what_was_there(tmp_path: Path) -> None:
    upper = tree(tmp_path / "u", "-gone", "-never", "d/", "-d/x")
    lower = tree(tmp_path / "l", "gone", "d/x", "d/y")
    assert told([upper], [lower]) == ["c /d", "d /d/x", "d /gone"]
    assert names([upper], [lower], tmp_path / "t") == ["d", "d/.wh.x", ".wh.gone"]


@root
def test_an_opaque_folder_hides_all_below_at_any_depth(tmp_path: Path) -> None:
    upper = tree(tmp_path / "u", "!d/", "d/kept", "d/sub/", "d/sub/new")
    lower = tree(tmp_path / "l", "d/kept", "d/old", "d/sub/older")
    assert told([upper], [lower]) == [
        "c /d",
        "c /d/kept",
        "d /d/old",
        "c /d/sub",
        "a /d/sub/new",
        "d /d/sub/older",
    ]
    assert names([upper], [lower], tmp_path / "t") == [
        "d",
        "d/kept",
        "d/.wh.old",
        "d/sub",
        "d/sub/new",
        "d/sub/.wh.older",
    ]


@root
def test_uppers_count_as_one(tmp_path: Path) -> None:
    top = tree(tmp_path / "t", "-made", "d/", "-d/b", "!e/", "e/only")
    middle = tree(tmp_path / "m", "made", "d/a", "d/b", "e/hidden", "-base")
    lower = tree(tmp_path / "l", "base", "e/below")
    assert told([top, middle], [lower]) == ["d /base", "a /d", "a /d/a", "c /e", "d /e/below", "a /e/only"]
    assert told([top], [middle, lower]) == [
        "c /d",
        "d /d/b",
        "c /e",
        "d /e/below",
        "d /e/hidden",
        "a /e/only",
        "d /made",
    ]


@root
def test_a_file_in_the_place_of_a_folder_and_the_other_way(tmp_path: Path) -> None:
    upper = tree(tmp_path / "u", "was-folder", "!was-file/", "was-file/x")
    lower = tree(tmp_path / "l", "was-folder/y", "was-file")
    assert told([upper], [lower]) == ["c /was-file", "a /was-file/x", "c /was-folder"]


@root
def test_against_a_copy_only_what_was_written_since_counts(tmp_path: Path) -> None:
    lower = tree(tmp_path / "l", "base", "d/x")
    own = tree(tmp_path / "own", "same", "changed", "gone", "d/", "-d/x", "-base", "noted", "touched", "sub/file")
    os.symlink("a", own / "link")
    kept = tmp_path / "kept"
    kept.mkdir()
    copy_tree(own, kept)
    roots = Roots([own, lower], [kept, lower], is_copied=True)
    assert list(changes(roots)) == []
    (own / "changed").write_text("more than it was")
    (own / "gone").unlink()
    (own / "d/x").unlink()
    (own / "d/x").write_text("new")
    (own / "base").unlink()
    os.setxattr(own / "noted", "user.note", b"new")
    os.utime(own / "touched", ns=(1, 1))
    (own / "link").unlink()
    os.symlink("b", own / "link")
    found = [f"{one.change.value[0]} {one.path}" for one in changes(roots)]
    assert found == ["a /base", "c /changed", "c /d", "a /d/x", "d /gone", "c /link", "c /noted", "c /touched"]


@root
def test_a_copy_is_the_same_to_the_last_mark(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "-gone", "!d/", "d/file", "deep/er/")
    os.link(source / "d/file", source / "link")
    os.symlink("nowhere", source / "symlink")
    os.mkfifo(source / "fifo")
    os.mknod(source / "socket", stat.S_IFSOCK | 0o600)
    with (source / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    os.chown(source / "d/file", 1234, 4321)
    os.chmod(source / "d/file", 0o4711)
    os.setxattr(source / "d/file", "user.note", b"kept")
    os.utime(source / "deep", ns=(1, 2))
    target = tmp_path / "t"
    target.mkdir()
    copied = copy_tree(source, target)
    assert copied.inodes == 9
    for name in ("gone", "d", "d/file", "link", "symlink", "fifo", "socket", "sparse", "deep", "deep/er", "."):
        was, now = os.lstat(source / name), os.lstat(target / name)
        assert (was.st_mode, was.st_uid, was.st_gid, was.st_size, was.st_mtime_ns, was.st_nlink) == (
            now.st_mode, now.st_uid, now.st_gid, now.st_size, now.st_mtime_ns, now.st_nlink,
        ), name  # fmt: skip
        for key in os.listxattr(source / name, follow_symlinks=False):
            assert os.getxattr(source / name, key, follow_symlinks=False) == os.getxattr(
                target / name, key, follow_symlinks=False
            )
    assert (target / "d/file").read_bytes() == b"d/file"
    assert (target / "d/file").stat().st_ino == (target / "link").stat().st_ino
    assert (target / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert (target / "sparse").stat().st_blocks <= 16


def test_a_copy_does_not_share_what_is_written_later(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "file")
    target = tmp_path / "t"
    target.mkdir()
    copied = copy_tree(source, target)
    assert copied.copied_bytes + copied.shared_bytes == len("file")
    with (source / "file").open("r+") as file:
        file.write("X")
    assert (target / "file").read_text() == "file"
