"""Which operation a process is ready for: the whole table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from atoll.shim import rules
from atoll.shim.rules import Phase

ALLOWED: list[tuple[Callable[[Phase], bool], set[Phase]]] = [
    (rules.can_start, {Phase.CREATED}),
    (rules.can_exec, {Phase.CREATED, Phase.RUNNING}),
    (rules.can_pause, {Phase.RUNNING}),
    (rules.can_resume, {Phase.PAUSED}),
    (rules.can_checkpoint, {Phase.RUNNING, Phase.PAUSED}),
    (rules.can_update, {Phase.CREATED, Phase.RUNNING, Phase.PAUSED}),
    (rules.can_delete, {Phase.CREATED, Phase.STOPPED}),
]


@pytest.mark.parametrize(("rule", "allowed"), ALLOWED)
def test_each_rule_allows_exactly_its_phases(rule: Callable[[Phase], bool], allowed: set[Phase]) -> None:
    assert {phase for phase in Phase if rule(phase)} == allowed
