"""Tokens work once, for a while, and there are never too many."""

from __future__ import annotations

import pytest

from atoll import errors
from atoll.streaming.tokens import Tokens


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_works_once() -> None:
    tokens: Tokens[str] = Tokens()
    token = tokens.issue("a")
    assert tokens.redeem(token) == "a"
    assert tokens.redeem(token) is None


def test_tokens_differ_and_fit_into_a_url() -> None:
    tokens: Tokens[int] = Tokens()
    issued = {tokens.issue(number) for number in range(500)}
    assert len(issued) == 500
    assert all(len(token) == 24 and token.replace("-", "").replace("_", "").isalnum() for token in issued)


def test_a_token_is_forgotten_after_its_time() -> None:
    clock = Clock()
    tokens: Tokens[str] = Tokens(lifetime_s=60, clock=clock)
    early = tokens.issue("a")
    clock.now += 30
    late = tokens.issue("b")
    clock.now += 30
    assert tokens.redeem(early) is None
    assert tokens.redeem(late) == "b"
    assert len(tokens) == 0


def test_too_many_are_refused_until_some_are_used_or_too_old() -> None:
    clock = Clock()
    tokens: Tokens[str] = Tokens(lifetime_s=60, limit=2, clock=clock)
    first = tokens.issue("a")
    tokens.issue("b")
    with pytest.raises(errors.ResourceExhausted, match="2 sessions wait"):
        tokens.issue("c")
    tokens.redeem(first)
    tokens.issue("c")
    clock.now += 61
    tokens.issue("d")
    assert len(tokens) == 1


@pytest.mark.parametrize("token", ["", "x", "é" * 10, "a" * 10_000, "\udc80"])
def test_no_text_is_a_token(token: str) -> None:
    tokens: Tokens[str] = Tokens()
    tokens.issue("a")
    assert tokens.redeem(token) is None
    assert len(tokens) == 1
