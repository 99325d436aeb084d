"""What a container is after a restart: what its checkpoint says, settled by what its shim says.

    checkpoint  no task            task CREATED         task RUNNING       task STOPPED           anything else
    CREATED     stays, needs IO    stays, task deleted  RUNNING from now   EXITED, task deleted   UNKNOWN
    RUNNING     EXITED 255 now     UNKNOWN              RUNNING            EXITED, task deleted   UNKNOWN
    EXITED      stays              UNKNOWN              UNKNOWN            the task's end,        UNKNOWN
                                                                           task deleted
    UNKNOWN     stays              UNKNOWN              RUNNING from now   the end is kept, still UNKNOWN
                                                                           UNKNOWN, task deleted

UNKNOWN on the left is a checkpoint that is lost. A status that is UNKNOWN only because nobody could be asked is settled
by what was known before. "Anything else" is a state without a name, or an error that is not "no such task".
A paused task runs. The exit code 255 with the reason `Unknown` is that of an end that nobody saw.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from atoll.container.status import UNKNOWN_EXIT_CODE, State, Status, unknown_status


class TaskPhase(StrEnum):
    """What a shim says of a container's task."""

    ABSENT = "not found"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as its shim tells it; `exited_at` in ns since the epoch, `why` says what OTHER is."""

    phase: TaskPhase
    pid: int = 0
    exit_code: int = 0
    exited_at: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The status from now on, and what is left to do: see to the exit, delete the task, make IO for a later start."""

    status: Status
    watch: bool = False
    delete_task: bool = False
    needs_io: bool = False


def settle(checkpoint: Status, task: Task, now: int) -> Settled:
    """The cell of the table; `now` in ns since the epoch. Fields that the table does not name are kept."""
    status = checkpoint.answered()
    match task.phase, status.state:
        case TaskPhase.ABSENT, State.CREATED:
            return Settled(status=status, needs_io=True)
        case TaskPhase.ABSENT, State.RUNNING:
            return Settled(status=status.exited(code=UNKNOWN_EXIT_CODE, at=now, reason="Unknown"))
        case TaskPhase.ABSENT, _:
            return Settled(status=status)
        case TaskPhase.CREATED, State.CREATED:
            return Settled(status=status, delete_task=True, needs_io=True)
        case TaskPhase.RUNNING, State.CREATED | State.RUNNING | State.UNKNOWN:
            return Settled(status=status.started(pid=task.pid, at=status.started_at or now), watch=True)
        case TaskPhase.STOPPED, _:
            return Settled(status=_ended(status, task, now), delete_task=True)
        case TaskPhase.OTHER, _:
            return Settled(status=unknown_status(status, task.why or "its task is in a state that has no name"))
        case _:
            why = f"its checkpoint says {_word(status)}, its shim has a {task.phase} task"
            return Settled(status=unknown_status(status, why))


def _ended(status: Status, task: Task, now: int) -> Status:
    """The task's end stands, whatever was known of one; a status that is lost stays UNKNOWN with it."""
    return dataclasses.replace(
        status, pid=0, finished_at=task.exited_at or now, exit_code=task.exit_code, starting=False
    )


def _word(status: Status) -> str:
    return status.state.removeprefix("CONTAINER_").lower()
