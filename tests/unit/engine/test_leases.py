"""Leases: the clock over reboots and set clocks, what annotations ask for, and rows that survive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atoll import errors
from atoll.database import Database, quarantined
from atoll.engine import lease_store
from atoll.engine.lease_store import IDLE, MAX_ENDED, TTL, Clock, LeaseStore, asked_lease
from atoll.engine.uses import Uses


class Hands:
    """What a clock reads."""

    def __init__(self, boot_id: str = "one", boot_s: float = 100.0, wall_s: float = 1000.0) -> None:
        self.boot_s = boot_s
        self.wall_s = wall_s
        self.clock = Clock(boot_id, lambda: self.boot_s, lambda: self.wall_s)


def test_within_a_boot_a_set_wall_clock_changes_nothing() -> None:
    hands = Hands()
    begun = hands.clock.now()
    hands.boot_s, hands.wall_s = 107.0, -5e6
    assert hands.clock.since(begun) == 7.0


@pytest.mark.parametrize(("wall_s", "since"), [(1060.0, 60.0), (900.0, 0.0)])
def test_over_a_reboot_the_wall_clock_counts_and_never_backwards(wall_s: float, since: float) -> None:
    begun = Hands().clock.now()
    assert Hands("two", boot_s=3.0, wall_s=wall_s).clock.since(begun) == since


@pytest.mark.parametrize(
    ("annotations", "found"),
    [({}, None), ({TTL: "5"}, (5.0, 0.0)), ({IDLE: "0.5", TTL: "0"}, (0.0, 0.5)), ({TTL: "0", IDLE: "0"}, None)],
)
def test_annotations(annotations: dict[str, str], found: tuple[float, float] | None) -> None:
    assert asked_lease(annotations) == found


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1e99", "0.001"])
def test_an_annotation_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="annotation"):
        asked_lease({IDLE: text})


async def test_leases_are_read_again_and_a_damaged_one_is_kept_aside(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "state.db", (lease_store.SCHEMA,))
    store = await LeaseStore.open(db, Hands().clock)
    kept = await db.commit(store.plan_begin("a", 5.0, 2.0))
    await db.commit(store.plan_begin("b", 5.0, 0.0))
    later = Hands(boot_s=150.0).clock.now()
    await store.note_use("a", later)
    await db.write(lambda connection: connection.execute("UPDATE leases SET began = '{' WHERE pod_id = 'b'"))
    again = await LeaseStore.open(db, Hands().clock)
    assert again.list() == (replace(kept, used=later),)
    assert [one.key for one in await db.read(quarantined)] == ["b"]
    await db.close()


async def test_a_use_is_not_noted_of_a_lease_that_ran_out(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "state.db", (lease_store.SCHEMA,))
    store = await LeaseStore.open(db, Hands().clock)
    lease = await db.commit(store.plan_begin("a", 5.0, 2.0))
    ended = replace(lease, reason="over", ended_ns=1)
    await store.put(ended)
    await store.note_use("a", Hands(boot_s=150.0).clock.now())
    assert store.find("a") == ended
    await db.close()


async def test_only_the_last_that_ran_out_are_remembered(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "state.db", (lease_store.SCHEMA,))
    store = await LeaseStore.open(db, Hands().clock)
    now = store.clock.now()
    for number in range(MAX_ENDED + 3):
        await store.put(
            lease_store.Lease(
                pod_id=str(number), ttl_s=1, idle_s=0, began=now, used=now, reason="over", ended_ns=number + 1
            )
        )
    await store.forget_oldest()
    assert len(store.list()) == MAX_ENDED
    assert store.find("2") is None
    assert store.find("3") is not None
    await db.close()


def test_uses_are_counted_and_each_end_counts_once() -> None:
    uses, told = Uses(), list[str]()
    uses.tap(told.append)
    end = uses.begin("a")
    with uses.using("a"):
        assert uses.is_used("a")
    assert uses.is_used("a")
    end()
    end()
    assert not uses.is_used("a")
    assert told == ["a"] * 4
