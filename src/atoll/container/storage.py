"""`StatusStorage`: one container's status in memory and in its checkpoint, changed by transactions."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking, Latch, run_to_completion
from atoll.container.checkpoint import (
    FILE,
    delete_checkpoint,
    drop_temporaries,
    read_checkpoint,
    set_aside,
    write_checkpoint,
)
from atoll.container.status import State, Status, decode_status, encode_status, unknown_status
from atoll.identifiers import require_identifier
from atoll.linux.files import sync_folder

WRITE_LIMIT_S = 30.0
"""How long a disk may take for one checkpoint."""

Transition = Callable[[Status], Status]
SlowTransition = Callable[[Status], Awaitable[Status]]


class StatusStorage:
    """The status of one container. Transactions run one at a time, in the order they were asked for.

    `exited` is set, to the status, once an exit is known and where it is to be durable, durable. A container that is
    restarted gets another one, for its next exit.
    """

    def __init__(self, folder: Path, status: Status, blocking: Blocking) -> None:
        self._folder = folder
        self._status = status
        self._blocking = blocking
        self._lock = asyncio.Lock()
        self._deleted = False
        self.exited: Latch[Status] = Latch()
        self._announce()

    @property
    def path(self) -> Path:
        """The checkpoint file."""
        return self._folder / FILE

    def get(self) -> Status:
        """The status now; from memory, also after `delete`."""
        return self._status

    async def update(self, transition: Transition) -> Status:
        """Change the status in memory only; nothing changes where `transition` raises. The new status."""
        async with self._lock:
            self._status = transition(self._status)
            self._announce()
            return self._status

    async def update_sync(self, transition: Transition) -> Status:
        """Change the status on disk, then in memory; durable when it returns. The new status.

        Where `transition` raises or the disk refuses (`ResourceExhausted` when full, else
        `Unavailable`) nothing changes in either. A caller cancelled while the disk works still
        finds both changed. `NotFound` after `delete`.
        """
        async with self._lock:
            return await self._store(transition(self._status))

    async def update_around(self, transition: SlowTransition) -> Status:
        """`update_sync` whose `transition` awaits something, such as the task taking new limits.

        Every other change of this container waits meanwhile: bound what you await.
        """
        async with self._lock:
            return await self._store(await transition(self._status))

    async def delete(self) -> None:
        """Remove the checkpoint; memory stays readable. Idempotent."""
        async with self._lock:
            self._deleted = True
            await self._blocking.run(delete_checkpoint, self._folder)

    async def forget(self) -> None:
        """The folder is gone and the checkpoint with it; memory stays readable. Idempotent."""
        async with self._lock:
            self._deleted = True

    async def _store(self, status: Status) -> Status:
        if self._deleted:
            raise errors.NotFound(f"{self.path}: this container is removed, its status cannot change")
        abandoned = threading.Event()
        try:
            await run_to_completion(self._write(status, abandoned), within=WRITE_LIMIT_S)
        except errors.DeadlineExceeded as error:
            abandoned.set()
            raise errors.Unavailable(f"{self.path}: not written within {WRITE_LIMIT_S:g} s, the disk hangs") from error
        return status

    async def _write(self, status: Status, abandoned: threading.Event) -> None:
        await _put(self._blocking, self._folder, status, abandoned)
        self._status = status
        self._announce()

    def _announce(self) -> None:
        if self._status.state is State.EXITED:
            self.exited.set(self._status)
        elif self._status.state is State.CREATED and self.exited.is_set:
            self.exited = Latch()  # it is being restarted; who waited for the end has been told of it


async def _put(blocking: Blocking, folder: Path, status: Status, abandoned: threading.Event | None = None) -> None:
    try:
        await blocking.run(_write, folder, encode_status(status), abandoned, not status.removing)
    except OSError as error:
        raise _refused(folder, error) from error


def _write(folder: Path, text: bytes, abandoned: threading.Event | None, make: bool) -> None:
    """A hand may have taken the folder: what happens is to be known all the same, but where a removal takes it."""
    try:
        write_checkpoint(folder, text, abandoned)
    except FileNotFoundError:
        if not make:
            raise
        _make_folder(folder)
        write_checkpoint(folder, text, abandoned)


def _refused(folder: Path, error: OSError) -> errors.AtollError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.ResourceExhausted(f"{folder / FILE}: not written, the disk is full: free some space")
    return errors.Unavailable(f"{folder / FILE}: not written: {error.strerror or error}")


def status_folder(root: Path, container_id: str) -> Path:
    """Where a container's durable files are; `InvalidArgument` for what is no ID."""
    return root / "containers" / require_identifier(container_id, "container id")


async def store_status(root: Path, container_id: str, status: Status, blocking: Blocking) -> StatusStorage:
    """Write the first checkpoint, making the folder (0700) where it is missing; fails if it cannot.

    Durable when it returns, the folder's own name included.
    """
    folder = status_folder(root, container_id)
    try:
        await blocking.run(_make_folder, folder)
    except OSError as error:
        raise _refused(folder, error) from error
    await _put(blocking, folder, status)
    return StatusStorage(folder, status, blocking)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A checkpoint that is there and cannot be read: why, its text where that was had, the name it is kept under."""

    reason: str
    text: bytes = b""
    kept_as: str = FILE


async def load_status(root: Path, container_id: str, blocking: Blocking) -> StatusStorage:
    """The storage of a container that was there before; never fails for what is on disk.

    A checkpoint that cannot be read is kept aside as `status.unreadable`, a missing one is missed:
    either way the status is UNKNOWN and says why.
    """
    ((storage, _),) = await load_statuses(root, [container_id], blocking)
    return storage


async def load_statuses(
    root: Path, container_ids: list[str], blocking: Blocking
) -> list[tuple[StatusStorage, Damage | None]]:
    """`load_status` for many, in the same order, each with what is wrong with its file."""
    folders = [status_folder(root, container_id) for container_id in container_ids]
    found = await blocking.run(lambda: [_read(folder) for folder in folders])
    return [
        (StatusStorage(folder, status, blocking), damage)
        for folder, (status, damage) in zip(folders, found, strict=True)
    ]


def read_status(folder: Path) -> Status:
    """The status that `load_status` starts from; blocks."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Status, Damage | None]:
    text = b""
    with contextlib.suppress(OSError):  # a disk that is read-only now: the next start drops them
        drop_temporaries(folder)
    try:
        text = read_checkpoint(folder)
        return decode_status(text), None
    except FileNotFoundError:
        return unknown_status(None, f"{folder / FILE}: the checkpoint is missing"), None
    except OSError as error:
        damage = _kept(folder, text, f"the checkpoint cannot be read: {error.strerror}")
    except errors.DataLoss as error:
        damage = _kept(folder, text, error.message)
    return unknown_status(None, damage.reason), damage


def _kept(folder: Path, text: bytes, why: str) -> Damage:
    try:
        kept = set_aside(folder).name
    except OSError as error:
        return Damage(reason=f"{folder / FILE}: {why}; could not be moved aside: {error.strerror}", text=text)
    return Damage(reason=f"{folder / FILE}: {why}; kept as {kept}", text=text, kept_as=kept)


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)  # the first of a root
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_folder(folder.parent)
