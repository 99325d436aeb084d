"""The live streams of a shim by their ids, and containerd's Streaming service over them.

One call is one stream (containerd.services.streaming.v1.Streaming/Stream): `StreamInit` names it, an empty message
acknowledges, then data flows in messages of at most 32 KiB. Who receives grants windows; who sends starts
with none and waits (containerd.types.transfer `Data`, `WindowUpdate`).
"""

from __future__ import annotations

from atoll import errors
from atoll.shim.stdio.hub import Hub
from atoll.shim.stdio.stdin import AttachedInput


class Streams:
    """Every live stream of a shim by its id."""

    def __init__(self) -> None:
        self._outputs: dict[str, Hub] = {}
        self._inputs: dict[str, AttachedInput] = {}

    def add_output(self, hub: Hub) -> None:
        """Enter an output; `AlreadyExists` where its id is taken."""
        self._check(hub.name)
        self._outputs[hub.name] = hub

    def add_input(self, attached: AttachedInput) -> None:
        """Enter an input; `AlreadyExists` where its id is taken."""
        self._check(attached.name)
        self._inputs[attached.name] = attached

    def remove(self, name: str) -> None:
        """Forget an id; clients of it read to their end. Idempotent."""
        self._outputs.pop(name, None)
        self._inputs.pop(name, None)

    def find(self, name: str) -> Hub | AttachedInput:
        """The stream `name`; `NotFound` where there is none."""
        stream = self._outputs.get(name) or self._inputs.get(name)
        if stream is None:
            raise errors.NotFound(f"stream {name!r}: no such stream in this shim")
        return stream

    def __len__(self) -> int:
        return len(self._outputs) + len(self._inputs)

    def _check(self, name: str) -> None:
        if name in self._outputs or name in self._inputs:
            raise errors.AlreadyExists(f"stream {name!r}: the id is in use")
