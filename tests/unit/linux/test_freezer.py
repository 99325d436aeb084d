"""What is made of the freezer's files, of either cgroup version."""

from __future__ import annotations

from pathlib import Path

from atoll.linux import freezer as freezers


def test_version_2_tells_by_its_events(tmp_path: Path) -> None:
    (tmp_path / "cgroup.freeze").write_text("1\n")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert not freezers.is_frozen((tmp_path,))
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert freezers.is_frozen((tmp_path,))


def test_version_1_is_asked_again_and_its_freezer_is_the_one_that_counts(tmp_path: Path) -> None:
    unified, freezer = tmp_path / "unified", tmp_path / "freezer"
    for folder in (unified, freezer):
        folder.mkdir()
    (unified / "cgroup.freeze").write_text("0\n")
    (unified / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (freezer / "freezer.state").write_text("FREEZING\n")
    assert freezers.is_frozen((unified, freezer))
    assert (freezer / "freezer.state").read_text() == "FROZEN"


def test_thawing_reaches_the_cgroups_below(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    for folder in (tmp_path, below):
        (folder / "freezer.state").write_text("FROZEN\n")
    freezers.release_killed((tmp_path,))
    assert [(folder / "freezer.state").read_text() for folder in (tmp_path, below)] == ["THAWED", "THAWED"]


def test_what_is_gone_holds_nobody(tmp_path: Path) -> None:
    assert freezers.is_frozen((tmp_path / "gone",))
    freezers.thaw((tmp_path / "gone",))


def test_thawing_leaves_what_others_froze_below(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    for folder in (tmp_path, below):
        (folder / "freezer.state").write_text("FROZEN\n")
    freezers.thaw((tmp_path,))
    assert [(folder / "freezer.state").read_text() for folder in (tmp_path, below)] == ["THAWED", "FROZEN\n"]


def test_freezing_asks_the_version_that_has_a_freezer(tmp_path: Path) -> None:
    (tmp_path / "cgroup.freeze").write_text("0\n")
    freezers.freeze((tmp_path / "other", tmp_path))
    assert (tmp_path / "cgroup.freeze").read_text() == "1"
    freezers.thaw((tmp_path,))
    assert (tmp_path / "cgroup.freeze").read_text() == "0"
    assert not freezers.has_freezer((tmp_path / "other",))
