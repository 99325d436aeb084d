"""What the shim makes of the freezer's files, of either cgroup version."""

from __future__ import annotations

from pathlib import Path

from atoll.shim import cgroups


def test_version_2_tells_by_its_events(tmp_path: Path) -> None:
    (tmp_path / "cgroup.freeze").write_text("1\n")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert not cgroups.is_frozen((tmp_path,))
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert cgroups.is_frozen((tmp_path,))


def test_version_1_is_asked_again_and_its_freezer_is_the_one_that_counts(tmp_path: Path) -> None:
    unified, freezer = tmp_path / "unified", tmp_path / "freezer"
    for folder in (unified, freezer):
        folder.mkdir()
    (unified / "cgroup.freeze").write_text("0\n")
    (unified / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (freezer / "freezer.state").write_text("FREEZING\n")
    assert cgroups.is_frozen((unified, freezer))
    assert (freezer / "freezer.state").read_text() == "FROZEN"


def test_thawing_reaches_the_cgroups_below(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    for folder in (tmp_path, below):
        (folder / "freezer.state").write_text("FROZEN\n")
    cgroups.thaw((tmp_path,))
    assert [(folder / "freezer.state").read_text() for folder in (tmp_path, below)] == ["THAWED", "THAWED"]


def test_what_is_gone_holds_nobody(tmp_path: Path) -> None:
    assert cgroups.is_frozen((tmp_path / "gone",))
    cgroups.thaw((tmp_path / "gone",))
