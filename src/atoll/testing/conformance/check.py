"""What a check is, and the words it is written with."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from atoll import errors

T = TypeVar("T")
TrialT = TypeVar("TrialT")


class Broken(AssertionError):
    """A rule does not hold: what was looked at, what was expected of it, what came."""

    def __init__(self, what: str, expected: object, got: object) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}")
        self.what = what
        self.expected = str(expected)
        self.got = str(got)


class NotApplicable(Exception):
    """The subject lacks what a check needs, or the contract leaves it free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[TrialT]):
    """One rule, tried.

    `rules` are numbers of docs/sandbox-contract.md, `source` is where the rule comes from. A `destructive` check kills,
    restarts or floods; one that is `alone` runs beside no other. `within_s` bounds it, None is the run's own bound.
    """

    name: str
    claim: str
    source: str
    rules: tuple[str, ...]
    run: Callable[[TrialT], Coroutine[None, None, None]] = field(repr=False)
    destructive: bool = False
    alone: bool = False
    within_s: float | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def origin(self) -> str:
        """Rules and source as one text."""
        return ", ".join((*self.rules, self.source) if self.source else self.rules)


def check(
    run: Callable[[TrialT], Coroutine[None, None, None]],
    *rules: str,
    source: str = "",
    destructive: bool = False,
    alone: bool = False,
    within_s: float | None = None,
) -> Check[TrialT]:
    """A check with the name of its function and the first line of its docstring as its claim."""
    claim = (inspect.getdoc(run) or "").partition("\n")[0].rstrip(".")
    return Check(
        name=run.__name__,
        claim=claim,
        source=source,
        rules=rules,
        run=run,
        destructive=destructive,
        alone=alone,
        within_s=within_s,
    )


def equal(what: str, expected: object, got: object) -> None:
    """`Broken` unless both are equal."""
    if expected != got:
        raise Broken(what, repr(expected), repr(got))


def true(what: str, expected: str, holds: bool, got: object) -> None:
    """`Broken` unless it holds; `expected` is in words."""
    if not holds:
        raise Broken(what, expected, repr(got))


def told(error: BaseException) -> str:
    """An error as reports show it."""
    return f"{type(error).__name__}: {error}"


async def refuses(what: str, work: Awaitable[object], *kinds: type[errors.AtollError]) -> errors.AtollError:
    """The error that `work` raises, which must be of one of `kinds`."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    try:
        got = await work
    except kinds as error:
        return error
    except (Broken, NotApplicable):
        raise
    except Exception as error:
        raise Broken(what, expected, told(error)) from error
    raise Broken(what, expected, f"success: {got!r}")
