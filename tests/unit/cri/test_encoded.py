"""Messages put together from encoded parts are what protobuf makes of the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.cri import encoded
from atoll.cri.metric_names import BASE_KEYS, DESCRIPTORS
from atoll.cri.metrics import Writer

ids = st.lists(st.text(max_size=300), max_size=20)


@given(ids)
def test_items_joined_are_the_list(names: list[str]) -> None:
    pods = [pb.PodSandbox(id=name, labels={"a": name}) for name in names]
    data = encoded.whole(encoded.field(1, pod.SerializeToString()) for pod in pods).SerializeToString()
    assert list(pb.ListPodSandboxResponse.FromString(data).items) == pods


@given(st.integers(0, 1 << 40))
def test_a_length_of_any_size(value: int) -> None:
    message = pb.UInt64Value(value=value)
    assert b"\x08" + encoded.varint(value) == (message.SerializeToString() or b"\x08\x00")


def test_a_stream_has_each_item_once_and_no_message_without_any() -> None:
    items = [encoded.field(1, pb.Container(id="x" * 400_000).SerializeToString()) for _ in range(7)]
    items.append(encoded.field(1, pb.Container(id="y" * 2 * encoded.MAX_BATCH_BYTES).SerializeToString()))
    messages = [pb.StreamContainersResponse.FromString(one.SerializeToString()) for one in encoded.batches(items)]
    assert [len(one.containers) for one in messages] == [2, 2, 2, 1, 1]
    assert list(encoded.batches([])) == []


def test_metrics_have_the_labels_of_their_descriptors() -> None:
    writer = Writer("/pod/c", "c1", "busybox")
    writer.add("container_memory_rss", 1 << 63)
    writer.add("container_memory_rss", None)
    writer.add("container_memory_failures_total", 0, "pgfault", "container")
    for _ in range(2):
        found = pb.ContainerMetrics.FromString(encoded.field(1, b"c1") + writer.take(2))
        if not found.metrics:
            break
        assert [one.name for one in found.metrics] == ["container_memory_rss", "container_memory_failures_total"]
        for one in found.metrics:
            assert len(one.label_values) == len(BASE_KEYS) + len(DESCRIPTORS[one.name].keys)
            assert one.HasField("value")
        assert [one.value.value for one in found.metrics] == [1 << 63, 0]
        assert [one.metric_type for one in found.metrics] == [pb.GAUGE, pb.COUNTER]


def test_no_label_is_one_that_a_kubelet_adds() -> None:
    for name, one in DESCRIPTORS.items():
        assert not {"namespace", "pod", "container"} & {*BASE_KEYS, *one.keys}, name
        assert len({*BASE_KEYS, *one.keys}) == len(BASE_KEYS) + len(one.keys), name
        assert one.help, name
