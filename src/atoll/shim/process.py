"""One process of a container: its init or an exec."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from atoll import errors
from atoll.concurrency import Latch
from atoll.oci import runtime as oci
from atoll.shim import records
from atoll.shim.records import ExitRecord
from atoll.shim.rules import Phase
from atoll.shim.shim import Shim
from atoll.shim.stdio.request import StdioRequest
from atoll.shim.stdio.stdio import Stdio

DRAIN_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class Process:
    """What the shim knows of a process; `exited` is set once its exit record is on disk."""

    def __init__(self, request: StdioRequest, bundle: Path) -> None:
        self.request = request
        self.bundle = bundle
        self.pid = 0
        self.phase = Phase.CREATED
        self.exited: Latch[ExitRecord] = Latch()
        # Held while the process is being started, so that its exit is never told before its start.
        self.starting = asyncio.Lock()
        self.stdio: Stdio | None = None

    @property
    def name(self) -> str:
        """How errors and the log name it."""
        if self.request.exec_id:
            return f"exec {self.request.exec_id} of container {self.request.id}"
        return f"container {self.request.id}"

    async def open_stdio(self, shim: Shim) -> oci.Stdio:
        """Open its streams: what the OCI runtime is given. The streams are aborted by `close`."""
        # The terminal's socket needs a short path, so it is not made in the bundle.
        self.stdio = await Stdio.open(self.request, shim.streams)
        if self.stdio.console_socket is not None:
            return oci.Stdio(console_socket=self.stdio.console_socket)
        stdin, stdout, stderr = self.stdio.child_fds()
        return oci.Stdio(stdin=stdin, stdout=stdout, stderr=stderr)

    async def started_stdio(self) -> None:
        """The runtime has the streams: take the terminal, begin to pump."""
        if self.stdio is not None:
            await self.stdio.started()

    def record(self, *, exit_status: int, at_ns: int, oom_killed: bool = False) -> ExitRecord:
        """Write the exit record; one that the disk refuses is logged and still told."""
        record = ExitRecord(
            id=self.request.id,
            exec_id=self.request.exec_id,
            pid=self.pid,
            exit_status=exit_status,
            exited_at_ns=at_ns,
            oom_killed=oom_killed,
        )
        try:
            records.write_exit(self.bundle, record)
        except OSError as error:
            log.error("%s: exit record not written: %s", self.name, error)
        return record

    def enter(self, phase: Phase) -> None:
        """It is in `phase` from now on, unless it has ended meanwhile: that is for good."""
        if not self.exited.is_set:
            self.phase = phase

    def settle(self, record: ExitRecord) -> None:
        """Its exit may be told now."""
        self.phase = Phase.STOPPED
        self.exited.set(record)
        log.info("%s exited pid=%d status=%d", self.name, self.pid, record.exit_status)

    async def close(self, *, drain: bool) -> None:
        """Close its streams, after their output has gone on, at most `DRAIN_TIMEOUT_S`; idempotent."""
        stdio, self.stdio = self.stdio, None
        if stdio is None:
            return
        if drain and not await stdio.drain(DRAIN_TIMEOUT_S):
            log.warning("%s: output not drained within %g s", self.name, DRAIN_TIMEOUT_S)
        await stdio.close()

    def require(self, allowed: bool, operation: str) -> None:
        """Raise `FailedPrecondition` naming the phase where `operation` is not allowed."""
        if not allowed:
            raise errors.FailedPrecondition(f"{self.name}: cannot {operation} while {self.phase.name.lower()}")


class Exec(Process):
    """A process added to a container; `spec` is the JSON of its OCI process."""

    def __init__(self, request: StdioRequest, bundle: Path, spec: bytes) -> None:
        super().__init__(request, bundle)
        self.spec = spec
