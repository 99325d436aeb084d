"""Containers whose shim is gone: how they ended, how they are ended, how they are cleared away.

Everything comes from the records that the shim, or the driver of a foreign one, left in the bundle
(`atoll.shim.records`) and from the kernel: the cgroups and the init process named there. What a foreign shim made its
own program clears away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking
from atoll.engine import lost_records
from atoll.engine.lost_helpers import Helpers
from atoll.engine.paths import Paths
from atoll.linux.process import Spawner
from atoll.oci.runtime import OCIRuntime
from atoll.runtime.bundle import Bundle
from atoll.runtime.shim import Launcher, LaunchRequest
from atoll.sandbox.controller import UNKNOWN_EXIT_STATUS, ExitStatus, Runtime
from atoll.shim import cgroups, records

HELPERS_PAUSE_S = 0.5
"""Between two looks for what shims that are gone were running."""
RECORD_WITHIN_S = 0.5
"""From the end of a container's init to the record of it, where its shim lives."""


class Orphans:
    """Acts for shims that no longer can."""

    def __init__(self, paths: Paths, spawner: Spawner, foreign: Launcher, blocking: Blocking) -> None:
        self._state = paths.state
        self._helpers = Helpers(paths, blocking)
        self._helpers_ended_at = 0.0
        self._spawner = spawner
        self._foreign = foreign
        self._blocking = blocking

    async def ended(self, bundle: Path) -> ExitStatus:
        """How the container's init ended: as recorded, else once it is gone 255, since nobody can know.

        Waits for an init that still runs.
        """
        record = await self._exit_record(bundle)
        if record is None:
            task = await self._blocking.run(lost_records.task, bundle, self._state)
            if task is not None and task.pid and _is_of(task):
                await _gone(task.pid)
                record = await self._exit_record(bundle)
                if record is None:  # a shim that could not be asked may live, and write it now
                    await asyncio.sleep(RECORD_WITHIN_S)
                    record = await self._exit_record(bundle)
        if record is None:
            return ExitStatus(exit_status=UNKNOWN_EXIT_STATUS, exited_at=datetime.now(UTC), is_seen=False)
        at = datetime.fromtimestamp(record.exited_at_ns / 1e9, UTC)
        return ExitStatus(exit_status=record.exit_status, exited_at=at)

    async def _exit_record(self, bundle: Path) -> records.ExitRecord | None:
        return await self._blocking.run(lost_records.ended, bundle)

    async def was_oom_killed(self, bundle: Path) -> bool | None:
        """Whether the container's end was the kernel's for lack of memory; None where our shim left no record."""
        record = await self._blocking.run(lost_records.ended, bundle)
        return record.oom_killed if record is not None else None

    async def signal(self, bundle: Path, number: int) -> None:
        """Send a signal to the container's init, where it still runs."""
        task = await self._blocking.run(lost_records.task, bundle, self._state)
        if task is not None and task.pid and await self._blocking.run(_is_of, task):
            with contextlib.suppress(ProcessLookupError):
                os.kill(task.pid, number)

    async def kill(self, bundle: Path) -> None:
        """SIGKILL every process of the container, by its cgroups."""
        task = await self._blocking.run(lost_records.task, bundle, self._state)
        if task is not None:
            await self._blocking.run(cgroups.kill, _folders(task))
        await self.end_helpers()

    async def end_helpers(self) -> None:
        """End the OCI runtimes that shims which are gone were running; not for each of many containers at a time."""
        now = asyncio.get_running_loop().time()
        if now - self._helpers_ended_at > HELPERS_PAUSE_S:
            self._helpers_ended_at = now
            await self._helpers.end_all()

    async def delete(self, bundle: Path) -> None:
        """Clear the container out of its OCI runtime, its processes first; idempotent."""
        task = await self._blocking.run(lost_records.task, bundle, self._state)
        if task is None:
            return
        if not task.binary:
            await self._blocking.run(cgroups.kill, _folders(task))
            named = Bundle(id=task.id, namespace=task.namespace, path=bundle)
            await self._foreign.delete(
                LaunchRequest(id=task.id, namespace=task.namespace, runtime=Runtime(name=""), bundle=named)
            )
            return
        await self.end_helpers()  # one that hangs may hold the container
        runtime = OCIRuntime(Path(task.binary), Path(task.root), self._spawner, systemd_cgroup=task.systemd_cgroup)
        await self._blocking.run(cgroups.kill, _folders(task))
        if not (Path(task.root) / task.id).exists():
            return
        try:
            await runtime.delete(task.id, force=True)
        except errors.NotFound:
            return


def _folders(task: records.TaskRecord) -> tuple[Path, ...]:
    return tuple(Path(folder) for folder in task.cgroups)


def _is_of(task: records.TaskRecord) -> bool:
    """Whether the recorded pid is still this container's, and not a later process of the same number."""
    return task.pid in cgroups.pids(_folders(task))


async def _gone(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(fd, lambda: ended.done() or ended.set_result(None))
    try:
        await ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)
