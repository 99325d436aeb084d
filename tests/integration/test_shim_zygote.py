"""The zygote and its client: real forks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.api import containerd_task_v3_pb2 as pb
from atoll.concurrency import TaskOwner, wait_all
from atoll.linux import process as processes
from atoll.runtime import ending
from atoll.runtime import zygote as zygotes
from atoll.runtime.zygote import ForkedShim, Zygote
from atoll.shim import records
from atoll.shim.records import BootstrapRecord, ShimRecord
from atoll.shim.request import ShimRequest
from atoll.ttrpc.client import Client
from tests.integration.conftest import Roots
from tests.integration.leaks import wait_until

TASK = "containerd.task.v3.Task"


@pytest.fixture(params=[1, 4])
def pods_per_shim(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
async def zygote(pods_per_shim: int) -> AsyncIterator[Zygote]:
    async with await Zygote.start(pods_per_shim=pods_per_shim) as zygote:
        yield zygote


def request(roots: Roots, name: str = "one") -> ShimRequest:
    bundle = roots.state / name
    bundle.mkdir(exist_ok=True)
    return ShimRequest(id=name, namespace="test", bundle=str(bundle), socket=str(roots.state / f"{name}.s"))


async def end(forked: ForkedShim, path: str) -> None:
    """End a shim, and wait for the process's end where it was its own."""
    async with await Client.connect(path) as client:
        await client.call(TASK, "Shutdown", pb.ShutdownRequest(), Empty)
        await asyncio.wait_for(client.closed, 10)
    assert not Path(path).exists()
    if forked.alone:
        await process_ended(forked)
    os.close(forked.pidfd)


async def process_ended(forked: ForkedShim) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(forked.pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        asyncio.get_running_loop().remove_reader(forked.pidfd)


def children(zygote: Zygote) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text().split()]


async def test_a_fork_listens_at_once_and_says_who_it_is(zygote: Zygote, roots: Roots, pods_per_shim: int) -> None:
    asked = request(roots)
    forked = await zygote.fork(asked)
    assert processes.is_alive(forked.identity)
    assert Path(asked.socket).stat().st_mode & 0o777 == 0o600
    async with await Client.connect(asked.socket) as client:
        answer = await client.call(TASK, "Connect", pb.ConnectRequest(), pb.ConnectResponse)
    assert answer.shim_pid == forked.pid
    record = records.read(Path(asked.bundle, records.SHIM), ShimRecord)
    assert record is not None
    assert (record.pid, record.start_ticks) == (forked.pid, forked.identity.start_ticks)
    assert record.alone is forked.alone is (pods_per_shim == 1)
    where = records.read(Path(asked.bundle, records.BOOTSTRAP), BootstrapRecord)
    assert where == BootstrapRecord(version=3, address=f"unix://{asked.socket}", protocol="ttrpc")
    assert os.getsid(forked.pid) == forked.pid
    assert Path(f"/proc/{forked.pid}/comm").read_text() == "atoll-shim\n"
    await end(forked, asked.socket)
    assert not Path(asked.socket).exists()


async def test_a_shim_has_no_descriptor_of_its_zygote(zygote: Zygote, roots: Roots) -> None:
    asked = request(roots)
    forked = await zygote.fork(asked)
    async with await Client.connect(asked.socket) as client:
        await client.call(TASK, "Connect", pb.ConnectRequest(), pb.ConnectResponse)
        targets = [os.readlink(f"/proc/{forked.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{forked.pid}/fd")]
        control = {os.readlink(f"/proc/{zygote.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{zygote.pid}/fd")}
    assert not [target for target in targets if target.startswith("socket:") and target in control]
    kept = [target for target in targets if not target.startswith("/memfd:crun")]  # what it executes
    assert len(kept) >= len(targets) - 1
    assert len(kept) <= (10 if forked.alone else 11)  # it hears of others
    await end(forked, asked.socket)


async def test_many_forks_at_once(zygote: Zygote, roots: Roots, pods_per_shim: int) -> None:
    asked = [request(roots, f"n{number}") for number in range(20)]
    forked = await wait_all([zygote.fork(each) for each in asked])
    assert len({shim.pid for shim in forked}) == 20 / pods_per_shim
    for shim, each in zip(forked, asked, strict=True):
        await end(shim, each.socket)


