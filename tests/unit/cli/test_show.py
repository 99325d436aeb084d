"""What people read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from atoll.cli import show
from atoll.cli.work import by_table
from atoll.client import ContainerState, ContainerStatus

NOW = datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (200_000, "2d")],
)
def test_age(seconds: int, text: str) -> None:
    assert show.age(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_size(count: int, text: str) -> None:
    assert show.size(count) == text


def container(state: ContainerState, code: int = 0, reason: str = "") -> ContainerStatus:
    return ContainerStatus(
        id="c", pod_id="p", name="n", image="i", state=state, created_at=None, exit_code=code, reason=reason
    )


def test_condition() -> None:
    assert show.condition(container(ContainerState.RUNNING)) == "up"
    assert show.condition(container(ContainerState.RUNNING, reason="Paused")) == "up (paused)"
    assert show.condition(container(ContainerState.EXITED, 137, "OOMKilled")).startswith("exited (137, OOMKilled)")
    assert show.condition(container(ContainerState.EXITED, 1, "Error")).startswith("exited (1)")
    assert show.condition(container(ContainerState.UNKNOWN, reason="shim gone")) == "unknown: shim gone"


def test_changed_keys_are_one_row_a_table() -> None:
    registry = '[images.registries."a.b:1"]'
    keys = ("log_level", "root", f"{registry} plain_http", f"{registry} skip_verify")
    assert by_table(keys) == [("-", "log_level, root"), (registry, "plain_http, skip_verify")]


def test_values_become_json() -> None:
    assert show.plain({"a": (NOW, ContainerState.RUNNING, b"x", None, 1.5)}) == {
        "a": ["2026-01-31T00:00:00+00:00", "running", "x", None, 1.5]
    }
    assert show.info({"a": '{"b": 1}', "c": "text"}) == {"a": {"b": 1}, "c": "text"}


def test_names_in_a_table_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("NAME",), [("[red]x[/red]",)])
    assert capsys.readouterr().out == "NAME\n[red]x[/red]\n"
