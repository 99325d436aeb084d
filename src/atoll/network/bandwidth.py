"""Bandwidth limits as Kubernetes asks for them: two annotations that hold quantities of bits a second."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal

from atoll import errors
from atoll.network.model import Bandwidth

INGRESS = "kubernetes.io/ingress-bandwidth"
EGRESS = "kubernetes.io/egress-bandwidth"
LEAST_BITS = 10**3
MOST_BITS = 10**15
QUANTITY = re.compile(r"([+-]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30}))([numkMGTPE]?|[KMGTPE]i|[eE][+-]?[0-9]{1,2})")
DECIMAL = {suffix: Decimal(1000) ** power for power, suffix in enumerate(("n", "u", "m", "", *"kMGTPE"), -3)}
BINARY = {f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)}


def from_annotations(annotations: Mapping[str, str]) -> Bandwidth | None:
    """The limits that a pod's annotations ask for, None without any.

    Raises `InvalidArgument` for what is no quantity or is outside 1k to 1P.
    """
    ingress, egress = (_rate_bits(name, annotations[name]) if name in annotations else 0 for name in (INGRESS, EGRESS))
    return Bandwidth(ingress_rate_bits=ingress, egress_rate_bits=egress) if ingress or egress else None


def _rate_bits(name: str, text: str) -> int:
    found = QUANTITY.fullmatch(text)
    if found is None:
        raise errors.InvalidArgument(f"annotation {name}: {text[:80]!r} is not a quantity such as 10M")
    number, suffix = found.groups()
    factor = (DECIMAL | BINARY).get(suffix)
    value = Decimal(number) * (factor if factor is not None else Decimal(f"1{suffix}"))
    if not LEAST_BITS <= value <= MOST_BITS:
        raise errors.InvalidArgument(f"annotation {name}: {text[:80]!r} is not between 1k and 1P")
    return int(value.to_integral_value(ROUND_CEILING))
