"""Pools: what is read back, how failures slow a pool down, and the ends of processes seen without a wait."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atoll.container.config import ContainerConfig, ContainerMetadata
from atoll.database import Database, quarantined
from atoll.engine import pool_store
from atoll.engine.pool import LAST_PAUSE_S, Pool, Pulse
from atoll.engine.pool_store import GOING, MemberRecord, PoolRecord, PoolSpec, PoolStore
from atoll.oci.config import ImageSpec, KeyValue
from atoll.sandbox.config import PodConfig

SPEC = PoolSpec(
    pod=PodConfig(labels={"a": "b"}),
    container=ContainerConfig(
        metadata=ContainerMetadata(name="main"),
        image=ImageSpec(image="atoll/busybox"),
        envs=(KeyValue(key="A", value=b"\xff\x00"),),
    ),
)
RECORD = PoolRecord(name="p", size=2, generation=1, spec=SPEC, hits=3, misses=1, created_ns=5)


async def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "state.db", (pool_store.SCHEMA,))
    store = PoolStore(db)
    await store.put(RECORD)
    booting = MemberRecord(pod_name="p-1_n_u_0", pool="p", generation=1)
    ready = MemberRecord(pod_name="p-2_n_u_0", pool="p", generation=1, pod_id="pod", container_id="c")
    await store.enter(booting)
    await store.enter(ready)
    assert await store.load() == ([RECORD], [booting, ready])
    await db.commit(store.plan_claim(ready))
    await store.count_miss("p")
    await store.resize("p", GOING)
    (found,), members = await store.load()
    assert (found.hits, found.misses, found.size, members) == (4, 2, GOING, [booting])
    await store.strike(booting.pod_name)
    await store.delete("p")
    assert await store.load() == ([], [])
    await db.close()


async def test_a_damaged_pool_is_kept_aside(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "state.db", (pool_store.SCHEMA,))
    store = PoolStore(db)
    await store.put(RECORD)
    await db.write(lambda connection: connection.execute("UPDATE pools SET spec = '[]'"))
    assert await store.load() == ([], [])
    assert [one.key for one in await db.read(quarantined)] == ["p"]
    await db.close()


def test_a_pool_that_fails_slows_down_up_to_a_bound() -> None:
    pool = Pool(record=RECORD)
    pauses = [pool.pause_s]
    for _ in range(12):
        pool.failed("why")
        pauses.append(pool.pause_s)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1], pool.error) == (0.0, LAST_PAUSE_S, "why")
    pool.succeeded()
    assert (pool.pause_s, pool.error) == (0.0, "")


def test_what_is_booting_is_not_made_twice() -> None:
    pool = Pool(record=RECORD, booting=1)
    assert pool.lacks == 1
    pool.record = PoolRecord(name="p", size=GOING, generation=1, spec=SPEC, hits=0, misses=0, created_ns=5)
    assert (pool.lacks, pool.is_going) == (0, True)


def test_a_pulse_ends_with_the_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pulse = Pulse((process.pid,))
    assert pulse.beats()
    process.communicate(b"\n")
    assert not pulse.beats()
    pulse.close()
    pulse.close()
    assert not pulse.beats()


def test_there_is_no_pulse_of_a_process_that_has_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ProcessLookupError):
        Pulse((process.pid,))
