"""The ledger: entered before, struck after, walked in reverse, debts that are paid in the end."""

# ruff: noqa: TID251  # the tests play callers that come and go

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atoll import errors
from atoll.database import Connection, Plan
from atoll.ledger.kind import Entry, Intent
from atoll.ledger.ledger import LAST_RETRY_S, Ledger, read_boot_id
from tests.unit.ledger.world import BUSY, Run, Thing, World, kinds

FAR = 30.0


def intents(owner: str = "box") -> list[Intent]:
    return [Intent(owner=owner, kind=kind, key=owner, data={"n": kind}) for kind in ("netns", "cgroup", "shim")]


async def fill(ledger: Ledger, world: World, owner: str = "box") -> list[Entry]:
    entries = await ledger.enter(*intents(owner))
    for entry in entries:
        world.acquire(entry)
    return entries


async def test_an_entry_is_durable_when_enter_returns(path: Path, run: Run, world: World) -> None:
    entries = await run.ledger.enter(*intents())
    assert [(entry.kind, entry.key, entry.owner, entry.data) for entry in entries] == [
        ("netns", "box", "box", {"n": "netns"}),
        ("cgroup", "box", "box", {"n": "cgroup"}),
        ("shim", "box", "box", {"n": "shim"}),
    ]
    other = await Run.begin(path, kinds(world))
    assert other.ledger.entries() == other.ledger.entries("box") == tuple(entries)
    await other.end()


async def test_entries_are_entered_all_or_none_with_what_shares_their_transaction(run: Run) -> None:
    def fail(_connection: Connection) -> None:
        raise errors.AlreadyExists("the record is there")

    with pytest.raises(errors.AlreadyExists):
        await run.db.commit(run.ledger.plan_enter(*intents()), Plan(fail))
    assert run.ledger.entries() == ()
    assert run.ledger.owners() == frozenset()
    assert len(await run.ledger.enter(*intents())) == 3


@pytest.mark.parametrize(
    "intent",
    [
        Intent(owner="../box", kind="shim", key="k"),
        Intent(owner="", kind="shim", key="k"),
        Intent(owner="box", kind="nothing", key="k"),
        Intent(owner="box", kind="shim", key=""),
    ],
)
async def test_what_could_not_be_released_is_not_entered(ledger: Ledger, intent: Intent) -> None:
    with pytest.raises(errors.InvalidArgument):
        await ledger.enter(*intents(), intent)
    assert ledger.entries() == ()


async def test_a_resource_has_one_entry(ledger: Ledger, world: World) -> None:
    await ledger.enter(*intents())
    with pytest.raises(errors.AlreadyExists, match="belongs to box, it is in use"):
        await ledger.enter(Intent(owner="other", kind="shim", key="box"))
    plans = [ledger.plan_enter(Intent(owner=owner, kind="shim", key="race")) for owner in ("one", "two")]
    await ledger._db.commit(plans[0])
    with pytest.raises(errors.AlreadyExists):
        await ledger._db.commit(plans[1])
    world.failing["shim"] = BUSY
    await ledger.release_all("box", within=FAR)
    with pytest.raises(errors.AlreadyExists, match="still owed: device or resource busy"):
        await ledger.enter(Intent(owner="box", kind="shim", key="box"))


async def test_strike_is_idempotent_and_frees_the_key(ledger: Ledger) -> None:
    entries = await ledger.enter(*intents())
    await ledger.strike(*entries[:2])
    await ledger.strike(*entries[:2])
    assert ledger.entries() == (entries[2],)
    assert ledger.find("netns", "box") is None
    await ledger.enter(Intent(owner="box", kind="netns", key="box"))


async def test_update_changes_what_an_entry_says(path: Path, run: Run, world: World) -> None:
    (entry, *_) = await run.ledger.enter(*intents())
    changed = await run.ledger.update(entry, {"pid": "7"})
    assert changed.data == {"pid": "7"}
    assert run.ledger.find("netns", "box") == changed
    other = await Run.begin(path, kinds(world))
    assert other.ledger.find("netns", "box") == changed
    await other.end()
    await run.ledger.strike(changed)
    with pytest.raises(errors.NotFound):
        await run.ledger.update(changed, {})


