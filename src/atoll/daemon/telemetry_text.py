"""Metrics in Prometheus' text form, version 0.0.4: families of samples, and histograms that are cheap to add to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets: from a commit to a pull."""
Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]


@dataclass(slots=True)
class Histogram:
    """Durations in seconds: how many fell into each bucket, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its values by the values of `keys`. A histogram's are `Histogram`s, others' numbers."""

    name: str
    kind: Kind
    help: str
    keys: Labels = ()
    values: Mapping[Labels, float | Histogram]


def render(families: Iterable[Family]) -> bytes:
    """All of them; a family without a value is left out."""
    lines: list[str] = []
    for family in families:
        if not family.values:
            continue
        lines += (f"# HELP {family.name} {_help(family.help)}", f"# TYPE {family.name} {family.kind}")
        for labels, value in sorted(family.values.items(), key=lambda item: item[0]):
            pairs = tuple(zip(family.keys, labels, strict=True))
            if isinstance(value, Histogram):
                lines += _histogram(family.name, pairs, value)
            else:
                lines.append(f"{family.name}{_labels(pairs)} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def _histogram(name: str, pairs: tuple[tuple[str, str], ...], value: Histogram) -> Iterable[str]:
    below = 0
    for bound, count in zip((*(_number(one) for one in BOUNDS_S), "+Inf"), value.counts, strict=True):
        below += count
        yield f"{name}_bucket{_labels((*pairs, ('le', bound)))} {below}"
    yield f"{name}_sum{_labels(pairs)} {_number(value.total_s)}"
    yield f"{name}_count{_labels(pairs)} {below}"


def _labels(pairs: tuple[tuple[str, str], ...]) -> str:
    return "{" + ",".join(f'{key}="{_value(value)}"' for key, value in pairs) + "}" if pairs else ""


def _value(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
