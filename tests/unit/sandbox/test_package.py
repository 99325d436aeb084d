"""What `import atoll.sandbox` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import atoll.sandbox
from atoll.sandbox import controller

HEAVY = ("grpc", "sqlite3", "google.protobuf", "rich", "typer")


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import atoll.sandbox.controller", set[str]()),
        ("from atoll.sandbox import Controller, State", set[str]()),
        ("import atoll.sandbox.service", {"google.protobuf"}),
        ("from atoll.sandbox import Lives", {"google.protobuf"}),
        ("from atoll.sandbox import serve", {"google.protobuf", "grpc"}),
    ],
)
def test_each_name_loads_no_more_than_it_needs(code: str, heavy: set[str]) -> None:
    said = f"{code}; import sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == heavy


def test_every_name_of_the_contract_is_there() -> None:
    for name in controller.__all__:
        assert getattr(atoll.sandbox, name) is getattr(controller, name)
    assert callable(atoll.sandbox.serve)
    assert callable(atoll.sandbox.run)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_such"):
        atoll.sandbox.nothing_such  # noqa: B018
