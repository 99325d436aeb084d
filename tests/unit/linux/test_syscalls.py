"""System calls that the standard library lacks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll.linux import syscalls


def _all(folder: Path) -> tuple[dict[str, bool | None], int]:
    """Every entry, and how many calls it took."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found: dict[str, bool | None] = {}
        calls, is_more = 0, True
        while is_more:
            names, is_more = syscalls.folder_entries(fd)
            assert not found.keys() & dict(names).keys()
            found.update(names)
            calls += 1
        return found, calls
    finally:
        os.close(fd)


def test_the_entries_of_a_folder_are_what_the_standard_library_finds(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / ("n" * 255)).write_text("")
    (tmp_path / os.fsdecode(b"\xff\n")).write_text("")
    with os.scandir(tmp_path) as entries:
        expected = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    found, _ = _all(tmp_path)
    assert found.keys() == expected.keys()
    assert all(told is None or told == expected[name] for name, told in found.items())


def test_a_folder_of_many_entries_takes_several_calls(tmp_path: Path) -> None:
    names = {f"{number:0200}" for number in range(400)}
    for name in names:
        (tmp_path / name).touch()
    found, calls = _all(tmp_path)
    assert found.keys() == names
    assert calls > 1


def test_what_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError):
            syscalls.folder_entries(fd)
    finally:
        os.close(fd)
