"""Ready namespaces: hit, miss, refill, restart, breakage; on the real kernel with the distribution's plugins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from atoll.concurrency import Blocking, TaskOwner, wait_all
from atoll.linux import netns
from atoll.network import pool
from atoll.network.model import Bandwidth, PortMapping
from atoll.network.service import Network
from tests.integration.conftest import Roots
from tests.integration.leaks import wait_until
from tests.integration.test_network import Host, free_port
from tests.integration.test_network import host as host  # noqa: PLC0414 - the fixture


async def until(done: Callable[[], bool]) -> None:
    assert await asyncio.to_thread(wait_until, done, within=20)


async def pooled(host: Host, size: int = 2) -> Network:
    """A network whose pool is full."""
    network = await host.network(pool_size=size, pool_networks=frozenset({f"{host.roots.prefix}net"}))
    await until(lambda: network.pool_stats.ready == size)
    return network


async def test_a_ready_namespace_is_taken_and_replaced(host: Host) -> None:
    network = await pooled(host)
    attachment = await network.attach(host.request(1))
    assert attachment.pooled
    assert attachment.sandbox_id == host.request(1).sandbox_id
    assert Path(attachment.netns_path).name == attachment.container_id
    assert netns.exists(Path(attachment.netns_path))
    assert attachment.ip in host.leases()
    assert not Path(host.request(1).netns_path).exists()
    await network.check(attachment)
    assert await network.attach(host.request(1)) == attachment
    await until(lambda: network.pool_stats.ready == 2)
    assert (network.pool_stats.hits, network.pool_stats.misses) == (1, 0)
    await network.detach(attachment)
    assert await network.detach(attachment) == ()
    assert not Path(attachment.netns_path).exists()
    assert len(host.leases()) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"ports": (PortMapping(host_port=free_port(), container_port=80),)},
        {"bandwidth": Bandwidth(ingress_rate_bits=1_000_000)},
        {"mac": "02:00:00:00:00:05"},
    ],
)
async def test_a_pod_with_wishes_of_its_own_gets_its_own(host: Host, changes: dict[str, object]) -> None:
    network = await pooled(host, size=1)
    attachment = await network.attach(host.request(1, **changes))
    assert not attachment.pooled
    assert (network.pool_stats.ready, network.pool_stats.hits) == (1, 0)
    await network.detach(attachment)


async def test_who_stands_in_a_namespace_of_his_own_is_attached_there(host: Host) -> None:
    network = await pooled(host, size=1)
    await network.isolate(host.request(1))
    attachment = await network.attach(host.request(1))
    assert not attachment.pooled
    assert attachment.netns_path == host.request(1).netns_path
    assert (network.pool_stats.ready, network.pool_stats.hits) == (1, 0)
    await network.detach(attachment)
    assert not Path(attachment.netns_path).exists()


async def test_an_empty_pool_is_a_miss_and_no_wait(host: Host) -> None:
    network = await pooled(host, size=1)
    first, second = await wait_all([network.attach(host.request(1)), network.attach(host.request(2))])
    assert (first.pooled, second.pooled) == (True, False)
    assert (network.pool_stats.hits, network.pool_stats.misses) == (1, 1)
    for attachment in (first, second):
        await network.detach(attachment)


async def test_a_network_not_marked_or_not_fit_has_no_pool(host: Host) -> None:
    network = await host.network(pool_size=2, pool_networks=frozenset({"another"}))
    attachment = await network.attach(host.request(1))
    assert not attachment.pooled
    await network.detach(attachment)
    path = host.roots.conf_dir / "10-test.conflist"
    said = json.loads(path.read_text())
    said["plugins"][0]["capabilities"] = {"io.kubernetes.cri.pod-annotations": True}
    path.write_text(json.dumps(said))
    network = await host.network(pool_networks=frozenset({f"{host.roots.prefix}net"}))
    attachment = await network.attach(host.request(1))
    assert not attachment.pooled
    assert network.pool_stats.ready == 0
    await network.detach(attachment)


async def test_a_broken_one_is_never_handed_out(host: Host) -> None:
    network = await pooled(host)
    for path in netns.pins(network.netns_folder):
        netns.remove(path)
        netns.create(path)  # the same name, another namespace
    attachment = await network.attach(host.request(1))
    assert not attachment.pooled
    assert network.pool_stats.broken == 2
    await until(lambda: network.pool_stats.ready == 2)
    await network.detach(attachment)
    await until(lambda: len(host.leases()) == 2)


async def test_another_configuration_makes_new_ones(host: Host) -> None:
    network = await pooled(host)
    path = host.roots.conf_dir / "10-test.conflist"
    said = json.loads(path.read_text())
    said["plugins"][0]["mtu"] = 1300
    path.write_text(json.dumps(said))
    attachment = await network.attach(host.request(1))
    assert not attachment.pooled
    await until(lambda: network.pool_stats.ready == 2)
    fresh = await network.attach(host.request(2))
    assert fresh.pooled
    assert fresh.networks[0].result.interfaces
    for one in (attachment, fresh):
        await network.detach(one)


class Restartable:
    """A host whose daemon ends without a word: its tasks are cancelled, nothing is drained."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots

    async def run(self, work: Callable[[Host], Awaitable[None]]) -> None:
        blocking = Blocking(4)
        async with TaskOwner("daemon") as owner:
            host = Host(self.roots, owner, blocking)
            await work(host)
        blocking.close()


