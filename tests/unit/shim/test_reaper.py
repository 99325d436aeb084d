"""Who died: real children of this process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from atoll import errors
from atoll.concurrency import TaskOwner, wait_all
from atoll.shim.reaper import EARLY_EXITS_LIMIT, Exit, Reaper


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.open()
    yield reaper
    reaper.close()


@pytest.mark.parametrize(("code", "status"), [(0, 0), (7, 7), (-9, 137), (-15, 143)])
def test_exit_status_is_told_as_shells_do(code: int, status: int) -> None:
    assert Exit(code, 0).status == status


async def test_programs_run_to_their_end(reaper: Reaper, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    argv = ["sh", "-c", "pwd; echo $X; echo passed >/proc/self/fd/$FD; exit 5"]
    with (tmp_path / "out").open("wb") as out:
        environment = {"PATH": os.environ["PATH"], "X": "y", "FD": str(writing)}
        status = await reaper.run(
            argv, stdout=out.fileno(), pass_fds=(writing,), cwd=tmp_path, env=environment, timeout_s=10
        )
    assert status == 5
    assert (tmp_path / "out").read_text() == f"{tmp_path}\ny\n"
    assert os.read(reading, 20) == b"passed\n"
    assert Path.cwd() != tmp_path
    os.close(reading)
    os.close(writing)


async def test_a_program_that_takes_too_long_is_killed_with_its_group(reaper: Reaper) -> None:
    reading, writing = os.pipe()
    with pytest.raises(errors.DeadlineExceeded, match="sh"):
        await reaper.run(["sh", "-c", "sleep 60 & sleep 60"], stdout=writing, timeout_s=0.1)
    os.close(writing)
    assert os.read(reading, 1) == b"", "nobody of the group holds the pipe"
    os.close(reading)


async def test_a_cancelled_run_is_killed(reaper: Reaper) -> None:
    async with TaskOwner("test") as tasks:
        task = tasks.spawn(reaper.run(["sleep", "60"], timeout_s=60), name="sleep")
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def test_a_program_that_is_not_there(reaper: Reaper) -> None:
    with pytest.raises(FileNotFoundError):
        await reaper.run(["/none/such"], timeout_s=1)


async def test_many_deaths_at_once_are_all_seen(reaper: Reaper) -> None:
    runs: list[Awaitable[int]] = [reaper.run(["sh", "-c", f"exit {number}"], timeout_s=20) for number in range(30)]
    assert await wait_all(runs) == list(range(30))


async def test_an_early_death_is_kept_while_somebody_expects_it(reaper: Reaper) -> None:
    with reaper.expecting():
        early = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
        await reaper.run(["sleep", "0.2"], timeout_s=10)
        assert (await reaper.watch(early)).code == 3
    late = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
    await reaper.run(["sleep", "0.2"], timeout_s=10)
    with reaper.expecting():
        watched = reaper.watch(late)
        assert not watched.done(), "an exit nobody expected says nothing of a later process of that pid"


class Children:
    """The kernel's view of one process's children: those alive, and the dead that nobody waited for."""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.dead: list[int] = []

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        assert (pid, options) == (-1, os.WNOHANG)
        if self.dead:
            return self.dead.pop(0), 3 << 8
        if self.alive:
            return 0, 0
        raise ChildProcessError

    def waitid(self, kind: int, pid: int, options: int) -> None:
        assert kind == os.P_PID
        assert options & os.WNOWAIT
        if pid not in self.alive and pid not in self.dead:
            raise ChildProcessError

    def spawn(self, *_: object, **__: object) -> int:
        self.alive.add(77)
        return 77


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    made = Children()
    monkeypatch.setattr(os, "waitpid", made.waitpid)
    monkeypatch.setattr(os, "waitid", made.waitid)
    monkeypatch.setattr(os, "posix_spawnp", made.spawn)
    return made


async def test_a_new_process_is_not_mistaken_for_a_dead_one_of_its_pid(children: Children) -> None:
    reaper = Reaper()
    with reaper.expecting():
        children.dead.append(77)
        reaper.reap()
        pid, ended = reaper.start(["program"])
        assert pid == 77
        assert not ended.done()
        children.alive.clear()
        children.dead.append(77)
        reaper.reap()
        assert ended.result().code == 3


async def test_a_child_that_is_there_is_not_mistaken_for_a_dead_one_of_its_pid(children: Children) -> None:
    reaper = Reaper()
    with reaper.expecting():
        children.dead.append(77)
        reaper.reap()
        children.alive.add(77)
        assert not reaper.watch(77).done()


async def test_an_early_death_is_forgotten_with_the_last_who_could_expect_it(children: Children) -> None:
    reaper = Reaper()
    first, second, third = reaper.expecting(), reaper.expecting(), reaper.expecting()
    first.__enter__()
    second.__enter__()
    children.dead += [5, 6]
    reaper.reap()
    third.__enter__()
    children.dead.append(7)
    reaper.reap()
    first.__exit__(None, None, None)
    assert reaper.watch(5).done()
    second.__exit__(None, None, None)
    assert not reaper.watch(6).done(), "who opened later never expected it"
    assert reaper.watch(7).done()
    third.__exit__(None, None, None)


async def test_early_deaths_are_bounded(children: Children) -> None:
    reaper = Reaper()
    with reaper.expecting():
        children.dead += range(100, 100 + EARLY_EXITS_LIMIT + 1)
        reaper.reap()
        assert not reaper.watch(100).done()
        assert reaper.watch(101).done()


async def test_programs_do_not_inherit_ignored_signals(reaper: Reaper) -> None:
    reading, writing = os.pipe()
    await reaper.run(["cat", "/proc/self/status"], stdout=writing, timeout_s=10)
    os.close(writing)
    text = os.read(reading, 1 << 16).decode()
    os.close(reading)
    ignored = int(text.partition("SigIgn:")[2].split()[0], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))
