"""Leases of pods against a real daemon: absolute, idle, renewed, kept over a restart, told with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

import atoll
from atoll import errors
from atoll.api import atoll_leases_v1_pb2 as pb
from atoll.api import containerd_services_events_v1_pb2 as events
from atoll.api import containerd_types_pb2 as types
from atoll.client import wire
from tests.integration.conftest import Daemon

pytestmark = pytest.mark.shared_daemon

IMAGE = "atoll/busybox"
PATIENCE_S = 30.0
SUBSCRIBE = wire.Method("containerd.services.events.v1.Events", "Subscribe", events.SubscribeRequest, types.Envelope)


async def gone(client: atoll.Client, pod: atoll.Pod) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(one.id == pod.id for one in await client.pods()):  # noqa: ASYNC110 - the daemon changes it
            await asyncio.sleep(0.05)


async def test_a_pod_past_its_time_is_removed_with_an_event_and_a_reason(client: atoll.Client, daemon: Daemon) -> None:
    connection = wire.Wire(daemon.roots.socket)
    told = connection.stream(SUBSCRIBE, events.SubscribeRequest(filters=["topic==/atoll/leases/expired"]))
    first = asyncio.ensure_future(anext(told))  # noqa: TID251 - it must wait beside the pod
    pod = await client.run_pod("short", network="none", ttl=1.0)
    await pod.run(IMAGE, ["sleep", "1000"])
    assert 0 < (await pod.lease.status()).left_s <= 1.0
    await gone(client, pod)
    envelope = await asyncio.wait_for(first, PATIENCE_S)
    expired = pb.Expired.FromString(envelope.event.value)
    assert (expired.pod_id, expired.pod_name) == (pod.id, "short")
    assert "time to live of 1 s" in expired.reason
    status = await pod.lease.status()
    assert status.reason == expired.reason
    assert status.ended_at is not None
    with pytest.raises(errors.NotFound):
        await pod.lease.renew(ttl=5)
    await told.aclose()
    await connection.aclose()


async def test_use_keeps_a_pod_and_idleness_ends_it(client: atoll.Client) -> None:
    pod = await client.run_pod(network="none", idle=1.0)
    container = await pod.run(IMAGE, ["sleep", "1000"])
    result = await container.exec(["sleep", "2.5"])
    assert result.exit_code == 0
    logs = container.logs(follow=True)
    reading = asyncio.ensure_future(anext(logs, None))  # noqa: TID251 - it must wait beside the pod
    await asyncio.sleep(2)
    assert (await pod.lease.status()).in_use
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    for _ in range(3):
        await container.files.write("/file", b"data")
        await asyncio.sleep(0.5)
    assert (await pod.status()).id == pod.id
    await gone(client, pod)
    assert "nobody used it" in (await pod.lease.status()).reason


async def test_a_lease_is_renewed_changed_given_and_taken_away(client: atoll.Client) -> None:
    async with await client.run_pod(network="none", ttl=2) as pod:
        renewed = await pod.lease.renew(ttl=500, idle=50)
        assert (renewed.ttl_s, renewed.idle_s) == (500, 50)
        assert 40 < renewed.left_s <= 50
        assert 400 < (await pod.lease.renew(idle=0)).left_s <= 500
        await pod.lease.end()
        await pod.lease.end()
        with pytest.raises(errors.NotFound, match="no lease"):
            await pod.lease.status()
        with pytest.raises(errors.InvalidArgument, match="needs a ttl or an idle time"):
            await pod.lease.renew()
        assert (await pod.lease.renew(ttl=100)).idle_s == 0
        assert [one.pod_id for one in await client.leases() if not one.reason] == [pod.id]
    assert pod.id not in {one.pod_id for one in await client.leases()}


@pytest.mark.parametrize("value", [-1.0, 0.01, float("nan"), float("inf")])
async def test_a_time_that_is_none_is_refused(client: atoll.Client, value: float) -> None:
    with pytest.raises(errors.InvalidArgument, match="ttl"):
        await client.run_pod(network="none", ttl=value)
    with pytest.raises(errors.InvalidArgument, match=r"io\.atoll\.lease/ttl"):
        await client.run_pod(network="none", annotations={"io.atoll.lease/ttl": str(value)})
    assert await client.pods() == ()


@pytest.mark.may_block(30)
async def test_leases_outlive_the_daemon(daemon: Daemon) -> None:
    async with atoll.connect(daemon.roots.socket, start=False) as client:
        soon = await client.run_pod("soon", network="none", ttl=3.0)
        late = await client.run_pod("late", network="none", ttl=600.0)
        left = (await late.lease.status()).left_s
    daemon.kill()
    begun = time.monotonic()
    daemon.start()
    async with atoll.connect(daemon.roots.socket, start=False) as client:
        again = client.pod_by_id(late.id)
        assert (await again.lease.status()).left_s <= left
        await gone(client, soon)
        assert time.monotonic() - begun < PATIENCE_S
        assert "time to live of 3 s" in (await client.pod_by_id(soon.id).lease.status()).reason
        await again.remove()


def test_the_sync_face_has_leases(daemon: Daemon) -> None:
    with atoll.connect_sync(daemon.roots.socket, start=False) as client, client.run_pod(network="none", ttl=90) as pod:
        assert pod.lease.renew(idle=30).idle_s == 30
        assert [one.pod_id for one in client.leases() if not one.reason] == [pod.id]
        pod.lease.end()
