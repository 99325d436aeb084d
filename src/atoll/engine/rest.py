"""Who has to let go of a container's own layer before its root file system is mounted for it, or taken away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Let = Callable[[str, str], Awaitable[None]]
"""Of the container of that ID, for that reason."""


class Rest:
    """Told before a container leaves its rest: those who use its layer meanwhile end that first."""

    def __init__(self) -> None:
        self._holders: list[Let] = []

    def on_end(self, let_go: Let) -> None:
        """Have `let_go` awaited, bounded, before a container is started or removed. It must not raise."""
        self._holders.append(let_go)

    async def end(self, container_id: str, why: str) -> None:
        """Return when nobody uses the layer."""
        for let_go in self._holders:
            await let_go(container_id, why)
