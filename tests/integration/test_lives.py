"""The books of a controller in memory, over real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest

from atoll import errors
from atoll.sandbox import CreateOptions, Lives, Mount, Runtime, Sandbox, State, TypedAny

T = TypeVar("T")
SANDBOX = Sandbox(id="one", sandboxer="", runtime=Runtime(name="toy"), labels={"a": "b"})
SHOUT = ("sh", "-c", 'trap "exit 3" TERM; read line; echo ready; while :; do sleep 0.05; done')
DEAF = ("sh", "-c", 'trap "" TERM; read line; echo ready; while :; do sleep 0.05; done')


def later(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


async def begun(*command: str) -> Lives:
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    await lives.run("one", *command, prompt=b"\n")
    return lives


async def test_a_life_from_its_creation_to_its_end() -> None:
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    made = lives["one"].status(verbose=True)
    assert (made.state, made.pid, made.exited_at) == (State.NOTREADY, 0, None)
    waiting = later(lives["one"].wait())
    instance = await lives.run("one", "cat", prompt=b"\n")
    assert os.readlink(f"/proc/{instance.pid}/exe").endswith("cat")
    status = lives["one"].status(verbose=True)
    assert (status.state, status.pid, status.created_at) == (State.READY, instance.pid, instance.created_at)
    assert json.loads(status.info["info"])["processStatus"] == "running"
    assert instance.labels == {"a": "b"}
    await lives.stop("one")
    ended = await waiting
    assert ended.exit_status == 128 + signal.SIGKILL
    status = lives["one"].status()
    assert (status.state, status.pid, status.exited_at) == (State.NOTREADY, 0, ended.exited_at)
    await lives.shutdown("one")
    with pytest.raises(errors.NotFound):
        lives["one"]
    assert len(lives) == 0


async def test_its_own_end_is_seen() -> None:
    lives = await begun("sh", "-c", "read line; echo; sleep 0.1; exit 5")
    assert (await lives["one"].wait()).exit_status == 5
    await lives.shutdown("one")


async def test_a_polite_stop_is_a_sigterm() -> None:
    lives = await begun(*SHOUT)
    await lives.stop("one", 20)
    assert (await lives["one"].wait()).exit_status == 3
    await lives.shutdown("one")


async def test_a_stop_that_is_not_heeded_is_a_sigkill() -> None:
    lives = await begun(*DEAF)
    await lives.stop("one", 0.1)
    assert (await lives["one"].wait()).exit_status == 128 + signal.SIGKILL
    await lives.shutdown("one")


async def test_a_shutdown_overtakes_a_polite_stop() -> None:
    lives = await begun(*DEAF)
    stopping = later(lives.stop("one", 100))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        await lives.shutdown("one")
        await stopping


async def test_what_was_stopped_before_its_start_never_starts() -> None:
    lives = Lives()
    life = lives.add(SANDBOX, CreateOptions())
    await lives.stop("one")
    first = await life.wait()
    await lives.stop("one")
    assert (first.exit_status, await life.wait()) == (0, first)
    with pytest.raises(errors.FailedPrecondition, match="has ended"):
        await lives.run("one", "cat", prompt=b"\n")
    assert "one" in lives


async def test_a_second_start_is_refused_and_disturbs_nothing() -> None:
    lives = await begun("cat")
    with pytest.raises(errors.FailedPrecondition, match="started already"):
        await lives.run("one", "cat", prompt=b"\n")
    assert lives["one"].is_running
    await lives.shutdown("one")


@pytest.mark.parametrize("command", [["no-such-program"], ["false"], ["sh", "-c", "read line; exit 4"]])
async def test_a_start_that_fails_leaves_nothing(command: list[str]) -> None:
    with pytest.raises(errors.FailedPrecondition, match="sandbox one"):
        await begun(*command)
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    with pytest.raises(errors.FailedPrecondition):
        await lives.run("one", *command, prompt=b"\n")
    assert list(lives) == []


async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    lives = Lives()
    life = lives.add(SANDBOX, CreateOptions())
    starting = later(lives.run("one", "sh", "-c", "read line; exec sleep 1000", prompt=b"\n"))
    async with asyncio.timeout(10):
        while life.process is None:  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.wait({starting})
    assert life.process.returncode is not None
    assert "one" not in lives


async def test_a_shutdown_answers_who_waits() -> None:
    lives = Lives()
    waiting = later(lives.add(SANDBOX, CreateOptions()).wait())
    await asyncio.sleep(0)
    lives.forget("one")
    lives.forget("one")
    assert (await waiting).exit_status == 255


@pytest.mark.parametrize(
    "options",
    [
        CreateOptions(rootfs=(Mount(type="bind", source="/"),)),
        CreateOptions(netns_path="/run/netns/x"),
        CreateOptions(annotations={"a": "b"}),
        CreateOptions(options=TypedAny(type_url="x", value=b"")),
    ],
)
def test_options_are_followed_or_refused(options: CreateOptions) -> None:
    lives = Lives()
    with pytest.raises(errors.InvalidArgument, match="does not follow"):
        lives.add(SANDBOX, options)
    assert len(lives) == 0
    lives.add(SANDBOX, options, takes=("rootfs", "netns_path", "annotations", "x"))


def test_an_id_is_checked_and_there_once() -> None:
    lives = Lives()
    lives.add(SANDBOX, CreateOptions())
    with pytest.raises(errors.AlreadyExists):
        lives.add(SANDBOX, CreateOptions())
    with pytest.raises(errors.InvalidArgument):
        lives.add(Sandbox(id="../x", sandboxer="", runtime=Runtime(name="")), CreateOptions())


def test_a_life_of_before_can_be_taken_up() -> None:
    life, at = Lives().add(SANDBOX, CreateOptions()), datetime(2026, 1, 1, tzinfo=UTC)
    assert life.begin(7, at=at, address="ttrpc+unix:///x", version=3).created_at == at
    life.end(-9, at=at)
    life.end(0)
    status = life.status()
    assert (status.exited_at, status.exit_status, status.address, status.version) == (at, 137, "ttrpc+unix:///x", 3)
    with pytest.raises(errors.FailedPrecondition):
        life.require_running()
