"""Folders that ext4 lays apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.linux.spreading import spread


def test_a_folder_is_spread_as_often_as_one_likes_and_stays_a_folder(tmp_path: Path) -> None:
    for _ in range(2):
        spread(tmp_path)
    (tmp_path / "a").mkdir()
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    with pytest.raises(FileNotFoundError):
        spread(tmp_path / "none")
