"""A pod that is held by a pause container: its record on disk, what is told of it, and its freezer.

<folder>/<id>/pause.json   the record
              files/       hostname, hosts, resolv.conf, shm, unless the request names another folder
              <id>/        the bundle of the shim and of the pause container, which share the sandbox's ID
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from atoll import errors
from atoll.concurrency import Blocking
from atoll.linux import cgroup_children, cgroup_layout
from atoll.linux.cgroup import Cgroup
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.task import TaskState
from atoll.sandbox.config import PodConfig
from atoll.sandbox.controller import (
    UNKNOWN_EXIT_STATUS,
    ControllerInstance,
    ControllerStatus,
    Sandbox,
    SandboxInfo,
)
from atoll.sandbox.info import NOTHING
from atoll.sandboxers.held import Held
from atoll.sandboxers.info import of_record
from atoll.sandboxers.pause import PauseRecord
from atoll.shim import records
from atoll.shim.records import SandboxExit

log = logging.getLogger(__name__)

RECORD = "pause.json"
RUNTIME_LABEL = "oci_runtime_type"


@dataclass(slots=True, kw_only=True)
class PauseHeld(Held):
    """One pod, from its creation until it is shut down."""

    folder: Path
    record: PauseRecord
    has_plugins: bool = False
    """Whether plugins were told of its creation by this daemon."""
    told: asyncio.Task[None] | None = None
    """Plugins are told of its end."""

    @property
    def cgroup(self) -> Cgroup | None:
        """The cgroup that every container of the pod is below; None where it has none."""
        parent = self.record.cgroup_parent
        return Cgroup(parent, cgroup_layout.of_host()) if parent else None

    @property
    def needed_cgroup(self) -> Cgroup:
        """The same; raises `FailedPrecondition` where it has none."""
        group = self.cgroup
        if group is None:
            raise errors.FailedPrecondition(
                f"sandbox {self.id}: has no cgroup that its containers are below; give it one, with cgroup_parent"
            )
        return group

    def note(self, **changes: object) -> None:
        """Change the record, on disk before in memory; raises `OSError`."""
        changed = msgspec.structs.replace(self.record, **changes)
        records.write(self.folder / RECORD, changed)
        self.record = changed

    def told_by(self, bootstrap: Bootstrap | None) -> ControllerInstance:
        """The pod as its record and its shim's address tell of it."""
        created_at = self.record.created_at
        assert created_at is not None
        return ControllerInstance(
            sandbox_id=self.id,
            pid=self.record.pid,
            created_at=created_at,
            labels={**self.sandbox.labels, RUNTIME_LABEL: self.sandbox.runtime.name},
            address=bootstrap.endpoint if bootstrap is not None else "",
            version=bootstrap.version if bootstrap is not None else 0,
        )

    def info(self, told: ControllerStatus, task: TaskState | None) -> SandboxInfo:
        """What a verbose status says; it reads files."""
        record = self.record
        try:
            spec = msgspec.Raw(self.request.bundle.read_spec())
        except errors.NotFound:
            spec = NOTHING
        info = SandboxInfo(
            pid=told.pid,
            process_status=self._process_status(task),
            net_namespace_closed=bool(record.netns) and not Path(record.netns).exists(),
            image=record.image,
            snapshot_key=self.id if record.image else "",
            snapshotter=record.snapshotter,
            config=record.config,
            runtime_spec=spec,
            overhead=record.resources_now.overhead,
            resources=record.resources_now.resources,
            annotations=record.annotations_now,
            files=record.files,
            cgroup=record.cgroup_parent,
            netns=record.netns,
        )
        return msgspec.structs.replace(info, **of_record(self.sandbox))

    def _process_status(self, task: TaskState | None) -> str:
        if task is None:
            return "stopped" if self.exit.is_set and self.record.pid else "deleted" if self.exit.is_set else "created"
        return "paused" if self.record.is_paused else task.status.name.lower()

    # freezer

    async def freeze(self, blocking: Blocking) -> None:
        """By our own shim, which knows the pod's containers; under another's by the cgroups below the pod's."""
        try:
            await self.link.ask(lambda shim: shim.own.pause())
        except errors.Unimplemented:
            group = self.needed_cgroup
            children = await blocking.run(cgroup_children.standing, group)
            # On disk before anything stands, so that whoever comes next lets go all of it and no more.
            frozen = self.record.kept_frozen if self.record.is_paused else children
            self.note(is_paused=True, kept_frozen=frozen)
            try:
                await blocking.run(cgroup_children.freeze, group, frozen)
            except errors.AtollError:
                self.note(is_paused=False, kept_frozen=())
                raise
        else:
            self.note(is_paused=True)

    async def thaw(self, blocking: Blocking) -> None:
        """Let go of all that stands, whatever the shim says."""
        try:
            await self.link.ask(lambda shim: shim.own.resume())
        except (errors.Unimplemented, errors.Unavailable, errors.DataLoss, errors.NotFound) as error:
            group = self.cgroup
            if group is not None:
                await blocking.run(cgroup_children.thaw, group, self.record.kept_frozen)
            elif not isinstance(error, errors.Unimplemented):
                log.info("sandbox %s: has no cgroup to thaw, and its shim does not answer: %s", self.id, error)
        if self.record.is_paused:
            self.note(is_paused=False, kept_frozen=())


def read_record(folder: Path, sandbox: Sandbox) -> PauseRecord:
    """The record in a pod's folder; of one that cannot be read, one that has ended.

    A crash while it was written, or a broken disk: there is nothing that could be started.
    """
    try:
        record = records.read(folder / RECORD, PauseRecord)
    except errors.DataLoss as error:
        log.error("sandbox %s: %s", sandbox.id, error)
        record = None
    return record or PauseRecord(
        config=PodConfig(),
        netns="",
        files="",
        cgroup_parent="",
        runtime=sandbox.runtime.name,
        is_stopped=True,
        exit=SandboxExit(exit_status=UNKNOWN_EXIT_STATUS, exited_at_ns=time.time_ns()),
    )


@contextlib.contextmanager
def disk_told(what: str) -> Generator[None]:
    """A disk that refuses is `Unavailable`: it may be freed at any time."""
    try:
        yield
    except OSError as error:
        raise errors.Unavailable(f"{what}: {error.filename or 'the disk'}: {error.strerror}") from error
