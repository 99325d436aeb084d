"""Which capabilities a container gets.

Source: capabilities(7); the CRI's Capability message (`ALL`, names with or without `CAP_`).
"""

from __future__ import annotations

from collections.abc import Iterable

from atoll import errors
from atoll.linux.host import CAPABILITIES
from atoll.oci import spec
from atoll.oci.config import Capability

ALL = "ALL"
# What an ordinary container may do: own and change files, change its ids, bind low ports, ping, chroot.
DEFAULT = frozenset(
    (
        "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
        "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
        "CAP_AUDIT_WRITE",
    )
)  # fmt: skip
_KNOWN = frozenset(CAPABILITIES)


def resolve(asked: Capability | None, *, privileged: bool, available: frozenset[str]) -> spec.Capabilities:
    """The capability sets of a container: `ALL` first, added or dropped, then the names one by one.

    `ALL` and a privileged container get all that the daemon itself has (`available`). Ambient ones are granted
    in every set. Raises `InvalidArgument` for an unknown name, `FailedPrecondition` for one the daemon lacks.
    """
    wanted = asked or Capability()
    add, drop = _names(wanted.add_capabilities, "add"), _names(wanted.drop_capabilities, "drop")
    ambient = _names(wanted.add_ambient_capabilities, "add_ambient")
    granted = set(DEFAULT & available)
    if privileged or ALL in add:
        granted = set(available)
    if ALL in drop and not privileged:
        granted = set[str]()
    named = (add | ambient) - {ALL}
    if missing := sorted(named - available):
        raise errors.FailedPrecondition(f"capabilities: {', '.join(missing)}: the daemon itself lacks it")
    granted |= named
    if ALL in ambient:
        ambient = frozenset(granted)
    if not privileged:
        granted -= drop
    ordered = _ordered(granted)
    kept = _ordered(ambient & granted)
    return spec.Capabilities(bounding=ordered, effective=ordered, permitted=ordered, inheritable=kept, ambient=kept)


def _names(names: Iterable[str], field: str) -> frozenset[str]:
    found: set[str] = set()
    for name in names:
        upper = name.upper()
        full = upper if upper == ALL or upper.startswith("CAP_") else f"CAP_{upper}"
        if full != ALL and full not in _KNOWN:
            raise errors.InvalidArgument(f"capabilities.{field}_capabilities: {name[:60]!r} is no capability")
        found.add(full)
    return frozenset(found)


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    chosen = set(names)
    return tuple(name for name in CAPABILITIES if name in chosen)
