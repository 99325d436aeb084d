"""fsck: the ledger against its owners and against the machine, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.ledger import fsck
from atoll.ledger.fsck import Problem
from atoll.ledger.kind import Entry, Found, Intent
from atoll.ledger.ledger import Ledger
from tests.unit.ledger.world import BUSY, Run, Thing, World, kinds


def known(*owners: str) -> Callable[[], frozenset[str]]:
    return lambda: frozenset(owners)


@pytest.fixture
async def shim(ledger: Ledger, world: World) -> Entry:
    (entry,) = await ledger.enter(Intent(owner="box", kind="shim", key="box"))
    world.acquire(entry)
    return entry


@pytest.mark.usefixtures("shim")
async def test_where_all_agree_nothing_is_found(ledger: Ledger) -> None:
    findings = await fsck.plan(ledger, known("box"))
    assert findings.clean
    assert findings.render() == "nothing is left behind"
    assert findings.to_json() == b"[]"


async def found(ledger: Ledger, *owners: str) -> fsck.Findings:
    return await fsck.plan(ledger, known(*owners))


async def test_an_entry_without_an_owner_is_released(ledger: Ledger, world: World, shim: Entry) -> None:
    findings = await found(ledger)
    assert [(f.problem, f.kind, f.key, f.owner, f.entry) for f in findings.findings] == [
        (Problem.UNOWNED, "shim", "box", "box", shim)
    ]
    assert world.there, "plan changes nothing"
    assert (await fsck.repair(ledger, findings)).clean
    assert world.there == set()
    assert (await found(ledger)).clean


@pytest.mark.usefixtures("shim")
async def test_an_entry_whose_resource_is_gone_is_struck(ledger: Ledger, world: World) -> None:
    world.there.clear()
    findings = await found(ledger, "box")
    assert [f.problem for f in findings.findings] == [Problem.VANISHED]
    assert (await fsck.repair(ledger, findings)).clean
    assert ledger.entries() == ()


@pytest.mark.usefixtures("shim")
async def test_a_resource_without_an_entry_is_entered_and_released(ledger: Ledger, world: World) -> None:
    world.there |= {("cgroup", "lost-1"), ("netns", "box-2")}
    findings = await found(ledger, "box")
    assert [(f.problem, f.kind, f.key, f.owner) for f in findings.findings] == [
        (Problem.STRAY, "netns", "box-2", "box"),
        (Problem.STRAY, "cgroup", "lost-1", "lost"),
    ]
    assert (await fsck.repair(ledger, findings)).clean
    assert world.there == {("shim", "box")}
    assert (await found(ledger, "box")).clean


@pytest.mark.usefixtures("shim")
async def test_a_debt_is_told_with_its_reason_and_tried_again(ledger: Ledger, world: World) -> None:
    world.failing["shim"] = BUSY
    await ledger.release_all("box", within=30)
    findings = await found(ledger)
    assert findings.render() == ("owed: shim box of box (1 tries: device or resource busy): try its release again")
    (left,) = (await fsck.repair(ledger, findings)).findings
    assert left.detail == "device or resource busy"
    world.failing.clear()
    assert (await fsck.repair(ledger, findings)).clean
    assert world.there == set()


@pytest.mark.usefixtures("shim")
async def test_what_is_under_way_is_passed_over(ledger: Ledger, world: World) -> None:
    world.there = {("netns", "box-2")}
    assert (await fsck.plan(ledger, known("box"), busy=lambda owner: owner == "box")).clean
    assert not (await found(ledger, "box")).clean


async def test_what_is_made_while_we_look_is_no_finding(path: Path, world: World) -> None:
    class Late(Thing):
        """Acquired by somebody between the first scan and the reading of the ledger, gone at the second."""

        looks = 0

        async def scan(self) -> list[Found]:
            self.looks += 1
            return [Found(kind=self.name, key="quick", owner="quick")] if self.looks == 1 else []

    late = Late("late", world)
    run = await Run.begin(path, kinds(world, late=late))
    assert (await fsck.plan(run.ledger, known())).clean
    assert late.looks == 2
    await run.end()


async def test_repair_leaves_alone_what_was_taken_meanwhile(ledger: Ledger, world: World) -> None:
    world.there.add(("cgroup", "box"))
    findings = await found(ledger)
    await ledger.enter(Intent(owner="box", kind="cgroup", key="box"))
    assert (await fsck.repair(ledger, findings)).clean
    assert world.there == {("cgroup", "box")}


async def test_a_kind_that_cannot_be_looked_at_is_told(ledger: Ledger, world: World) -> None:
    world.failing["scan netns"] = PermissionError(13, "Permission denied")
    findings = await found(ledger)
    assert [(f.problem, f.kind) for f in findings.findings] == [(Problem.UNSEEN, "netns")]
    assert "Permission denied" in findings.render()
    assert await fsck.repair(ledger, findings) == findings


@pytest.mark.usefixtures("shim")
async def test_an_entry_of_an_unknown_kind_is_told_and_kept(path: Path, world: World) -> None:
    again = await Run.begin(path, {})
    findings = await fsck.plan(again.ledger, known("box"))
    assert [f.problem for f in findings.findings] == [Problem.UNKNOWN]
    assert await fsck.repair(again.ledger, findings) == findings
    assert len(again.ledger.entries()) == 1
    await again.end()


@pytest.mark.usefixtures("shim")
async def test_findings_are_json(ledger: Ledger) -> None:
    assert json.loads((await found(ledger)).to_json()) == [
        {
            "problem": "unowned",
            "kind": "shim",
            "key": "box",
            "owner": "box",
            "detail": "",
            "remedy": "release it",
        }
    ]
