"""atoll.faults: points, rules, and what they do."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import pytest

from atoll import errors, faults
from atoll.faults import Action, Held, Plan, Rule


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules").mkdir()
    return tmp_path


def rule(folder: Path, name: str, point: str, action: Action, seconds: float = 0.0) -> Path:
    path = folder / "rules" / name
    path.write_bytes(msgspec.json.encode(Rule(point=point, action=action, seconds=seconds)))
    return path


def test_points_are_noted_and_without_a_rule_nothing_happens(folder: Path) -> None:
    plan = Plan(folder)
    plan.reached("run/files", fails=True)
    plan.reached("zygote/fork:done", fails=False)
    notes = [line.split("\t") for line in (folder / "reached").read_text().splitlines()]
    assert [point for point, _ in notes] == ["run/files", "zygote/fork:done (cannot fail)"]
    assert all(site.rpartition(":")[0].endswith("test_faults.py") for _, site in notes)


def test_an_error_strikes_once_where_it_is_asked_for(folder: Path) -> None:
    plan = Plan(folder)
    path = rule(folder, "1", "release/*", Action.ERROR)
    plan.reached("run/files", fails=True)
    with pytest.raises(errors.Internal, match="'release/netns'"):
        plan.reached("release/netns", fails=True)
    assert not path.exists()
    plan.reached("release/netns", fails=True)


def test_no_error_strikes_where_nothing_can_fail(folder: Path) -> None:
    path = rule(folder, "1", "zygote/*", Action.ERROR)
    Plan(folder).reached("zygote/fork:done", fails=False)
    assert path.exists()


def test_the_first_rule_by_name_is_taken(folder: Path) -> None:
    second = rule(folder, "2", "*", Action.ERROR)
    rule(folder, "1", "*", Action.STALL)
    Plan(folder).reached("run/files", fails=True)
    assert second.exists()


def test_a_held_program_goes_on_when_it_may(folder: Path) -> None:
    rule(folder, "1", "run/files", Action.HOLD)
    thread = threading.Thread(target=Plan(folder).reached, args=("run/files",), kwargs={"fails": True})
    thread.start()
    deadline = time.monotonic() + 5
    while not (folder / "held").exists() and time.monotonic() < deadline:
        pass
    held = msgspec.json.decode((folder / "held").read_bytes(), type=Held)
    assert held.point == "run/files"
    assert thread.is_alive()
    (folder / "go").touch()
    thread.join(5)
    assert not thread.is_alive()


def test_without_the_variable_a_point_does_nothing() -> None:
    faults.reached("run/files")


def test_a_step_is_reached_before_it_and_behind_it(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(faults, "_plan", Plan(folder))
    with faults.step("pull/manifest"):
        faults.reached("pull/inside")
    with pytest.raises(ValueError, match="no"), faults.step("pull/fetch"):
        raise ValueError("no")
    points = [line.partition("\t")[0] for line in (folder / "reached").read_text().splitlines()]
    assert points == ["pull/manifest", "pull/inside", "pull/manifest:done", "pull/fetch"]
