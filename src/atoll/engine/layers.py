"""How much disk the writable layer of each container takes: counted behind the answers, told from memory.

Whoever asks has the layers counted that are due, and waits `SOON_S` for it at most: most layers are small and counted
by then, so that their sizes are of now; of a large one the last size is told, with its time, and it is counted less
often, so that counting it takes `SHARE` of the time at most, however often one asks. A layer whose container has
ended does not change any more and is counted once. Where nobody asks nothing is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from atoll import errors
from atoll.concurrency import Blocking, TaskOwner
from atoll.snapshot.snapshotter import Snapshotter
from atoll.snapshot.tree import Tree

SOON_S = 0.02
SHARE = 0.01
SMALL_S = 0.001
"""What takes less CPU time is counted whenever somebody asks, lists once in `RECENT_S`."""
RECENT_S = 0.1
LONGEST_PAUSE_S = 600.0
SLICE_S = 0.005
"""Small layers are counted together for so long before the thread is given back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSize:
    """What a layer took at `at_ns` since the epoch."""

    at_ns: int
    bytes: int
    inodes: int


@dataclass(slots=True, kw_only=True)
class _Layer:
    tree: Tree | None = None
    size: LayerSize | None = None
    due: float = 0.0
    is_final: bool = False


def pause_after(took_s: float) -> float:
    """How long a layer is not counted again whose count took so much CPU time."""
    return max(RECENT_S, min(took_s / SHARE, LONGEST_PAUSE_S)) if took_s > SMALL_S else RECENT_S


class Layers:
    """The sizes of layers, by the keys of their snapshots."""

    def __init__(self, snapshotter: Snapshotter, blocking: Blocking, owner: TaskOwner) -> None:
        self._snapshotter = snapshotter
        self._blocking = blocking
        self._owner = owner
        self._known: dict[str, _Layer] = {}
        self._pending: dict[str, bool] = {}
        self._counting: asyncio.Task[None] | None = None

    async def sizes(self, wanted: Sequence[tuple[str, bool]], *, fresh: bool = False) -> list[LayerSize | None]:
        """The size of each layer, None where it is not counted yet; each with whether its container has ended.

        Without `fresh` those will do that were counted within `RECENT_S`.
        """
        now = time.monotonic() + (RECENT_S if fresh else 0)
        for key, is_final in wanted:
            known = self._known.setdefault(key, _Layer())
            if not known.is_final and (known.due <= now or is_final):
                self._pending[key] = is_final
        if self._pending:
            if self._counting is None or self._counting.done():
                self._counting = self._owner.spawn(self._count(), name="layers/count")
            await asyncio.wait({self._counting}, timeout=SOON_S)
        return [self._known[key].size if key in self._known else None for key, _ in wanted]

    def forget(self, key: str) -> None:
        """Drop what is known of a layer that has gone; idempotent."""
        self._known.pop(key, None)
        self._pending.pop(key, None)

    async def _count(self) -> None:
        while self._pending:
            wanted, self._pending = self._pending, {}
            keys = list(wanted)
            while keys:
                for key, size, took_s in await self._blocking.run(self._count_some, keys):
                    known = self._known.get(key)
                    if size is None:
                        self.forget(key)
                    elif known is not None:
                        known.size = size
                        known.due = time.monotonic() + pause_after(took_s)
                        known.is_final = wanted[key]

    def _count_some(self, keys: list[str]) -> list[tuple[str, LayerSize | None, float]]:
        """Count the first of `keys`, which are taken off, for `SLICE_S`; blocks."""
        found: list[tuple[str, LayerSize | None, float]] = []
        begin = time.monotonic()
        while keys and time.monotonic() - begin < SLICE_S:
            key = keys.pop(0)
            at = time.thread_time()
            found.append((key, self._size(key), time.thread_time() - at))
        return found

    def _size(self, key: str) -> LayerSize | None:
        at_ns = time.time_ns()
        known = self._known.get(key)
        if known is None:
            return None
        try:
            known.tree = known.tree or Tree(self._snapshotter.fs(key))
            used = known.tree.count()
        except (errors.NotFound, errors.DataLoss):
            return None
        return LayerSize(at_ns=at_ns, bytes=used.bytes, inodes=used.inodes)
