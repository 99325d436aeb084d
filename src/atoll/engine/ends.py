"""The ends of pods, noted in their records: each is told once as an event, whichever daemon sees it first.

The note follows the event. A daemon that is killed between the two leaves an end that the next one tells again; nobody
who was connected to the first can know that it was told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging

import msgspec

from atoll import errors
from atoll.engine.parts import Parts
from atoll.sandbox.controller import ExitStatus, Sandbox, TypedAny
from atoll.unreadable import UNREADABLE

EXTENSION = "io.atoll.sandbox.ended"
"""JSON of an `ExitStatus`."""

log = logging.getLogger(__name__)


def noted(sandbox: Sandbox) -> ExitStatus | None:
    """How the pod ended, where an earlier daemon has told of it."""
    found = sandbox.extensions.get(EXTENSION)
    if found is None:
        return None
    try:
        return msgspec.json.decode(found.value, type=ExitStatus)
    except UNREADABLE as error:
        log.warning("pod %s: how it ended cannot be read: %s", sandbox.id[:13], error)
        return None


def note(parts: Parts, sandbox: Sandbox, end: ExitStatus) -> None:
    """Write it down, behind whatever goes on now."""
    with contextlib.suppress(errors.Unavailable):  # the daemon is closing: the next one tells it again
        parts.owner.spawn(_note(parts, sandbox, end), name=f"pod/{sandbox.id}/note end")


async def _note(parts: Parts, sandbox: Sandbox, end: ExitStatus) -> None:
    told = TypedAny(type_url=EXTENSION, value=msgspec.json.encode(end))
    record = dataclasses.replace(sandbox, extensions={EXTENSION: told})
    try:
        await parts.sandboxes.update(record, (f"extensions.{EXTENSION}",))
    except errors.NotFound:
        pass  # removed meanwhile
    except errors.AtollError as error:
        log.warning("pod %s: that its end was told is not on disk: %s", sandbox.id[:13], error)
