"""What the engine holds of a pod and of a container while it lives.

pod:        (record + ledger entries) ──run──> READY ──exit or stop──> NOTREADY ──remove──> gone
                               └─ failed run: undone and gone, or UNKNOWN with debts
container:  CREATED ──start──> RUNNING ──exit──> EXITED ──remove──> gone
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

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
    """One pod. Its `lock` orders the operations that change it; reading needs none."""

    sandbox: Sandbox
    config: PodConfig
    name: str
    handler_name: str
    handler: RuntimeHandler
    state: State = State.UNKNOWN
    reason: str = ""
    instance: ControllerInstance | None = None
    attachment: Attachment | None = None
    netns_path: str = ""
    shim: Shim | None = None
    ended: Latch[ExitStatus] = field(default_factory=Latch[ExitStatus])
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    containers: dict[str, Container] = field(default_factory=dict[str, Container])

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