async def test_a_socket_in_use_is_refused(zygote: Zygote, roots: Roots) -> None:
    asked = request(roots)
    forked = await zygote.fork(asked)
    with pytest.raises(errors.AlreadyExists):
        await zygote.fork(asked)
    assert not os.get_inheritable(forked.pidfd)
    await end(forked, asked.socket)
    forked = await zygote.fork(asked)
    os.kill(forked.pid, signal.SIGKILL)
    await asyncio.sleep(0.1)
    assert Path(asked.socket).exists(), "a killed shim leaves its socket"
    os.close(forked.pidfd)
    await end(await zygote.fork(asked), asked.socket)


async def test_what_cannot_be_forked_is_refused(zygote: Zygote, roots: Roots) -> None:
    asked = request(roots)
    with pytest.raises(errors.Unimplemented, match="poet"):
        await zygote.fork(asked, role="poet")
    assert not Path(asked.socket).exists()
    far = ShimRequest(id="far", namespace="test", bundle=asked.bundle, socket=f"/run/{'x' * 120}")
    with pytest.raises(errors.InvalidArgument):
        await zygote.fork(far)
    await end(await zygote.fork(asked), asked.socket)


async def test_a_dead_zygote_is_replaced_and_its_shims_live(zygote: Zygote, roots: Roots) -> None:
    first, second = request(roots, "first"), request(roots, "second")
    forked = await zygote.fork(first)
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGKILL)
    await asyncio.sleep(0.1)
    other = await zygote.fork(second)
    assert processes.is_alive(forked.identity)
    await end(forked, first.socket)
    await end(other, second.socket)


async def test_a_killed_spare_is_replaced(zygote: Zygote, roots: Roots) -> None:
    await end(await zygote.fork(request(roots, "first")), request(roots, "first").socket)
    await asyncio.to_thread(wait_until, lambda: bool(children(zygote)))
    (spare,) = children(zygote)
    os.kill(spare, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: children(zygote) not in ([], [spare]))
    forked = await zygote.fork(request(roots, "second"))
    assert forked.pid != spare
    await end(forked, request(roots, "second").socket)


async def test_a_missing_bundle_is_named(zygote: Zygote, roots: Roots) -> None:
    asked = ShimRequest(id="x", namespace="test", bundle="/run/none", socket=str(roots.state / "x"))
    with pytest.raises(errors.NotFound, match="/run/none"):
        await zygote.fork(asked)
    assert not Path(asked.socket).exists()


async def test_a_relay_is_forked_too(zygote: Zygote, roots: Roots) -> None:
    asked = request(roots)
    forked = await zygote.fork(asked, role="relay")
    assert forked.alone
    async with await Client.connect(asked.socket) as client:
        await client.call("atoll.relay.v1.Relay", "Shutdown", pb.ShutdownRequest(now=True), Empty)
        await process_ended(forked)
    os.close(forked.pidfd)
    assert (Path(asked.bundle) / records.SHIM).exists()


async def test_a_zygote_that_dies_again_and_again_is_given_up(
    zygote: Zygote, roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygotes, "RESTARTS_LIMIT", 1)
    asked = request(roots)
    for _ in range(2):
        assert zygote.pid is not None
        os.kill(zygote.pid, signal.SIGKILL)
        await asyncio.sleep(0.1)
        if _ == 0:
            await end(await zygote.fork(asked), asked.socket)
    with pytest.raises(errors.Unavailable, match="1 times"):
        await zygote.fork(asked)


async def test_the_shim_of_a_caller_that_went_away_is_killed(zygote: Zygote, roots: Roots) -> None:
    asked = request(roots)
    async with TaskOwner("test") as tasks:
        call = tasks.spawn(zygote.fork(asked), name="fork")
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert not Path(asked.socket).exists()
    await end(await zygote.fork(request(roots, "two")), request(roots, "two").socket)
    with pytest.raises(errors.Unavailable):
        await Client.connect(asked.socket, timeout=1)


async def test_a_closed_zygote_forks_nothing(roots: Roots) -> None:
    zygote = await Zygote.start()
    await zygote.aclose()
    await zygote.aclose()
    with pytest.raises(errors.Unavailable):
        await zygote.fork(request(roots))


async def test_an_idle_shim_is_small(zygote: Zygote, roots: Roots) -> None:
    asked = request(roots)
    forked = await zygote.fork(asked)
    async with await Client.connect(asked.socket) as client:
        await client.call(TASK, "Connect", pb.ConnectRequest(), pb.ConnectResponse)
    lines = Path(f"/proc/{forked.pid}/smaps_rollup").read_text().splitlines()
    private_kb = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    await end(forked, asked.socket)
    assert private_kb < 6 << 10


