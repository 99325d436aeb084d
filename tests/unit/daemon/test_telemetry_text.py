"""The text of metrics, read by Prometheus' own parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse

from atoll.daemon.telemetry_text import BOUNDS_S, Family, Histogram, render


def test_a_family_is_read_as_it_was_written() -> None:
    values = {("a", 'with "quotes" \\ and\nlines'): 3.0, ("b", ""): 0.25}
    family = Family(name="x_total", kind="counter", help="two\nlines", keys=("one", "two"), values=values)
    (read,) = parse(render([family]).decode())
    assert (read.type, read.documentation) == ("counter", "two\nlines")
    assert {(one.labels["one"], one.labels["two"]): one.value for one in read.samples} == values


def test_what_has_no_value_is_left_out() -> None:
    family = Family(name="x", kind="gauge", help="nothing", values={})
    assert render([family]).strip() == b""


@given(st.lists(st.floats(min_value=0, max_value=1000), min_size=1))
def test_a_histogram_counts_each_value_in_every_bucket_that_has_it(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    text = render(
        [Family(name="x_seconds", kind="histogram", help="of time", keys=("of",), values={("it",): histogram})]
    )
    (read,) = parse(text.decode())
    samples = {one.labels.get("le", one.name.rpartition("_")[2]): one.value for one in read.samples}
    for bound in BOUNDS_S:
        assert samples[f"{bound:g}"] == sum(value <= bound for value in values)
    assert samples["+Inf"] == samples["count"] == len(values)
    assert samples["sum"] == pytest.approx(sum(values))
