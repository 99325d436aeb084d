"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll.linux.files import replacing
from atoll.linux.plain import read_small


def test_the_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_bytes(b"old")
    with replacing(target, mode=0o640) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"new", 0o640)
    assert list(tmp_path.iterdir()) == [target]


def test_work_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), replacing(target) as file:
        file.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_not_there_is_the_callers_to_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "file"):
        pass


def test_what_is_no_small_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    plain, link, fifo = tmp_path / "plain", tmp_path / "link", tmp_path / "fifo"
    plain.write_bytes(b"four")
    link.symlink_to(plain)
    os.mkfifo(fifo)
    assert read_small(plain, 4) == b"four"
    for path, limit in ((plain, 3), (link, 9), (fifo, 9), (tmp_path, 9), (Path("/dev/zero"), 9)):
        with pytest.raises(OSError, match=r"plain file|more than|symbolic|directory") as raised:
            read_small(path, limit)
        assert raised.value.filename is not None
