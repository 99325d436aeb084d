"""`atoll serve` is read without the whole command line's grammar where it names places only."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.cli import serving


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in serving.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_line_that_names_places() -> None:
    assert serving.plain(["serve"]) == serving.Asked()
    line = ["serve", "--root", "/r", "--state", "/s", "--socket", "x.sock", "--config", "c.toml"]
    places = serving.Asked(root=Path("/r"), state=Path("/s"), socket=Path("x.sock"), config=Path("c.toml"))
    assert serving.plain(line) == places


@pytest.mark.parametrize(
    "line",
    [
        ["ps"],
        ["serve", "--help"],
        ["serve", "--root"],
        ["serve", "--root=/r"],
        ["serve", "--root", ""],
        ["serve", "--root", "--state"],
        ["serve", "--root", "/r", "--root", "/r"],
        ["serve", "--log-level", "debug"],
        ["--socket", "/s", "serve"],
    ],
)
def test_everything_else_is_left_to_the_grammar(line: list[str]) -> None:
    assert serving.plain(line) is None


def test_so_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_CONFIG", "/etc/other.toml")
    assert serving.plain(["serve"]) is None
