"""No decoder of foreign bytes raises what it does not document; `make fuzz` looks longer, guided by coverage."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import ODD, inputs
from tests.fuzz.targets import TARGETS, Target

EXAMPLES = 60

each = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@each
def test_what_it_should_take_and_what_has_broken_others(target: Target) -> None:
    for data in (*target.seeds, *ODD, *(seed + odd for seed in target.seeds for odd in ODD)):
        target.decode(data)


@each
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_bytes_are_read_or_refused(target: Target, data: st.DataObject) -> None:
    target.decode(data.draw(inputs(target.seeds)))


def test_names_are_one_each() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
