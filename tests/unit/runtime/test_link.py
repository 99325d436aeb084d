"""One shim through every connection to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.linux import process
from atoll.runtime.link import RECONNECTS_LIMIT, Link
from atoll.runtime.shim import LaunchRequest
from atoll.shim import records
from atoll.testing.faultpoints import Fault, FaultPlan
from tests.unit.runtime.shims import LocalLauncher, request


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.aclose()


@pytest.fixture
def asked(tmp_path: Path) -> LaunchRequest:
    made = request(tmp_path)
    made.bundle.create(None)
    return made


async def connected(launcher: LocalLauncher, asked: LaunchRequest) -> Link:
    link = Link(launcher, asked, await launcher.launch(asked))
    await link.ask(lambda shim: shim.sandbox.ping(asked.id))  # so that the server has accepted it
    return link


async def test_a_lost_connection_is_made_again(launcher: LocalLauncher, asked: LaunchRequest) -> None:
    link = await connected(launcher, asked)
    before = await link.shim()
    await launcher.hang_up("one")
    await launcher.serve(asked)
    await link.ask(lambda shim: shim.sandbox.ping("one"))
    assert await link.shim() is not before
    assert not link.is_gone
    await link.aclose()


async def test_a_question_under_way_is_asked_again(launcher: LocalLauncher, asked: LaunchRequest) -> None:
    link = await connected(launcher, asked)
    attempts: list[int] = []

    async def question(shim: object) -> int:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            await launcher.hang_up("one")
            await launcher.serve(asked)
            (await link.shim()).client.close()
            raise errors.Unavailable("ttrpc: closed")
        return 7

    assert await link.ask(question) == 7
    assert len(attempts) == 2
    await link.aclose()


async def test_a_shim_that_nobody_serves_is_gone_for_good(launcher: LocalLauncher, asked: LaunchRequest) -> None:
    link = await connected(launcher, asked)
    await launcher.hang_up("one")
    for _ in range(2):
        with pytest.raises(errors.Unavailable, match="its shim is gone"):
            await link.ask(lambda shim: shim.sandbox.ping("one"))
    assert link.is_gone
    assert launcher.faults.calls["launcher.reconnect"] == 2


async def test_a_shim_that_does_not_answer_is_not_gone(launcher: LocalLauncher, asked: LaunchRequest) -> None:
    launcher.faults = FaultPlan(Fault(point="launcher.reconnect", error=errors.DeadlineExceeded("busy")))
    await launcher.serve(asked)
    link = Link(launcher, asked)
    with pytest.raises(errors.DeadlineExceeded):
        await link.shim()
    assert not link.is_gone


async def test_a_shim_that_hangs_up_again_and_again_is_an_error(launcher: LocalLauncher, asked: LaunchRequest) -> None:
    link = await connected(launcher, asked)
    for _ in range(RECONNECTS_LIMIT):
        (await link.shim()).client.close()
        await link.shim()
    (await link.shim()).client.close()
    with pytest.raises(errors.ResourceExhausted):
        await link.shim()
    await link.aclose()


async def test_what_was_let_go_does_not_connect_again(launcher: LocalLauncher, asked: LaunchRequest) -> None:
    link = await connected(launcher, asked)
    await link.aclose()
    await link.aclose()
    with pytest.raises(errors.Unavailable, match="let go"):
        await link.shim()
    assert not link.is_gone


async def test_a_shim_that_cannot_be_asked_now_is_not_gone(launcher: LocalLauncher, asked: LaunchRequest) -> None:
    launcher.faults = FaultPlan(Fault(point="launcher.reconnect", error=errors.ResourceExhausted("no descriptors")))
    await launcher.serve(asked)
    link = Link(launcher, asked)
    with pytest.raises(errors.ResourceExhausted):
        await link.shim()
    assert not link.is_gone


@pytest.mark.parametrize("recorded", ["nobody", "alive", "dead"])
async def test_a_shim_whose_address_cannot_be_read_is_gone_only_where_its_process_is(
    launcher: LocalLauncher, asked: LaunchRequest, recorded: str
) -> None:
    own = process.identify(os.getpid())
    assert own is not None
    if recorded != "nobody":
        ticks = own.start_ticks + (recorded == "dead")
        record = records.ShimRecord(pid=own.pid, start_ticks=ticks, boot_id=own.boot_id, version="")
        records.write(asked.bundle.path / records.SHIM, record)
    launcher.faults = FaultPlan(Fault(point="launcher.reconnect", error=errors.DataLoss("torn")))
    link = Link(launcher, asked)
    with pytest.raises(errors.Unavailable if recorded == "dead" else errors.DataLoss):
        await link.shim()
    assert link.is_gone == (recorded == "dead")
