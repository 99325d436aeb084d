"""Who uses a pod now: what counts against its idle time. An exec, an attach, a followed log, files, a forwarded port.

Whoever serves such a call holds `using` for as long as it lasts; leases listen.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator


class Uses:
    """Counts the uses of each pod, by its ID."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._taps: list[Callable[[str], None]] = []

    def tap(self, told: Callable[[str], None]) -> None:
        """Have `told` called with a pod's ID when a use of it begins and when one ends. It must not raise."""
        self._taps.append(told)

    def is_used(self, pod_id: str) -> bool:
        return pod_id in self._counts

    def begin(self, pod_id: str) -> Callable[[], None]:
        """Begin a use of the pod; what is given ends it, however often it is called."""
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._counts[pod_id] -= 1
                if not self._counts[pod_id]:
                    del self._counts[pod_id]
                self._tell(pod_id)

        self._counts[pod_id] += 1
        self._tell(pod_id)
        return end

    @contextlib.contextmanager
    def using(self, pod_id: str) -> Generator[None]:
        """The pod is used for as long as the block lasts."""
        end = self.begin(pod_id)
        try:
            yield
        finally:
            end()

    def _tell(self, pod_id: str) -> None:
        for told in self._taps:
            told(pod_id)
