"""Plugins that outlive the daemon which executed them: a late ADD must not undo the DEL of the next daemon."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

ENDED_WITHIN_S = 2.0


def end_plugins(netns_folder: Path) -> list[int]:
    """SIGKILL every process that was executed as a plugin for a namespace in `netns_folder`, and wait for its end.

    They are known by their environment (CNI specification, Parameters), which what they execute inherits. For the
    start of a daemon: then none of them is its own. Blocks; the pids that were killed.
    """
    mark = f"CNI_NETNS={netns_folder}/".encode()
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in pids if _is_marked(pid, mark) and _end(pid, mark)]


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return environment.startswith(mark) or b"\0" + mark in environment


def _end(pid: int, mark: bytes) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor pins the process; only then can its environment tell who is killed.
        if not _is_marked(pid, mark):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        ended.poll(ENDED_WITHIN_S * 1000)
    finally:
        os.close(pidfd)
    return True
