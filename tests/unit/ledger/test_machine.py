"""Whatever fails, and whenever the daemon dies: nothing is held that is not written down."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atoll import errors
from atoll.ledger.kind import Entry, Intent
from tests.unit.ledger.world import BUSY, Run, World, kinds

T = TypeVar("T")

OWNERS = st.sampled_from(["a", "b", "c"])
KINDS = st.sampled_from(["netns", "cgroup", "shim"])


class Life(RuleBasedStateMachine):
    """A daemon that enters, acquires, releases, fails, crashes and comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="atoll-ledger-"))
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.pending: list[Entry] = []
        self.boot = 1
        self.run = self.await_(Run.begin(self.folder / "state.db", kinds(self.world)))

    def await_(self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(work)

    @rule(owner=OWNERS, kind=KINDS)
    def enter(self, owner: str, kind: str) -> None:
        try:
            self.pending += self.await_(self.run.ledger.enter(Intent(owner=owner, kind=kind, key=owner)))
        except errors.AlreadyExists:
            assert self.run.ledger.find(kind, owner) is not None

    @precondition(lambda self: self.pending)
    @rule()
    def acquire(self) -> None:
        entry = self.pending.pop(0)
        if self.run.ledger.find(entry.kind, entry.key) == entry:
            self.world.acquire(entry)

    @rule(kind=KINDS, fails=st.booleans())
    def change_the_weather(self, kind: str, fails: bool) -> None:
        if fails:
            self.world.failing[kind] = BUSY
        else:
            self.world.failing.pop(kind, None)

    @rule(owner=OWNERS)
    def release(self, owner: str) -> None:
        debts = self.await_(self.run.ledger.release_all(owner, within=30))
        assert tuple(debt.entry.seq for debt in debts) == tuple(e.seq for e in self.run.ledger.entries(owner))

    @rule()
    def retry(self) -> None:
        self.await_(self.run.ledger.retry())

    @rule(reboot=st.booleans(), known=st.frozensets(OWNERS))
    def crash_and_come_back(self, reboot: bool, known: frozenset[str]) -> None:
        self.await_(self.run.end())
        self.pending.clear()
        if reboot:
            self.boot += 1
            self.world.there = {(kind, key) for kind, key in self.world.there if kind != "netns"}
        path = self.folder / "state.db"
        self.run = self.await_(Run.begin(path, kinds(self.world), boot_id=f"boot-{self.boot}"))
        self.await_(self.run.ledger.recover(known))

    @invariant()
    def nothing_is_held_without_an_entry(self) -> None:
        for kind, key in self.world.there:
            assert self.run.ledger.find(kind, key) is not None, f"{kind} {key} leaks"

    def teardown(self) -> None:
        self.world.failing.clear()
        for owner in sorted(self.run.ledger.owners()):
            assert self.await_(self.run.ledger.release_all(owner, within=30)) == []
        assert self.world.there == set()
        assert self.run.ledger.entries() == ()
        self.await_(self.run.end())
        again = self.await_(Run.begin(self.folder / "state.db", kinds(self.world)))
        assert again.ledger.entries() == ()
        self.await_(again.end())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