def of_kinds(ledger: Ledger, *kinds: str) -> list[Entry]:
    return [entry for entry in ledger.entries("box") if entry.kind in kinds]


class TestWalk:
    async def test_it_releases_in_reverse_and_strikes(self, path: Path, run: Run, world: World) -> None:
        await fill(run.ledger, world)
        await fill(run.ledger, world, "other")
        assert await run.ledger.release_all("box", within=FAR) == []
        assert world.log == ["shim box", "cgroup box", "netns box"]
        assert run.ledger.owners() == {"other"}
        assert await run.ledger.release_all("box", within=FAR) == []
        again = await Run.begin(path, kinds(world))
        assert again.ledger.owners() == {"other"}
        await again.end()

    @pytest.mark.parametrize(
        "error", [BUSY, OSError(16, "Device or resource busy"), errors.NotFound("x"), KeyError("bug")]
    )
    async def test_a_failure_becomes_a_debt_and_the_walk_goes_on(
        self, ledger: Ledger, world: World, error: Exception
    ) -> None:
        await fill(ledger, world)
        world.failing["cgroup"] = error
        before = datetime.now(UTC)
        (debt,) = await ledger.release_all("box", within=FAR)
        assert (debt.entry.kind, debt.entry.attempts, debt.entry.last_error) == ("cgroup", 1, str(error))
        assert str(debt) == f"cgroup box: {error}"
        assert debt.entry.next_try is not None
        assert debt.entry.next_try > before
        assert world.there == {("cgroup", "box")}
        assert ledger.debts() == ledger.debts("box") == (debt,)

    async def test_what_comes_after_the_failed_one_is_not_tried(self, ledger: Ledger, world: World) -> None:
        await fill(ledger, world)
        world.failing["shim"] = BUSY
        debts = await ledger.release_all("box", within=FAR)
        assert world.log == ["shim box", "netns box"]
        assert [str(debt) for debt in debts] == ["cgroup box: waits for shim box", "shim box: device or resource busy"]
        del world.failing["shim"]
        assert await ledger.release_all("box", within=FAR) == []
        assert world.there == set()

    async def test_a_debt_holds_up_what_comes_after_it_in_a_later_walk_too(self, ledger: Ledger, world: World) -> None:
        await fill(ledger, world)
        world.failing["shim"] = BUSY
        await ledger.release(*of_kinds(ledger, "shim"), within=FAR)
        (debt,) = await ledger.release(*of_kinds(ledger, "cgroup", "netns"), within=FAR)
        assert str(debt) == "cgroup box: waits for shim box"

    async def test_what_is_in_use_holds_nothing_up(self, ledger: Ledger, world: World) -> None:
        await fill(ledger, world)
        assert await ledger.release(*of_kinds(ledger, "cgroup"), within=FAR) == []
        assert [entry.kind for entry in ledger.entries("box")] == ["netns", "shim"]

    async def test_each_release_has_its_kinds_limit(self, path: Path, world: World) -> None:
        slow = Thing("slow", world, limit_s=0.001)
        run = await Run.begin(path, kinds(world, slow=slow))
        await fill(run.ledger, world)
        await run.ledger.enter(Intent(owner="box", kind="slow", key="box"))
        world.hanging.add("slow")
        (debt,) = await run.ledger.release_all("box", within=FAR)
        assert "not done within 0.001 s" in debt.entry.last_error
        assert world.log == ["slow box", "shim box", "cgroup box", "netns box"]
        await run.end()

    async def test_what_the_time_does_not_suffice_for_is_owed(self, ledger: Ledger, world: World) -> None:
        await fill(ledger, world)
        world.hanging.add("shim")
        debts = await ledger.release_all("box", within=0.001)
        assert [debt.entry.kind for debt in debts] == ["netns", "cgroup", "shim"]
        assert "time" in debts[0].entry.last_error

    async def test_it_outlives_a_cancel_storm(self, ledger: Ledger, world: World) -> None:
        await fill(ledger, world)
        world.hanging.add("shim")
        caller = asyncio.ensure_future(ledger.release_all("box", within=FAR))
        await world.entered.wait()
        for _ in range(5):
            caller.cancel()
            await asyncio.sleep(0)
        world.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ledger.entries() == ()
        assert world.there == set()

    async def test_two_walks_of_one_owner_do_not_meet(self, ledger: Ledger, world: World) -> None:
        await fill(ledger, world)
        world.hanging.add("shim")
        walks = [asyncio.ensure_future(ledger.release_all("box", within=FAR)) for _ in range(3)]
        await world.entered.wait()
        world.go_on.set()
        assert await asyncio.gather(*walks) == [[], [], []]
        assert world.log == ["shim box", "cgroup box", "netns box"]

    async def test_a_walk_that_waits_in_vain_for_another_says_so(self, ledger: Ledger, world: World) -> None:
        await fill(ledger, world)
        world.hanging.add("shim")
        first = asyncio.ensure_future(ledger.release_all("box", within=FAR))
        await world.entered.wait()
        with pytest.raises(errors.DeadlineExceeded, match="are being released"):
            await ledger.release_all("box", within=0.001)
        world.go_on.set()
        assert await first == []

    async def test_one_commit_takes_the_record_along(self, run: Run, world: World) -> None:
        await fill(run.ledger, world)
        world.failing["netns"] = BUSY
        gone: list[str] = []
        record = Plan(lambda connection: connection.execute("SELECT 1").close(), lambda _: gone.append("record"))
        assert len(await run.ledger.release_all("box", within=FAR, also=(record,))) == 1
        assert await run.ledger.release_all("never", within=FAR, also=(record,)) == []
        assert gone == ["record", "record"]

    async def test_where_the_disk_refuses_all_stays_entered_and_is_released_again(self, run: Run, world: World) -> None:
        await fill(run.ledger, world)
        await run.db.close()
        with pytest.raises(errors.Unavailable, match="closed"):
            await run.ledger.release_all("box", within=FAR)
        assert {debt.entry.kind for debt in run.ledger.debts()} == {"netns", "cgroup", "shim"}
        assert "still in the ledger" in run.ledger.debts()[0].entry.last_error


