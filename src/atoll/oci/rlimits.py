"""Resource limits of processes, which the CRI has no field for: an annotation asks for them.

    io.atoll.container/rlimits: nofile=1024:4096,core=0,memlock=unlimited

On a container, or on a pod for all of its containers that do not say otherwise. A name is that of getrlimit(2) without
`RLIMIT_`; a value is soft and hard, or both in one. Source: getrlimit(2).
"""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping

from atoll import errors
from atoll.linux.host import HostFacts
from atoll.oci import spec

ANNOTATION = "io.atoll.container/rlimits"
UNLIMITED = (1 << 64) - 1
_NAMES = {name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_")}
TYPES = frozenset(name for name in dir(resource) if name.startswith("RLIMIT_"))
_LIMIT = re.compile(r"([a-z]+)=(\d{1,20}|unlimited)(?::(\d{1,20}|unlimited))?")


def of(container: Mapping[str, str], pod: Mapping[str, str], host: HostFacts) -> tuple[spec.Rlimit, ...]:
    """What the annotations of a container and its pod ask for.

    Raises `InvalidArgument` for what is no limit, `FailedPrecondition` for one above the daemon's own hard limit where
    it lacks CAP_SYS_RESOURCE.
    """
    text = container.get(ANNOTATION, pod.get(ANNOTATION, ""))
    found: dict[str, spec.Rlimit] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _LIMIT.fullmatch(part)
        if match is None or match[1] not in _NAMES:
            known = ", ".join(sorted(_NAMES))
            raise errors.InvalidArgument(
                f"annotation {ANNOTATION}: {part[:60]!r} is not like nofile=1024:4096 of {known}"
            )
        soft, hard = _value(match[2]), _value(match[3] or match[2])
        if soft > hard or hard > UNLIMITED:
            raise errors.InvalidArgument(
                f"annotation {ANNOTATION}: {part[:60]!r}: the soft limit is above the hard one"
            )
        _require_allowed(match[1], hard, host)
        found[match[1]] = spec.Rlimit(type=f"RLIMIT_{match[1].upper()}", soft=soft, hard=hard)
    return tuple(found.values())


def _value(text: str) -> int:
    return UNLIMITED if text == "unlimited" else int(text)


def _require_allowed(name: str, hard: int, host: HostFacts) -> None:
    own = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    own = UNLIMITED if own == resource.RLIM_INFINITY else own
    if hard > own and "CAP_SYS_RESOURCE" not in host.capabilities:
        raise errors.FailedPrecondition(
            f"annotation {ANNOTATION}: {name}={hard}: the daemon's own hard limit is {own}, and it lacks"
            " CAP_SYS_RESOURCE to raise it"
        )
