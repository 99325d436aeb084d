"""Taking back limits that were refused half way."""

from __future__ import annotations

from atoll.engine.container_limits import undoing
from atoll.oci import spec


def test_what_was_set_is_set_again_and_what_was_not_is_lifted() -> None:
    old = spec.Resources(memory=spec.Memory(limit=64), cpu=spec.CPU(shares=200, cpus="0"), unified={"a": "1"})
    new = spec.Resources(
        memory=spec.Memory(limit=32, swap=32),
        cpu=spec.CPU(shares=600, quota=5000, period=10_000, cpus="0-1"),
        pids=spec.Pids(limit=5),
        devices=(spec.DeviceRule(allow=True, access="rwm"),),
    )
    assert undoing(old, new) == spec.Resources(
        memory=spec.Memory(limit=64, swap=-1),
        cpu=spec.CPU(shares=200, quota=-1, period=100_000, cpus="0"),
        pids=spec.Pids(limit=-1),
        unified={"a": "1"},
    )


def test_what_neither_sets_is_left_alone() -> None:
    old = spec.Resources(memory=spec.Memory(limit=64))
    assert undoing(old, old) == old
    assert undoing(spec.Resources(), spec.Resources(cpu=spec.CPU(quota=1))).cpu == spec.CPU(quota=-1)
