"""The gate of a paused pod: what adds processes, what waits, what is let go. The freezer's files are in a folder."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.shim import freezer
from atoll.shim.freezer import Freezer


@dataclass
class Box:
    """A container, whose kernel says that it stands where `stands` does."""

    id: str
    cgroups: tuple[Path, ...]
    is_paused: bool = False

    @property
    def state(self) -> str:
        return (self.cgroups[0] / "cgroup.freeze").read_text().strip()


def box(folder: Path, name: str, *, stands: bool = True, is_paused: bool = False) -> Box:
    path = folder / name
    path.mkdir()
    (path / "cgroup.freeze").write_text("0")
    (path / "cgroup.events").write_text(f"populated 1\nfrozen {int(stands)}\n")
    return Box(id=name, cgroups=(path,), is_paused=is_paused)


async def add() -> str:
    return "added"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "FREEZE_TIMEOUT_S", 0.05)


async def test_it_stops_all_but_what_was_paused_before(tmp_path: Path) -> None:
    gate = Freezer("sandbox one")
    one, two = box(tmp_path, "one"), box(tmp_path, "two", is_paused=True)
    await gate.freeze(lambda: (one, two))
    assert (gate.is_frozen, one.state, two.state) == (True, "1", "0")
    await gate.freeze(lambda: pytest.fail("looked at them again"))
    gate.thaw()
    gate.thaw()
    assert (gate.is_frozen, gate.is_closed, one.state) == (False, False, "0")


async def test_nothing_is_added_while_it_is_closed(tmp_path: Path) -> None:
    gate = Freezer("sandbox one")
    await gate.freeze(lambda: [box(tmp_path, "one")])
    with pytest.raises(errors.FailedPrecondition, match=r"create/x: sandbox one is paused; resume it first"):
        await gate.guarded(add(), "create/x")
    gate.thaw()
    assert await gate.guarded(add(), "create/x") == "added"


async def test_it_waits_for_what_is_being_added_and_takes_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezer, "FREEZE_TIMEOUT_S", 5.0)
    gate = Freezer("sandbox one")
    boxes: list[Box] = []
    goes_on = asyncio.Event()

    async def create() -> None:
        await goes_on.wait()
        boxes.append(box(tmp_path, "late"))

    async with TaskOwner("calls") as owner:
        creating = owner.spawn(gate.guarded(create(), "create"), name="create")
        await asyncio.sleep(0)
        freezing = owner.spawn(gate.freeze(lambda: boxes), name="freeze")
        await asyncio.sleep(0)
        with pytest.raises(errors.FailedPrecondition):
            await gate.guarded(add(), "another")
        assert not freezing.done()
        goes_on.set()
        await creating
        await freezing
    assert boxes[0].state == "1"


async def test_what_does_not_stand_in_time_is_named_and_all_go_on(tmp_path: Path) -> None:
    gate = Freezer("sandbox one")
    quick, slow = box(tmp_path, "quick"), box(tmp_path, "slow", stands=False)
    with pytest.raises(errors.DeadlineExceeded, match=r"slow did not freeze"):
        await gate.freeze(lambda: (quick, slow))
    assert (quick.state, slow.state, gate.is_closed) == ("0", "0", False)
    assert await gate.guarded(add(), "create") == "added"


async def test_an_operation_that_does_not_end_is_told(tmp_path: Path) -> None:
    gate = Freezer("sandbox one")
    async with TaskOwner("calls") as owner:
        owner.spawn(gate.guarded(asyncio.sleep(60), "create"), name="create")
        await asyncio.sleep(0)
        with pytest.raises(errors.DeadlineExceeded, match="1 operations that add processes did not end"):
            await gate.freeze(tuple)
    assert not gate.is_closed


async def test_a_container_without_a_freezer_is_an_error_and_a_gone_one_is_not(tmp_path: Path) -> None:
    gate = Freezer("sandbox one")
    bare = tmp_path / "bare"
    bare.mkdir()
    gone = Box(id="gone", cgroups=(tmp_path / "gone",))
    await gate.freeze(lambda: [gone])
    gate.thaw()
    held = box(tmp_path, "held")
    for lacks in ((bare,), ()):
        with pytest.raises(errors.FailedPrecondition, match="no freezer"):
            await gate.freeze(lambda cgroups=lacks: [held, Box(id="bare", cgroups=cgroups)])
        assert (held.state, gate.is_closed) == ("0", False)
