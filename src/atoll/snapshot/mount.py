"""One mount, as a value: what to pass to mount(2), decided here and done by the shim."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount to be made at `target`; a relative `target` is below the root file system, empty is the root itself.

    `options` are as in fstab(5): flags (`ro`, `rbind`) and data (`lowerdir=...`) together.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()
