"""What the engine holds of a pod and of a container while it lives.

pod:        (record + ledger entries) ──run──> READY ──exit or stop──> NOTREADY ──remove──> gone
                               └─ failed run: undone and gone, or UNKNOWN with debts
container:  CREATED ──start──> RUNNING ──exit──> EXITED ──remove──> gone
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from atoll import errors
from atoll.concurrency import Latch
from atoll.config import RuntimeHandler
from atoll.container.store import Container
from atoll.network.model import Attachment
from atoll.runtime.shim import Shim
from atoll.sandbox.codec import to_microseconds
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import ControllerInstance, ExitStatus, Sandbox, State


@dataclass(slots=True, kw_only=True, eq=False)
class Pod:
    """One pod. Its `lock` orders the operations that change it; reading needs none.

    Creations and starts of containers go beside each other, each `admitted`. An end of the pod says `closing` first,
    which refuses new ones, and `drained` waits for those under way.
    """

    sandbox: Sandbox
    config: PodConfig
    name: str
    handler_name: str
    handler: RuntimeHandler
    state: State = State.UNKNOWN
    reason: str = ""
    damage: str = ""
    """What of its record cannot be read; such a pod is served as UNKNOWN until it is removed."""
    is_unasked: bool = False
    """An earlier daemon's, whose sandboxer can be asked and has not answered yet: it may not know the pod yet."""
    instance: ControllerInstance | None = None
    attachment: Attachment | None = None
    netns_path: str = ""
    bundle: Path | None = None
    """The folder of its shim's records, which name its process."""
    shim: Shim | None = None
    ended: Latch[ExitStatus] = field(default_factory=Latch[ExitStatus])
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    containers: dict[str, Container] = field(default_factory=dict[str, Container])
    closing: bool = False
    _admitted: int = 0
    _left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.sandbox.id

    @property
    def created_at_ns(self) -> int:
        """As the record tells it, so that it is the same after a restart."""
        return to_microseconds(self.sandbox.created_at) * 1000

    @property
    def ip(self) -> str:
        return self.attachment.ip if self.attachment is not None and self.state is State.READY else ""

    def require_open(self, refused: str) -> None:
        """Raise `FailedPrecondition`, ending with what is `refused`, unless the pod is READY and not ending."""
        if self.closing:
            raise errors.FailedPrecondition(f"pod {self.id[:13]}: is being stopped, {refused}")
        if self.state is not State.READY:
            raise errors.FailedPrecondition(f"pod {self.id[:13]}: is not ready, {refused}")

    @contextlib.contextmanager
    def admitted(self, refused: str) -> Generator[None]:
        """A creation or a start in the pod; raises as `require_open`."""
        self.require_open(refused)
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1
            self._left.set()

    async def drained(self, within: float) -> bool:
        """Wait until nothing admitted is under way; False where that is not so within the seconds given."""
        try:
            async with asyncio.timeout(within):
                while self._admitted:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            return False
        return True