@pytest.mark.parametrize("pods_per_shim", [2], indirect=True)
async def test_a_full_process_is_followed_by_the_next_and_room_is_used_again(zygote: Zygote, roots: Roots) -> None:
    names = ["a", "b", "c"]
    forked = {name: await zygote.fork(request(roots, name)) for name in names}
    assert forked["a"].pid == forked["b"].pid != forked["c"].pid
    await end(forked["a"], request(roots, "a").socket)
    await end(await zygote.fork(request(roots, "d")), request(roots, "d").socket)
    used = (forked["b"].pid, forked["c"].pid)
    # A process tells the zygote of an end behind its shim's last word, so the room is known soon, not at once.
    async with asyncio.timeout(10):
        last, again = "e", await zygote.fork(request(roots, "e"))
        while again.pid not in used:
            await end(again, request(roots, last).socket)
            last += "e"
            again = await zygote.fork(request(roots, last))
    for name, shim in (("b", forked["b"]), ("c", forked["c"]), (last, again)):
        await end(shim, request(roots, name).socket)
    assert await asyncio.to_thread(wait_until, lambda: len(children(zygote)) == 1), "one stays, ready"


@pytest.mark.parametrize("pods_per_shim", [4], indirect=True)
async def test_what_one_shim_does_does_not_end_another(zygote: Zygote, roots: Roots) -> None:
    first, second = request(roots, "first"), request(roots, "second")
    one, other = await zygote.fork(first), await zygote.fork(second)
    assert one.pid == other.pid
    gone = roots.state / "gone"
    gone.mkdir()
    (gone / "log").mkdir()  # its log cannot be opened
    broken = ShimRequest(id="gone", namespace="test", bundle=str(gone), socket=str(roots.state / "gone.s"))
    os.close((await zygote.fork(broken)).pidfd)
    with pytest.raises(errors.Unavailable):
        async with await Client.connect(broken.socket) as client:
            await client.call(TASK, "Connect", pb.ConnectRequest(), pb.ConnectResponse, timeout=5)
    await ending.end_shared(Path(first.socket), "first")
    assert not Path(first.socket).exists()
    async with await Client.connect(second.socket) as client:
        answer = await client.call(TASK, "Connect", pb.ConnectRequest(), pb.ConnectResponse)
    assert answer.shim_pid == one.pid
    assert " first ended" in Path(first.bundle, "log").read_text()
    assert " first " not in Path(second.bundle, "log").read_text()
    os.close(one.pidfd)
    await end(other, second.socket)


@pytest.mark.parametrize("pods_per_shim", [4], indirect=True)
async def test_a_process_that_is_shared_outlives_its_zygote_until_its_last_shim(zygote: Zygote, roots: Roots) -> None:
    first, second = request(roots, "first"), request(roots, "second")
    one, other = await zygote.fork(first), await zygote.fork(second)
    await zygote.aclose()
    await end(one, first.socket)
    async with await Client.connect(second.socket) as client:
        await client.call(TASK, "Connect", pb.ConnectRequest(), pb.ConnectResponse)
    async with await Client.connect(second.socket) as client:
        await client.call(TASK, "Shutdown", pb.ShutdownRequest(), Empty)
        await process_ended(other)
    os.close(other.pidfd)


@pytest.mark.parametrize("pods_per_shim", [4], indirect=True)
async def test_a_shared_process_that_hangs_is_told_of_and_not_killed(
    zygote: Zygote, roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "ASK_TIMEOUT_S", 0.2)
    asked = request(roots)
    forked = await zygote.fork(asked)
    async with await Client.connect(asked.socket) as client:
        await client.call(TASK, "Connect", pb.ConnectRequest(), pb.ConnectResponse)
    os.kill(forked.pid, signal.SIGSTOP)
    try:
        with pytest.raises(errors.Unavailable, match="shares its process"):
            await ending.end_recorded(Path(asked.bundle, records.SHIM), Path(asked.socket), asked.id)
    finally:
        os.kill(forked.pid, signal.SIGCONT)
    assert processes.is_alive(forked.identity)
    await ending.end_recorded(Path(asked.bundle, records.SHIM), Path(asked.socket), asked.id)
    await ending.end_recorded(Path(asked.bundle, records.SHIM), Path(asked.socket), asked.id)
    os.close(forked.pidfd)