async def test_a_restart_finds_what_stands_ready_and_releases_what_nobody_owns(roots: Roots) -> None:
    daemon = Restartable(roots)
    seen: dict[str, Any] = {}

    async def before(host: Host) -> None:
        host.use_bridge()
        network = await pooled(host, size=3)
        seen["mine"] = await network.attach(host.request(1))
        seen["lost"] = await network.attach(host.request(2))
        await until(lambda: network.pool_stats.ready == 3)
        seen["ready"] = sorted(path.name for path in (roots.root / "network" / "pool").glob("*.json"))

    async def after(host: Host) -> None:
        mine, lost = seen["mine"], seen["lost"]
        network = await host.network(
            (mine.sandbox_id,),
            pool_size=3,
            pool_networks=frozenset({f"{roots.prefix}net"}),
        )
        assert network.pool_stats.ready == 3
        await until(lambda: not Path(lost.netns_path).exists())
        await until(lambda: lost.ip not in host.leases())
        assert mine.ip in host.leases()
        assert await network.attach(host.request(1)) == mine
        await network.detach(host.request(1))  # by its request: the pool knows which namespace that was
        assert mine.ip not in host.leases()
        taken = await network.attach(host.request(3))
        assert f"{taken.container_id}.json" in seen["ready"]
        await network.detach(taken)
        assert await network.retire()
        assert host.leases() == set()

    await daemon.run(before)
    await daemon.run(after)


async def test_half_made_ones_of_a_crash_are_released(roots: Roots) -> None:
    daemon = Restartable(roots)

    async def before(host: Host) -> None:
        host.use_bridge()
        await pooled(host, size=1)
        (record,) = (roots.root / "network" / "pool").glob("*.json")
        said = json.loads(record.read_text())
        record.write_text(json.dumps({**said, "attachment": None}))

    async def after(host: Host) -> None:
        network = await host.network((), pool_size=0)
        await until(lambda: not netns.pins(network.netns_folder))
        await until(lambda: host.leases() == set())
        assert await network.retire()

    await daemon.run(before)
    await daemon.run(after)


async def test_a_pool_that_cannot_be_filled_backs_off_and_rests(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BACK_OFF_S", (0.01, 0.01))
    path = host.roots.conf_dir / "10-test.conflist"
    good = path.read_text()
    path.write_text(good.replace('"bridge",', '"no-such-plugin",', 1))
    network = await host.network(pool_size=1, pool_networks=frozenset({f"{host.roots.prefix}net"}))
    await until(lambda: "no-such-plugin" in network.pool_stats.last_error)
    await asyncio.sleep(0.2)
    assert network.pool_stats.ready == 0
    path.write_text(good)
    attachment = await network.attach(host.request(1))
    assert not attachment.pooled
    await until(lambda: network.pool_stats.ready == 1)
    assert network.pool_stats.last_error == ""
    await network.detach(attachment)


async def test_an_unknown_record_in_the_pools_folder_does_not_stop_the_start(host: Host) -> None:
    folder = host.roots.root / "network" / "pool"
    folder.mkdir(parents=True)
    (folder / "pool-torn.json").write_bytes(b"{")
    (folder / "pool-torn.tmp").write_bytes(b"")
    network = await pooled(host, size=1)
    await until(lambda: not (folder / "pool-torn.json").exists())
    assert not (folder / "pool-torn.tmp").exists()
    await network.drain_pool()
    assert host.leases() == set()
