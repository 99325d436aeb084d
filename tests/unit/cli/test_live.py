"""What `stats` makes of two looks, and which events a filter lets through."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from atoll import errors
from atoll.cli.copying import Place, require
from atoll.cli.forwarding import parse
from atoll.cli.live import Filter, rows
from atoll.client.control import ContainerUsage, Event, PodUsage


def pod(at_s: float, cpu_s: float, name: str = "web") -> PodUsage:
    inside = ContainerUsage(
        id=f"c-{name}", name="main", cpu_s=cpu_s, memory_bytes=1, memory_limit_bytes=0, disk_bytes=2
    )
    return PodUsage(
        id=f"p-{name}", name=name, at_ns=int(at_s * 1e9), cpu_s=cpu_s, memory_bytes=1, processes=3,
        received_bytes=4, sent_bytes=5, containers=(inside,),
    )  # fmt: skip


def test_cpu_is_what_was_used_between_two_looks() -> None:
    assert [row.cpu_percent for row in rows([pod(10, 1)], [pod(12, 2)], [])] == [50.0]
    assert [row.cpu_percent for row in rows([], [pod(12, 2)], [])] == [0.0]
    assert [row.cpu_percent for row in rows([pod(12, 2)], [pod(12, 2)], [])] == [0.0]


def test_rows_are_of_what_was_chosen_in_order() -> None:
    now = [pod(1, 0, "b"), pod(1, 0, "a"), pod(1, 0, "c")]
    assert [row.pod for row in rows([], now, [])] == ["a", "b", "c"]
    assert [row.pod for row in rows([], now, ["p-b", "c-c"])] == ["b", "c"]
    assert rows([], now, ["a"])[:] == []


def event(kind: str, container: str = "") -> Event:
    at = datetime.now(UTC)
    name = "main" if container else ""
    return Event(type=kind, pod_id="p1234", pod_name="web", container_id=container, container_name=name, at=at)


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ([], [True, True]),
        (["type=started"], [True, False]),
        (["type=started", "type=stopped"], [True, True]),
        (["pod=web"], [True, True]),
        (["pod=p12"], [True, True]),
        (["pod=other"], [False, False]),
        (["container=main"], [False, True]),
        (["container=c9", "type=stopped"], [False, True]),
    ],
)
def test_filters(words: list[str], fits: list[bool]) -> None:
    wanted = Filter.parse(words)
    assert [wanted.fits(event("started")), wanted.fits(event("stopped", "c99"))] == fits


@pytest.mark.parametrize("word", ["web", "name=web", "type=exploded"])
def test_what_is_no_filter_is_refused(word: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="filter"):
        Filter.parse([word])


@pytest.mark.parametrize(("text", "ports"), [("8080:80", (8080, 80)), (":80", (0, 80)), ("80", (80, 80))])
def test_ports_to_forward(text: str, ports: tuple[int, int]) -> None:
    assert parse(text) == ports


@pytest.mark.parametrize("text", ["", "a", "80:", "1:0", "70000:1", "1:2:3"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="port"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "container", "path"),
    [
        ("web:/etc", "web", "/etc"),
        ("web/main:/etc", "web/main", "/etc"),
        ("web:", "web", "/"),
        ("/a:b", "", "/a:b"),
        ("./a:b", "", "./a:b"),
        ("-", "", "-"),
        ("plain", "", "plain"),
    ],
)
def test_sides_of_a_copy(text: str, container: str, path: str) -> None:
    assert (Place.parse(text).container, Place.parse(text).path) == (container, path)


@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("x:/a", "y:/b"), ("-", "-")])
def test_a_copy_has_one_side_in_a_container(source: str, target: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="one side"):
        require(Place.parse(source), Place.parse(target))
