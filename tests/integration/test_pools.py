"""Pools against a real daemon: hits and misses, members that break, changed specs, restarts, what CRI clients see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
from collections.abc import AsyncIterator, Callable

import pytest

import atoll
from atoll import errors
from atoll.api import atoll_pools_v1_pb2 as pb
from atoll.client import wire
from atoll.client.pools import ACQUIRE, PoolStatus
from atoll.concurrency import wait_all
from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
PATIENCE_S = 30.0
SLEEP = atoll.ContainerOptions(image=IMAGE, command=["sleep", "1000"])
LONELY = atoll.PodOptions(network="none")


@pytest.fixture
async def client(client: atoll.Client) -> AsyncIterator[atoll.Client]:
    yield client
    for one in await client.pools():
        await (await client.pool(one.name)).delete()
    for pod in await client.pods():
        await client.pod_by_id(pod.id).remove()


async def until(pool: atoll.Pool, wanted: Callable[[PoolStatus], bool]) -> PoolStatus:
    async with asyncio.timeout(PATIENCE_S):
        while not wanted(status := await pool.status()):  # noqa: ASYNC110 - the daemon changes it
            await asyncio.sleep(0.02)
    return status


async def members(client: atoll.Client, name: str) -> set[str]:
    return {pod.id for pod in await client.pods(labels={"io.atoll.pool": name})}


async def test_hits_misses_refill_and_the_story_of_each(client: atoll.Client) -> None:
    pool = await client.pool("web", SLEEP, size=2, pod=LONELY)
    await until(pool, lambda status: status.ready == 2)
    async with pool.acquire() as pod:
        assert (pod.start.rung, [phase.name for phase in pod.start.phases]) == (atoll.Rung.POOL, ["commit"])
        assert (await pod.container.exec(["hostname"])).text.strip() == pod.name
        assert (await pod.lease.status()).idle_s == 60
        assert [one.id for one in await client.pods()] == [pod.id]
        status = await until(pool, lambda status: status.ready == 2)
        assert (status.hits, status.misses, status.hit_rate) == (1, 0, 1.0)
    assert await client.pods() == ()
    await pool.drain()
    assert await members(client, "web") == set()
    async with pool.acquire() as pod:
        assert pod.start.rung is atoll.Rung.COLD
        assert {"run", "create", "start"} <= {phase.operation for phase in pod.start.phases}
        assert (await pod.container.exec(["true"])).exit_code == 0
    status = await pool.status()
    assert (status.hits, status.misses, status.hit_rate, status.ready) == (1, 1, 0.5, 0)


async def test_nothing_is_handed_out_before_it_is_ready(client: atoll.Client) -> None:
    slow = atoll.ContainerOptions(image=IMAGE, command=["sh", "-c", "sleep 0.5; touch /up; exec sleep 1000"])
    is_up = ["test", "-e", "/up"]
    pool = await client.pool("slow", slow, size=2, pod=LONELY, ready=is_up)
    cold = await pool.take()
    assert cold.start.rung is atoll.Rung.COLD
    assert await cold.container.files.exists("/up")
    await until(pool, lambda status: status.ready == 2)
    hits = await wait_all([pool.take() for _ in range(2)])
    assert [one.start.rung for one in hits] == [atoll.Rung.POOL] * 2
    assert all([await one.container.files.exists("/up") for one in hits])
    same = await client.pool("slow", slow, size=2, pod=LONELY, ready=is_up)
    assert (await same.status()).generation == 1
    await client.pool("slow", slow, pod=LONELY, ready=["sh", "-c", "echo not yet >&2; exit 3"], ready_within=0.5)
    status = await until(pool, lambda status: "not yet" in status.error)
    assert (status.generation, status.ready) == (2, 0)
    with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.5 s.*ended with 3: not yet"):
        await pool.take()


async def test_one_call_starts_a_pod_with_its_container(client: atoll.Client) -> None:
    async with await client.run(SLEEP, pod=atoll.PodOptions(name="one", network="none"), idle=300) as pod:
        assert (pod.name, pod.start.rung, (await pod.lease.status()).idle_s) == ("one", atoll.Rung.COLD, 300)
        assert {"run", "create", "start"} <= {phase.operation for phase in pod.start.phases}
        assert (await pod.container.exec(["hostname"])).text == "one\n"
        assert [one.id for one in await pod.containers()] == [pod.container.id]
        with pytest.raises(errors.AlreadyExists, match="one"):
            await client.run(SLEEP, pod=atoll.PodOptions(name="one", network="none"))
    for command in (["/none"], ["sh", "-c", "exit 1"]):
        wrong = atoll.ContainerOptions(image=IMAGE, command=command)
        with pytest.raises(errors.AtollError):
            await client.run(wrong, pod=LONELY, ready=["true"])
    assert await client.pods() == ()


async def test_many_at_once_never_get_the_same_pod(client: atoll.Client) -> None:
    pool = await client.pool("many", SLEEP, size=3, pod=LONELY)
    await until(pool, lambda status: status.ready == 3)
    taken = await wait_all([pool.take(idle=300) for _ in range(6)])
    assert len({pod.id for pod in taken}) == 6
    rungs = [pod.start.rung for pod in taken]
    assert rungs.count(atoll.Rung.POOL) >= 3
    results = await wait_all([pod.container.exec(["true"]) for pod in taken])
    assert [one.exit_code for one in results] == [0] * 6


async def test_a_broken_member_is_never_handed_out_and_is_replaced(client: atoll.Client) -> None:
    pool = await client.pool("frail", SLEEP, size=1, pod=LONELY)
    await until(pool, lambda status: status.ready == 1)
    broken = await members(client, "frail")
    (inside,) = await client.pod_by_id(next(iter(broken))).containers()
    told = await client.container_by_id(inside).status(verbose=True)
    pidfd = os.pidfd_open(json.loads(told.info["info"])["pid"])
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 0.4)[0]  # dead, whoever has heard of it
    os.close(pidfd)
    async with pool.acquire() as pod:
        assert pod.id not in broken
        assert (await pod.container.exec(["true"])).exit_code == 0
    await until(pool, lambda status: status.ready == 1)
    assert not broken & await members(client, "frail")


async def test_a_spec_change_replaces_the_members_and_an_equal_spec_changes_nothing(client: atoll.Client) -> None:
    pool = await client.pool("spec", SLEEP, size=1, pod=LONELY)
    await until(pool, lambda status: status.ready == 1)
    before = await members(client, "spec")
    assert (await (await client.pool("spec", SLEEP, pod=LONELY)).status()).generation == 1
    assert await members(client, "spec") == before
    other = atoll.ContainerOptions(image=IMAGE, command=["sleep", "1000"], env={"NEW": "yes"})
    await client.pool("spec", other, pod=LONELY)
    async with pool.acquire() as pod:
        assert pod.id not in before
        assert (await pod.container.exec(["sh", "-c", "echo $NEW"])).text == "yes\n"
    status = await until(pool, lambda status: status.ready == 1)
    assert (status.generation, status.size) == (2, 1)
    assert not before & await members(client, "spec")


async def test_a_spec_that_cannot_run_is_told_and_leaves_nothing(client: atoll.Client) -> None:
    pool = await client.pool("bad", atoll.ContainerOptions(image=IMAGE, command=["nonesuch"]), size=2, pod=LONELY)
    status = await until(pool, lambda status: bool(status.error))
    assert "nonesuch" in status.error
    assert status.ready == 0
    with pytest.raises(errors.AtollError, match="nonesuch"):
        await pool.take()
    await client.pool("bad", SLEEP, pod=LONELY)
    assert (await until(pool, lambda status: status.ready == 2)).error == ""


async def test_no_member_comes_after_the_deletion(client: atoll.Client) -> None:
    """Although one was about to be made, and gave way to callers who wait for their pods."""

    async def come_and_go(name: str) -> None:
        pool = await client.pool(name, SLEEP, size=3, pod=LONELY)
        await pool.delete()
        for _ in range(15):
            assert await members(client, name) == set()
            await asyncio.sleep(0.02)

    async def run() -> None:
        for _ in range(3):
            await (await client.run_pod(network="none")).remove()

    await wait_all([*(come_and_go(f"brief{number}") for number in range(4)), run(), run()])


@pytest.mark.parametrize(
    ("name", "size", "said"), [("Bad_Name", 1, "pool name"), ("ok", -1, "pool size"), ("ok", 5000, "pool size")]
)
async def test_what_can_be_no_pool_is_refused(client: atoll.Client, name: str, size: int, said: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=said):
        await client.pool(name, SLEEP, pod=LONELY, size=size)
    with pytest.raises(errors.InvalidArgument, match="ports of the host"):
        await client.pool("ports", SLEEP, pod=atoll.PodOptions(ports={18099: 80}))
    with pytest.raises(errors.NotFound, match="there is none"):
        await client.pool("nonesuch")
    assert await client.pools() == ()


async def test_cri_clients_see_no_member_until_it_is_handed_out(client: atoll.Client) -> None:
    pool = await client.pool("hidden", SLEEP, size=1, pod=LONELY)
    await until(pool, lambda status: status.ready == 1)
    assert await client.pods() == ()  # by ListPodSandbox and ListContainers
    assert await client.containers() == ()
    (member,) = await members(client, "hidden")
    assert len(await client.pod_by_id(member).containers()) == 1
    pod = await pool.take()
    assert [one.id for one in await client.pods()] == [pod.id] == [member]
    assert [one.id for one in await client.containers()] == [pod.container.id]


async def test_what_a_dead_client_was_given_goes_with_its_lease(client: atoll.Client, daemon: Daemon) -> None:
    pool = await client.pool("lease", SLEEP, size=1, pod=LONELY)
    await until(pool, lambda status: status.ready == 1)
    async with atoll.connect(daemon.roots.socket, start=False) as other:
        pod = await (await other.pool("lease")).take(ttl=1)
    connection = wire.Wire(daemon.roots.socket)
    for within in (0.0002, 0.001, 0.002):  # callers that go away before the answer comes, or just as it does
        asked = pb.AcquireRequest(name="lease", ttl_s=1)
        with contextlib.suppress(errors.DeadlineExceeded):
            await connection.call(ACQUIRE, asked, timeout_s=within)
    await connection.aclose()
    async with asyncio.timeout(PATIENCE_S):
        while await client.pods():  # noqa: ASYNC110 - the daemon changes it
            await asyncio.sleep(0.05)
    assert pod.id not in await members(client, "lease")
    await until(pool, lambda status: status.ready == 1)
    assert len(await members(client, "lease")) == 1


@pytest.mark.may_block(30)
async def test_pools_outlive_a_daemon_that_is_killed_and_what_was_half_made_is_removed(daemon: Daemon) -> None:
    async with atoll.connect(daemon.roots.socket, start=False) as client:
        pool = await client.pool("kept", SLEEP, size=2, pod=LONELY)
        await until(pool, lambda status: status.ready == 2)
        before = await members(client, "kept")
        taken = await pool.take()
        await client.pool("half", SLEEP, size=3, pod=LONELY)
    daemon.kill()
    daemon.start()
    async with atoll.connect(daemon.roots.socket, start=False) as client:
        pool, half = await client.pool("kept"), await client.pool("half")
        again = await pool.take()
        assert again.start.rung is atoll.Rung.POOL
        assert {taken.id, again.id} <= before | await members(client, "kept")
        assert (await client.pod_by_id(taken.id).lease.status()).idle_s == 600
        await until(half, lambda status: status.ready == 3)
        status = await until(pool, lambda status: status.ready == 2)
        assert (status.hits, status.misses) == (2, 0)
        assert {pod.id for pod in await client.pods()} == {taken.id, again.id}
        async with asyncio.timeout(PATIENCE_S):
            while len(await members(client, "half")) != 3:  # noqa: ASYNC110 - the daemon changes it
                await asyncio.sleep(0.05)
        await pool.delete()
        await half.delete()
        for one in (taken, again):
            await client.pod_by_id(one.id).remove()


def test_the_sync_face_has_pools(daemon: Daemon) -> None:
    with atoll.connect_sync(daemon.roots.socket, start=False) as client:
        pool = client.pool("sync", SLEEP, size=0, pod=LONELY)
        with pool.acquire() as pod:
            assert pod.start.rung is atoll.Rung.COLD
            assert pod.container.exec(["true"]).exit_code == 0
        assert [one.name for one in client.pools()] == ["sync"]
        pool.delete()