class TestDebts:
    async def test_the_background_pays_them(self, path: Path, world: World) -> None:
        run = await Run.begin(path, kinds(world), first_retry_s=0.001)
        await fill(run.ledger, world)
        world.failing["shim"] = BUSY
        world.recovers_after["shim"] = 4
        assert len(await run.ledger.release_all("box", within=FAR)) == 2
        await run.quiet()
        assert world.log == ["shim box", "netns box", *["shim box"] * 4, "cgroup box"]
        assert world.there == set()
        assert run.ledger.entries() == ()
        await run.end()

    async def test_without_debts_no_task_runs(self, run: Run, world: World) -> None:
        await run.ledger.recover(())
        await fill(run.ledger, world)
        await run.ledger.release_all("box", within=FAR)
        assert len(run.owner) == 0

    async def test_the_pause_doubles_up_to_its_limit(self, path: Path, world: World) -> None:
        run = await Run.begin(path, kinds(world), first_retry_s=1.0)
        await run.ledger.enter(Intent(owner="box", kind="netns", key="box"))
        world.failing["netns"] = BUSY
        pauses: list[float] = []
        for _ in range(12):
            before = datetime.now(UTC)
            (debt,) = await run.ledger.release_all("box", within=FAR)
            assert debt.entry.next_try is not None
            pauses.append(round((debt.entry.next_try - before) / timedelta(seconds=1)))
        assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, LAST_RETRY_S, LAST_RETRY_S, LAST_RETRY_S]
        await run.end()

    async def test_they_survive_a_restart(self, path: Path, run: Run, world: World) -> None:
        await fill(run.ledger, world)
        world.failing["shim"] = BUSY
        debts = tuple(await run.ledger.release_all("box", within=FAR))
        again = await Run.begin(path, kinds(world))
        assert again.ledger.debts() == debts
        await again.end()

    async def test_retry_pays_now(self, ledger: Ledger, world: World) -> None:
        await fill(ledger, world)
        await fill(ledger, world, "other")
        world.failing["shim"] = BUSY
        await ledger.release_all("box", within=FAR)
        await ledger.release_all("other", within=FAR)
        assert len(await ledger.retry("box")) == 2
        del world.failing["shim"]
        assert await ledger.retry("box") == []
        assert await ledger.retry() == []
        assert world.there == set()

    async def test_a_closing_daemon_leaves_them_for_the_next(self, path: Path, run: Run, world: World) -> None:
        await fill(run.ledger, world)
        world.failing["shim"] = BUSY
        await run.owner.aclose()
        assert len(await run.ledger.release_all("box", within=FAR)) == 2
        again = await Run.begin(path, kinds(world))
        assert len(again.ledger.debts()) == 2
        await again.end()


