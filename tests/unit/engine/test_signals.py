"""Stop signals by name, number and the CRI's enum."""

from __future__ import annotations

import signal

import pytest

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.engine.signals import enum_name, number, resolve


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("term", signal.SIGTERM),
        (" 15 ", 15),
        ("SIGRTMIN", signal.SIGRTMIN),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-2", signal.SIGRTMAX - 2),
        ("SIGRTMINPLUS1", signal.SIGRTMIN + 1),
        ("SIGRTMAXMINUS14", signal.SIGRTMAX - 14),
    ],
)
def test_a_signal_is_known_by_any_of_its_names(name: str, expected: int) -> None:
    assert number(name) == expected


@pytest.mark.parametrize("name", ["", "0", "65", "-1", "SIGNOTHING", "SIGRTMIN+x", "SIGRTMAX+5", "9 9"])
def test_what_is_no_signal_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="there is no such signal"):
        number(name)


def test_every_signal_of_the_cri_is_one_of_the_kernel() -> None:
    numbers = {name: number(name) for name, value in cri.Signal.items() if value}
    assert numbers["SIGUSR1"] == signal.SIGUSR1
    assert all(1 <= value <= signal.SIGRTMAX for value in numbers.values())


def test_the_request_wins_over_the_image_and_the_image_over_sigterm() -> None:
    assert resolve(cri.SIGUSR1, "SIGINT") == signal.SIGUSR1
    assert resolve(cri.RUNTIME_DEFAULT, "SIGINT") == signal.SIGINT
    assert resolve(cri.RUNTIME_DEFAULT, "") == signal.SIGTERM


def test_an_unknown_enum_value_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="4711"):
        enum_name(4711)
