"""How far a pull or an import is."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Phase(enum.StrEnum):
    """What happens to a layer, in this order; PRESENT where nothing need happen, UPLOADING in a push alone."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    UNPACKING = "unpacking"
    PRESENT = "present"
    UPLOADING = "uploading"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One layer's state: `done` of `total` bytes of the (compressed) blob in this phase."""

    digest: str
    phase: Phase
    done: int
    total: int


OnProgress = Callable[[Progress], None]
"""Called on the event loop; must not block."""

Report = Callable[[str, Phase, int, int], None]


def ignore(digest: str, phase: Phase, done: int, total: int) -> None:
    """The report of an operation that nobody watches."""