class TestRecovery:
    async def test_a_reboot_took_the_volatile(self, path: Path, run: Run, world: World) -> None:
        await fill(run.ledger, world)
        again = await Run.begin(path, kinds(world), boot_id="boot-2")
        gone = await again.ledger.recover({"box"})
        assert [entry.kind for entry in gone] == ["netns"]
        assert [entry.kind for entry in again.ledger.entries()] == ["cgroup", "shim"]
        assert world.log == []
        assert again.ledger.debts() == ()
        await again.end()

    async def test_a_walk_does_not_release_what_a_reboot_took(self, path: Path, run: Run, world: World) -> None:
        await fill(run.ledger, world)
        again = await Run.begin(path, kinds(world), boot_id="boot-2")
        assert await again.ledger.release_all("box", within=FAR) == []
        assert world.log == ["shim box", "cgroup box"]
        await again.end()

    async def test_what_a_crash_left_without_an_owner_is_released(self, path: Path, run: Run, world: World) -> None:
        await fill(run.ledger, world, "half")
        await fill(run.ledger, world, "whole")
        again = await Run.begin(path, kinds(world))
        await again.ledger.recover({"whole"})
        await again.quiet()
        assert again.ledger.owners() == {"whole"}
        assert world.log == ["shim half", "cgroup half", "netns half"]
        await again.end()

    async def test_numbers_go_on_after_the_last(self, path: Path, run: Run, world: World) -> None:
        entries = await run.ledger.enter(*intents())
        again = await Run.begin(path, kinds(world))
        (new,) = await again.ledger.enter(Intent(owner="new", kind="shim", key="new"))
        assert new.seq > entries[-1].seq
        await again.end()

    async def test_a_kind_that_is_no_longer_there_is_owed_not_lost(self, path: Path, run: Run, world: World) -> None:
        await fill(run.ledger, world)
        left = {name: kind for name, kind in kinds(world).items() if name != "shim"}
        again = await Run.begin(path, left)
        debts = await again.ledger.release_all("box", within=FAR)
        assert [str(debt) for debt in debts] == [
            "cgroup box: waits for shim box",
            "shim box: this atoll has no kind 'shim'",
        ]
        await again.end()

    @pytest.mark.parametrize(
        "damage", ["owner = '../x'", "data = x'ff'", "entered_at = 'x'", "entered_at = 9223372036854775807"]
    )
    async def test_an_unreadable_entry_is_quarantined(self, path: Path, run: Run, world: World, damage: str) -> None:
        await fill(run.ledger, world)

        def break_it(connection: Connection) -> None:
            connection.execute(f"UPDATE ledger SET {damage} WHERE kind = 'shim'")

        await run.db.write(break_it)
        again = await Run.begin(path, kinds(world))
        assert [entry.kind for entry in again.ledger.entries()] == ["netns", "cgroup"]
        (kept,) = again.ledger.quarantined()
        assert kept.source == "ledger"
        await again.end()


def test_the_kernel_names_its_boot() -> None:
    assert len(read_boot_id()) == 36
    assert len(set(itertools.repeat(read_boot_id(), 2))) == 1
