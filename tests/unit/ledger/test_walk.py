"""Releases that a thread can do go there together; what is of the database is committed with the entries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import Blocking
from atoll.database import Plan
from atoll.ledger.kind import BlockingKind, Entry, Found, Intent
from tests.unit.ledger.world import Run


class File(BlockingKind):
    """Files of one folder, one a key; the threads and the order in which they are freed are kept."""

    limit_s = 5.0

    def __init__(self, name: str, folder: Path, blocking: Blocking, log: list[tuple[str, int]]) -> None:
        super().__init__(blocking)
        self.name = name
        self.stubborn = False
        self.absent = False
        self.hangs: threading.Event | None = None
        self._folder = folder
        self._log = log

    def is_absent(self, entry: Entry) -> bool:
        return self.absent

    def free(self, entry: Entry) -> bool:
        self._log.append((f"{self.name} {entry.key}", threading.get_ident()))
        if self.hangs is not None:
            self.hangs.wait(30)
        if self.stubborn:
            return False
        (self._folder / entry.key).unlink()
        return True

    async def finish(self, entry: Entry) -> None:
        self._log.append((f"finish {entry.key}", threading.get_ident()))
        (self._folder / entry.key).unlink()

    def last_change(self, entry: Entry) -> Plan[None]:
        statement = "CREATE TABLE IF NOT EXISTS goodbye (key TEXT)"
        return Plan(
            lambda connection: connection.execute(statement).close(),
            lambda _: self._log.append((f"struck {entry.key}", threading.get_ident())),
        )

    async def exists(self, entry: Entry) -> bool:
        return (self._folder / entry.key).exists()

    async def scan(self) -> list[Found]:
        return []


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    found = Blocking(2)
    yield found
    found.close()


class Files:
    """Three kinds of files and a ledger."""

    def __init__(self, folder: Path, blocking: Blocking) -> None:
        self.folder = folder
        self.log: list[tuple[str, int]] = []
        self.kinds = {name: File(name, folder, blocking, self.log) for name in "abc"}

    async def run(self) -> Run:
        run = await Run.begin(self.folder / "state.db", self.kinds)
        await run.ledger.enter(*(Intent(owner="pod", kind=kind, key=f"{kind}1") for kind in self.kinds))
        for kind in self.kinds:
            (self.folder / f"{kind}1").touch()
        return run

    def names(self) -> list[str]:
        return [name for name, _ in self.log]


async def test_what_a_thread_can_free_goes_there_together(tmp_path: Path, blocking: Blocking) -> None:
    files = Files(tmp_path, blocking)
    run = await files.run()
    assert await run.ledger.release_all("pod", within=5) == []
    assert files.names() == ["c c1", "b b1", "a a1", "struck c1", "struck b1", "struck a1"]
    assert len({thread for name, thread in files.log if not name.startswith("struck")}) == 1
    await run.end()


async def test_one_that_fails_is_owed_and_the_others_go(tmp_path: Path, blocking: Blocking) -> None:
    files = Files(tmp_path, blocking)
    run = await files.run()
    (tmp_path / "b1").unlink()
    [debt] = await run.ledger.release_all("pod", within=5)
    assert (debt.entry.key, "No such file" in debt.entry.last_error) == ("b1", True)
    assert [name for name in files.names() if name.startswith("struck")] == ["struck c1", "struck a1"]
    await run.end()


async def test_what_a_thread_cannot_finish_is_awaited_in_its_turn(tmp_path: Path, blocking: Blocking) -> None:
    files = Files(tmp_path, blocking)
    files.kinds["b"].stubborn = True
    run = await files.run()
    assert await run.ledger.release_all("pod", within=5) == []
    done = [name for name in files.names() if not name.startswith("struck")]
    assert done == ["c c1", "b b1", "b b1", "finish b1", "a a1"]
    await run.end()


async def test_what_is_absent_asks_no_thread(tmp_path: Path, blocking: Blocking) -> None:
    files = Files(tmp_path, blocking)
    files.kinds["b"].absent = True
    run = await files.run()
    assert await run.ledger.release_all("pod", within=5) == []
    assert [name for name in files.names() if not name.startswith("struck")] == ["c c1", "a a1"]
    assert "struck b1" in files.names()
    await run.end()


async def test_behind_one_that_hangs_nothing_is_begun(tmp_path: Path, blocking: Blocking) -> None:
    files = Files(tmp_path, blocking)
    go_on = files.kinds["b"].hangs = threading.Event()
    run = await files.run()
    debts = await run.ledger.release_all("pod", within=0.2)
    assert [debt.entry.key for debt in debts] == ["a1", "b1"]
    assert all("not done within" in debt.entry.last_error for debt in debts)
    go_on.set()
    blocking.close()
    assert files.names() == ["c c1", "b b1", "struck c1"]
    await run.end()


async def test_a_change_that_is_refused_leaves_every_entry(tmp_path: Path, blocking: Blocking) -> None:
    files = Files(tmp_path, blocking)
    run = await files.run()

    def refuse(_: object) -> None:
        raise errors.FailedPrecondition("not now")

    with pytest.raises(errors.FailedPrecondition, match="not now"):
        await run.ledger.release_all("pod", within=5, also=(Plan(refuse),))
    assert [debt.entry.key for debt in run.ledger.debts("pod")] == ["a1", "b1", "c1"]
    assert "struck c1" not in files.names()
    await run.end()
