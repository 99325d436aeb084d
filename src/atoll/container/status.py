"""The status of a container: a value, the rule that derives its state, and what each state allows.

    created_at ──> CREATED ──started_at──> RUNNING ──finished_at──> EXITED
                      └───────────── failed start ─────────────────────┘
    a restart makes CREATED of EXITED
    UNKNOWN: nobody can tell now; `reason` says why, the other fields hold what was known last

The JSON is the checkpoint that containerd's CRI plugin writes: Go's field names beside `Version`,
the transient flags left out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from atoll import errors
from atoll.oci.config import Config, LinuxContainerResources
from atoll.unreadable import UNREADABLE

VERSION = "v1"

UNKNOWN_EXIT_CODE = 255
"""The exit code of a process whose real one nobody can know."""


class State(StrEnum):
    """In the words of the CRI."""

    CREATED = "CONTAINER_CREATED"
    RUNNING = "CONTAINER_RUNNING"
    EXITED = "CONTAINER_EXITED"
    UNKNOWN = "CONTAINER_UNKNOWN"


class ContainerResources(Config, frozen=True):
    """The limits that hold now."""

    linux: LinuxContainerResources | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One moment of a container. Times in ns since the epoch, 0 where it has not happened.

    `starting`, `removing` and `unknown` live in memory only: no restart finds an operation under way.
    """

    pid: int = 0
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    starting: bool = False
    removing: bool = False
    unknown: bool = False
    resources: ContainerResources | None = None
    restore: bool = False

    @property
    def state(self) -> State:
        """The state rule: the latest thing that happened; UNKNOWN where nothing has or nobody can tell."""
        if self.unknown:
            return State.UNKNOWN
        if self.finished_at:
            return State.EXITED
        if self.started_at:
            return State.RUNNING
        return State.CREATED if self.created_at else State.UNKNOWN

    @property
    def can_start(self) -> bool:
        return self.state is State.CREATED and not self.starting and not self.removing

    @property
    def can_stop(self) -> bool:
        """Whether there may be a process to stop; anything else is stopped already."""
        return self.state in (State.RUNNING, State.UNKNOWN)

    @property
    def can_remove(self) -> bool:
        return self.state in (State.CREATED, State.EXITED) and not self.starting and not self.removing

    @property
    def can_exec(self) -> bool:
        return self.state is State.RUNNING

    @property
    def can_update(self) -> bool:
        """Whether limits may be changed."""
        return self.state in (State.CREATED, State.RUNNING) and not self.removing

    def begin_start(self) -> Status:
        """The status of a container being started, or `FailedPrecondition` that says why it cannot be."""
        if not self.can_start:
            raise errors.FailedPrecondition(f"container cannot be started: it is {self._described()}")
        return dataclasses.replace(self, starting=True)

    def begin_removal(self) -> Status:
        """The status of a container being removed, or `FailedPrecondition` that says why it cannot be."""
        if not self.can_remove:
            raise errors.FailedPrecondition(f"container cannot be removed: it is {self._described()}")
        return dataclasses.replace(self, removing=True)

    def begin_restart(self) -> Status:
        """The status of one that has ended and is made ready anew, or `FailedPrecondition` that says why not."""
        if self.state is not State.EXITED or self.starting or self.removing:
            raise errors.FailedPrecondition(f"container cannot be restarted: it is {self._described()}")
        return dataclasses.replace(self, starting=True)

    def again(self) -> Status:
        """The status of one that has ended and is CREATED again; its limits stay."""
        return Status(created_at=self.created_at, resources=self.resources)

    def not_restarted(self) -> Status:
        """The status of one whose restart has failed before it was made ready: it can be tried again."""
        return dataclasses.replace(self, starting=False)

    def kept(self) -> Status:
        """The status of a container whose removal has failed: it can be tried again."""
        return dataclasses.replace(self, removing=False)

    def started(self, *, pid: int, at: int) -> Status:
        """The status of one whose process is there: that is known, whatever was lost before."""
        return dataclasses.replace(self, pid=pid, started_at=at, starting=False, unknown=False)

    def answered(self) -> Status:
        """Without the mark that nobody could be asked; any other UNKNOWN, such as a lost checkpoint's, stays."""
        if self.unknown and self.created_at:
            return dataclasses.replace(self, unknown=False, reason="", message="")
        return self

    def exited(self, *, code: int, at: int, reason: str = "", message: str = "") -> Status:
        """The status after the exit; the first exit told stands, a later one only clears UNKNOWN.

        Why nobody could be asked before is told no more, but where the exit code is not known either.
        """
        if self.finished_at:
            return dataclasses.replace(self, pid=0, unknown=False, starting=False)
        before = self if code == UNKNOWN_EXIT_CODE else self.answered()
        return dataclasses.replace(
            before,
            pid=0,
            finished_at=at,
            exit_code=code,
            reason=reason or before.reason,
            message=message or before.message,
            unknown=False,
            starting=False,
        )

    def _described(self) -> str:
        if self.removing:
            return "being removed"
        return "being started" if self.starting else self.state.removeprefix("CONTAINER_").lower()


def unknown_status(last: Status | None, why: str) -> Status:
    """The status of a container nobody can tell about: the values known last, and `why`."""
    known = last if last is not None else Status(exit_code=UNKNOWN_EXIT_CODE)
    return dataclasses.replace(known, unknown=True, reason="Unknown", message=why)


_UInt32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Checkpoint(msgspec.Struct, kw_only=True, rename="pascal"):
    """The numbers have the ranges of containerd's fields: what it cannot read is not written, and not read either."""

    version: str
    pid: _UInt32 = 0
    created_at: _Int64 = 0
    started_at: _Int64 = 0
    finished_at: _Int64 = 0
    exit_code: _Int32 = 0
    reason: str = ""
    message: str = ""
    resources: ContainerResources | None = None
    restore: bool = False


_decoder = msgspec.json.Decoder(_Checkpoint)


def encode_status(status: Status) -> bytes:
    """The checkpoint's JSON text."""
    return msgspec.json.encode(
        _Checkpoint(
            version=VERSION,
            pid=status.pid,
            created_at=status.created_at,
            started_at=status.started_at,
            finished_at=status.finished_at,
            exit_code=status.exit_code,
            reason=_utf8(status.reason),
            message=_utf8(status.message),
            resources=status.resources,
            restore=status.restore,
        )
    )


def _utf8(text: str) -> str:
    """What a program's odd bytes have become, as Go's encoder writes them: U+FFFD; no message hinders a checkpoint."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def decode_status(text: bytes) -> Status:
    """The status in a checkpoint; unknown fields are passed over, an unknown version is `DataLoss`."""
    try:
        found = _decoder.decode(text)
    except UNREADABLE as error:
        raise errors.DataLoss(f"container status: cannot be read: {error}") from error
    if found.version != VERSION:
        raise errors.DataLoss(f"container status: unsupported version {found.version!r}, this atoll knows {VERSION}")
    return Status(
        pid=found.pid,
        created_at=found.created_at,
        started_at=found.started_at,
        finished_at=found.finished_at,
        exit_code=found.exit_code,
        reason=found.reason,
        message=found.message,
        resources=found.resources,
        restore=found.restore,
    )
