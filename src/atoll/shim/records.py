"""What a shim leaves on disk, so that facts outlive it.

    <bundle>/shim.json        which process serves this bundle
    <bundle>/bootstrap.json   where it answers (containerd's format)
    <bundle>/task.json        how the container's OCI runtime is driven, its pid and cgroups
    <bundle>/exit.json        how the container's init ended
    <bundle>/execs/<id>.json  how an exec ended, until it is deleted
    <bundle>/sandbox.json     what the pod is made of, and how it ended
    <bundle>/tasks/<id>.json  the task.json of a container whose own bundle is elsewhere, and where

Each file is replaced atomically and is written before any answer or event tells what it says. The folder is
volatile (a reboot ends the processes too), so nothing is synced.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from atoll import errors
from atoll.linux.plain import read_small
from atoll.linux.process import ProcessId
from atoll.unreadable import UNREADABLE

T = TypeVar("T")
log = logging.getLogger(__name__)

SHIM = "shim.json"
BOOTSTRAP = "bootstrap.json"
TASK = "task.json"
EXIT = "exit.json"
EXECS = "execs"
SANDBOX = "sandbox.json"
LIMIT_BYTES = 1 << 20
"""More than any record has."""
TASKS = "tasks"
"""In a shim's bundle: a record for each of its tasks whose own bundle is elsewhere, in another daemon's folders."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the records."""


class BootstrapRecord(Record, frozen=True, kw_only=True):
    """Where a shim answers, as containerd writes it."""

    version: int
    address: str
    protocol: str


class ShimRecord(Record, frozen=True, kw_only=True):
    """The process of a shim; `start_ticks` and `boot_id` tell it from a later process of the same pid.

    `alone`: it serves this bundle and never another, so that whoever kills it ends nothing else. `bootstrap`: another's
    shim answers where only it says, so that is kept twice.
    """

    pid: int
    start_ticks: int
    boot_id: str
    version: str
    alone: bool = True
    bootstrap: BootstrapRecord | None = None


class TaskRecord(Record, frozen=True, kw_only=True):
    """What it takes to remove a container without its shim.

    `cgroups` are absolute folders, one a hierarchy. `pid` is the init's, 0 before it exists.
    """

    id: str
    namespace: str
    binary: str
    root: str
    systemd_cgroup: bool
    pid: int = 0
    cgroups: tuple[str, ...] = ()


class ExitRecord(Record, frozen=True, kw_only=True):
    """How a process ended: exit status (128 + N for signal N), time in ns since the epoch.

    `oom_killed`: the kernel killed a process of the container because memory ran out.
    """

    id: str
    exec_id: str = ""
    pid: int
    exit_status: int
    exited_at_ns: int
    oom_killed: bool = False


class SandboxExit(Record, frozen=True, kw_only=True):
    exit_status: int
    exited_at_ns: int


class SandboxRecord(Record, frozen=True, kw_only=True):
    """What it takes to remove a pod without its shim, and how the pod ended once it has.

    `cgroup` is set where the shim made it; `holder` is the process that has the namespaces.
    """

    id: str
    files: str
    cgroup: str = ""
    has_rootfs: bool = False
    holder: ProcessId | None = None
    exit: SandboxExit | None = None


def write(path: str | Path, record: Record) -> None:
    """Replace the file at `path` atomically; raises `OSError`."""
    target = os.fspath(path)
    temporary = f"{target}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        data = msgspec.json.encode(record)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
    os.rename(temporary, target)


def content(path: str) -> bytes:
    """What a small file of the kernel says; raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def read(path: Path, kind: type[T]) -> T | None:
    """The record at `path`; None where there is none, `DataLoss` where it cannot be read."""
    try:
        return msgspec.json.decode(read_small(path, LIMIT_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, *UNREADABLE) as error:
        raise errors.DataLoss(f"{path}: cannot be read: {error}") from error


def last(path: Path, kind: type[T]) -> T | None:
    """`read` for whoever clears all away: one that cannot be read is told, and is none."""
    try:
        return read(path, kind)
    except errors.DataLoss as error:
        log.warning("what it says is done without: %s", error)
        return None


def exit_path(bundle: Path, exec_id: str) -> Path:
    """Where the exit of the init (empty `exec_id`) or of an exec is recorded; `exec_id` is a validated one."""
    return bundle / EXECS / f"{exec_id}.json" if exec_id else bundle / EXIT


def write_exit(bundle: Path, record: ExitRecord) -> None:
    """Record an exit in the bundle of its container."""
    path = exit_path(bundle, record.exec_id)
    if record.exec_id:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    write(path, record)


def forget_exit(bundle: Path, exec_id: str) -> None:
    """Drop the record of an exec that was deleted; idempotent."""
    exit_path(bundle, exec_id).unlink(missing_ok=True)


class GuestRecord(Record, frozen=True, kw_only=True):
    """A task with a bundle of its own, as the shim's bundle has it: the task's may be gone before the task is."""

    bundle: str
    task: TaskRecord


def write_guest(bundle: Path, guest: GuestRecord) -> None:
    """Remember a task in the shim's bundle; again, with what has become known. Raises `OSError`."""
    folder = bundle / TASKS
    folder.mkdir(mode=0o700, exist_ok=True)
    write(folder / f"{guest.task.id}.json", guest)


def forget_guest(bundle: Path, task_id: str) -> None:
    """Idempotent."""
    (bundle / TASKS / f"{task_id}.json").unlink(missing_ok=True)


def guests(bundle: Path) -> list[Path]:
    """The records of a shim's tasks; one that was being written counts for nothing."""
    return sorted((bundle / TASKS).glob("*.json"))
