"""The end of a shim that does not end by itself.

A shim whose process is its own is killed. One that shares its process is asked over its socket to drop everything,
which is as good as a kill: where nobody listens any more, nothing of it lives. Its process is never killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.linux import process
from atoll.shim import records
from atoll.shim.request import HOST_SERVICE
from atoll.ttrpc.client import Client

KILL_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


async def end_recorded(record_path: Path, socket: Path, shim_id: str) -> None:
    """End the shim of a record, where it still lives, and wait for its end.

    One whose record cannot be read is asked to end. Raises `DeadlineExceeded` where its own process survives,
    `Unavailable` where a process that it shares with others does not answer.
    """
    record = records.last(record_path, records.ShimRecord)
    if record is None or not record.alone:
        await end_shared(socket, shim_id)
    else:
        await kill_recorded(record_path, shim_id)


async def end_shared(socket: Path, shim_id: str) -> None:
    """Let a process drop a shim and nothing else; fine where nobody listens. Raises `Unavailable` without an answer."""
    try:
        client = await Client.connect(str(socket), timeout=ASK_TIMEOUT_S)
    except errors.Unavailable:
        return
    except errors.DeadlineExceeded as error:
        raise _silent(shim_id, socket) from error
    async with client:
        try:
            await client.call(HOST_SERVICE, "End", Empty(), Empty, timeout=ASK_TIMEOUT_S)
            await asyncio.wait_for(client.closed, ASK_TIMEOUT_S)
        except errors.Unavailable:
            pass  # it hung up: it was ending
        except (errors.DeadlineExceeded, TimeoutError) as error:
            raise _silent(shim_id, socket) from error


def _silent(shim_id: str, socket: Path) -> errors.Unavailable:
    return errors.Unavailable(
        f"shim {shim_id}: does not answer on {socket}; it shares its process with other pods, so that is not killed; "
        "try again, or kill the process named in its shim.json to end all of them"
    )


async def kill_recorded(record_path: Path, shim_id: str, *, grace_s: float = 0) -> None:
    """SIGKILL the shim of a record, where exactly that process still lives, and wait for its end.

    For a process that serves nobody else. One that was told to end has `grace_s` to do so by itself. Raises `DataLoss`
    for a record that cannot be read, `DeadlineExceeded` where the process survives.
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


async def undo(pidfd: int, socket: Path, shim_id: str, *, alone: bool) -> None:
    """End a shim that was just forked and that nobody wants any more; its socket goes with it."""
    if alone:
        await kill(pidfd, shim_id)
    else:
        await end_shared(socket, shim_id)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket)
