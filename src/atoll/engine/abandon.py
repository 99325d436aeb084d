"""Giving a sandbox up whose sandboxer is gone for good: somebody else's process, which held it and answers no more.

Only a person can know that. Until then every removal fails with the way out, or is owed and retried for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from atoll import errors
from atoll.engine import kinds
from atoll.engine.parts import Parts
from atoll.engine.pods import Pods
from atoll.engine.sandboxes import Sandboxes
from atoll.ledger.kind import Entry

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 5.0


async def abandon(parts: Parts, pods: Pods, sandboxes: Sandboxes, sandbox_id: str) -> tuple[str, ...]:
    """Cross a remote sandbox out without its sandboxer, then free the rest of it; what is still owed, in words.

    `sandbox_id` is a pod's or a hosted sandbox's ID, or the key that fsck shows. Raises `NotFound` for one that is
    not in the books, `FailedPrecondition` for one that this machine holds itself or whose sandboxer answers:
    those are removed as usual.
    """
    hosted = next((one for one in sandboxes.list() if sandbox_id in (one.record.id, one.key)), None)
    key = hosted.key if hosted is not None else sandbox_id
    entry = parts.ledger.find(kinds.SANDBOX, key)
    if entry is None and pods.find(key) is None:
        raise errors.NotFound(f"sandbox {sandbox_id[:80]!r}: is not in the books; `atoll fsck` shows what is owed")
    if entry is not None:
        await _require_lost(parts, entry)
        log.warning(
            "sandbox %s: is given up; what of it still runs at its sandboxer %r is nobody's now",
            key,
            entry.data.get("handler", ""),
        )
        await parts.ledger.strike(entry)
    if hosted is not None:
        with contextlib.suppress(errors.Unavailable):  # what is left is answered below
            await sandboxes.shutdown(hosted.record.namespace, hosted.record.id)
    await pods.remove(key)
    return tuple(str(debt) for debt in await parts.ledger.retry(key))


async def _require_lost(parts: Parts, entry: Entry) -> None:
    if not await kinds.is_elsewhere(parts.ledger, entry.key):
        raise errors.FailedPrecondition(f"sandbox {entry.key}: is held by this machine; remove it with `atoll rm -f`")
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            await parts.ledger.kinds[entry.kind].exists(entry)
    except (TimeoutError, errors.Unavailable, errors.DeadlineExceeded, errors.FailedPrecondition):
        return
    raise errors.FailedPrecondition(
        f"sandbox {entry.key}: its sandboxer {entry.data.get('handler', '')!r} answers; remove it with `atoll rm -f`"
    )
