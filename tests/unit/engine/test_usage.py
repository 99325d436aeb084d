"""Rates from samples, sums of samples, and the words of shims."""

from __future__ import annotations

from atoll.api import containerd_cgroups_v1_pb2 as v1
from atoll.api import containerd_cgroups_v2_pb2 as v2
from atoll.engine import layers
from atoll.engine.usage import MAX_WINDOW_NS, Rate, decode, expanded, total
from atoll.linux.cgroup_usage import Memory, Usage
from atoll.sandbox.controller import TypedAny

S = 1_000_000_000


def test_a_rate_is_over_the_time_since_the_sample_before() -> None:
    rate = Rate()
    assert rate.add(10 * S, 5 * S) is None
    assert rate.add(20 * S, 10 * S) == S // 2
    assert rate.add(30 * S, 10 * S) == 0


def test_samples_close_to_each_other_are_told_over_a_longer_time() -> None:
    rate = Rate()
    rate.add(10 * S, 0)
    assert rate.add(10 * S + S // 2, S) is None
    assert rate.add(12 * S, 2 * S) == S
    assert rate.add(12 * S + 1, 3 * S) == 3 * S * S // (2 * S + 1)


def test_what_was_started_just_now_has_a_rate_at_once() -> None:
    assert Rate(5 * S).add(7 * S, S) == S // 2


def test_an_old_sample_is_no_news() -> None:
    rate = Rate(1 * S)
    assert rate.add(2 * S + MAX_WINDOW_NS, S) is None
    assert rate.add(4 * S + MAX_WINDOW_NS, 2 * S) == S // 2


def test_time_that_went_back_begins_anew() -> None:
    rate = Rate()
    rate.add(10 * S, 10 * S)
    assert rate.add(20 * S, 1 * S) is None
    assert rate.add(30 * S, 2 * S) == S // 10


def memory(usage: int, swap: int | None = None) -> Memory:
    return Memory(
        usage=usage, working_set=usage, rss=usage, limit=5, page_faults=1, major_page_faults=2, swap=swap, swap_limit=9
    )


def test_samples_add_up_without_their_limits() -> None:
    found = total([Usage(cpu_ns=1, memory=memory(10, 3)), Usage(cpu_ns=2, memory=memory(20)), Usage()])
    assert found is not None
    assert (found.cpu_ns, found.memory) == (
        3,
        Memory(usage=30, working_set=30, rss=30, limit=None, page_faults=2, major_page_faults=4, swap=3),
    )
    assert total([]) is None
    assert total([Usage()]) == Usage()


def test_a_slice_named_alone_is_found_by_its_whole_path() -> None:
    assert expanded("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"
    assert expanded("a.slice") == "/a.slice"
    assert expanded("/x/a-b.slice") == "/x/a-b.slice"
    assert expanded("/pods/one") == "/pods/one"


def test_metrics_of_shims_are_understood_in_both_versions() -> None:
    new = v2.Metrics()
    new.cpu.usage_usec, new.memory.usage, new.memory.inactive_file, new.memory.anon = 7, 100, 40, 50
    new.memory.usage_limit, new.memory.pgfault = (1 << 64) - 1, 3
    found = decode(TypedAny(type_url="io.containerd.cgroups.v2.Metrics", value=new.SerializeToString()))
    assert found.cpu_ns == 7000
    assert found.memory is not None
    assert (found.memory.working_set, found.memory.rss, found.memory.limit) == (60, 50, None)
    old = v1.Metrics()
    old.cpu.usage.total, old.memory.usage.usage, old.memory.total_rss = 7, 100, 50
    old.memory.hierarchical_memory_limit = 500
    found = decode(TypedAny(type_url="io.containerd.cgroups.v1.Metrics", value=old.SerializeToString()))
    assert found.cpu_ns == 7
    assert found.memory is not None
    assert (found.memory.working_set, found.memory.available) == (100, 400)


def test_a_count_that_takes_long_is_made_less_often() -> None:
    assert layers.pause_after(layers.SMALL_S / 2) == layers.RECENT_S
    assert layers.pause_after(1.0) == 1.0 / layers.SHARE
    assert layers.pause_after(60.0) == layers.LONGEST_PAUSE_S
