"""Bandwidth annotations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.network import bandwidth
from atoll.network.model import Bandwidth


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("1k", 1000),
        ("10M", 10_000_000),
        ("1.5G", 1_500_000_000),
        (".5M", 500_000),
        ("1Ki", 1024),
        ("1E-3", None),
        ("1e6", 1_000_000),
        ("2E3", 2000),
        ("1000.1", 1001),
        ("5000000m", 5000),
        ("1P", 10**15),
        ("1Pi", None),
        ("1E", None),
        ("999", None),
        ("-1M", None),
        ("ten", None),
        ("", None),
        ("10 M", None),
        ("1e99", None),
    ],
)
def test_quantities_from_1k_to_1p(text: str, bits: int | None) -> None:
    asked = {"kubernetes.io/ingress-bandwidth": text}
    if bits is None:
        with pytest.raises(errors.InvalidArgument, match="ingress-bandwidth"):
            bandwidth.from_annotations(asked)
    else:
        assert bandwidth.from_annotations(asked) == Bandwidth(ingress_rate_bits=bits)


def test_both_directions_or_none() -> None:
    assert bandwidth.from_annotations({"other": "1M"}) is None
    assert bandwidth.from_annotations({bandwidth.EGRESS: "2M", bandwidth.INGRESS: "1M"}) == Bandwidth(
        ingress_rate_bits=1_000_000, egress_rate_bits=2_000_000
    )


@given(st.text(max_size=20))
def test_any_text_is_a_limit_or_invalid(text: str) -> None:
    try:
        limit = bandwidth.from_annotations({bandwidth.EGRESS: text})
    except errors.InvalidArgument:
        return
    assert limit is not None
    assert bandwidth.LEAST_BITS <= limit.egress_rate_bits <= bandwidth.MOST_BITS
