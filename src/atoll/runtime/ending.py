"""The end of a shim that does not end by itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

from atoll import errors
from atoll.linux import process
from atoll.shim import records

KILL_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


async def kill_recorded(record_path: Path, shim_id: str, *, grace_s: float = 0) -> None:
    """SIGKILL the shim of a record, where exactly that process still lives, and wait for its end.

    One that was told to end has `grace_s` to do so by itself. Raises `DataLoss` for a record that cannot be read,
    `DeadlineExceeded` where the process survives.
    """
    record = records.read(record_path, records.ShimRecord)
    if record is None:
        return
    identity = process.ProcessId(pid=record.pid, start_ticks=record.start_ticks, boot_id=record.boot_id)
    pidfd = process.open_pidfd(identity)
    if pidfd is None:
        return
    try:
        if not grace_s or not await _has_ended(pidfd, grace_s):
            await kill(pidfd, shim_id)
    finally:
        os.close(pidfd)


async def kill(pidfd: int, shim_id: str) -> None:
    """SIGKILL a shim and wait for its end; fine where it has ended. The descriptor stays the caller's."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    log.debug("shim %s: still ran, killed", shim_id)
    if not await _has_ended(pidfd, KILL_TIMEOUT_S):
        raise errors.DeadlineExceeded(f"shim {shim_id}: did not end within {KILL_TIMEOUT_S:g} s of SIGKILL")


async def _has_ended(pidfd: int, within_s: float) -> bool:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), within_s)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True
