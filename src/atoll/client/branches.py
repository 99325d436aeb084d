"""Branches of a container's files: snapshots, what is made upon them, what has changed, images of it."""

from __future__ import annotations

import enum
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol, Self

from atoll import errors
from atoll.api import atoll_branches_v1_pb2 as pb
from atoll.client import wire
from atoll.client.making import made_or_undone

if TYPE_CHECKING:
    from atoll.client.container import Container

CALL_TIMEOUT_S = 120.0
COPY_TIMEOUT_S = 3600.0
"""For what reads or writes all that a container has written."""
MAX_FORKS = 256

_SERVICE = "atoll.branches.v1.Branches"
TAKE = wire.Method(_SERVICE, "Take", pb.TakeRequest, pb.TakeResponse)
LIST = wire.Method(_SERVICE, "List", pb.ListRequest, pb.ListResponse)
REMOVE = wire.Method(_SERVICE, "Remove", pb.RemoveRequest, pb.RemoveResponse)
FORK = wire.Method(_SERVICE, "Fork", pb.ForkRequest, pb.ForkResponse)
ROLLBACK = wire.Method(_SERVICE, "Rollback", pb.RollbackRequest, pb.Container)
DIFF = wire.Method(_SERVICE, "Diff", pb.DiffRequest, pb.DiffResponse)
EXPORT = wire.Method(_SERVICE, "Export", pb.ExportRequest, pb.ExportResponse)
COMMIT = wire.Method(_SERVICE, "Commit", pb.CommitRequest, pb.CommitResponse)


class Identified(Protocol):
    """A pod or a snapshot, of either face."""

    @property
    def id(self) -> str: ...


class DiffKind(enum.StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"


_KINDS = {
    pb.Change.ADDED: DiffKind.ADDED,
    pb.Change.CHANGED: DiffKind.CHANGED,
    pb.Change.DELETED: DiffKind.DELETED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffEntry:
    """One path of a container that differs; a folder is changed too where something in it is."""

    kind: DiffKind
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotStatus:
    """A snapshot; `size_bytes` is what its own files take, `in_use` whether a container or a snapshot rests on it."""

    id: str
    name: str
    container_id: str
    container_name: str
    pod_id: str
    image: str
    size_bytes: int
    created_at: datetime
    in_use: bool

    @classmethod
    def read(cls, message: pb.Snapshot) -> Self:
        return cls(
            id=message.id,
            name=message.name,
            container_id=message.container_id,
            container_name=message.container_name,
            pod_id=message.pod_id,
            image=message.image,
            size_bytes=message.bytes,
            created_at=datetime.fromtimestamp(message.created_at / 1e9, UTC),
            in_use=message.in_use,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a snapshot cost: how long the container stood still, bytes copied, bytes that the file system shares."""

    paused_s: float
    copied_bytes: int
    shared_bytes: int


class Snapshot:
    """A container's files as they were, by the snapshot's ID; `cost` is there where it has just been taken."""

    def __init__(self, connection: wire.Wire, snapshot_id: str, name: str, cost: Cost | None = None) -> None:
        self._wire = connection
        self.id = snapshot_id
        self.name = name
        self.cost = cost

    def __repr__(self) -> str:
        return f"<Snapshot {self.name} {self.id}>"

    async def status(self) -> SnapshotStatus:
        """What is known now; raises `NotFound`."""
        for one in await every(self._wire):
            if one.id == self.id:
                return one
        raise errors.NotFound(f"snapshot {self.name}: there is none any more")

    async def fork(self, count: int = 1, *, pod: Identified | None = None, start: bool = True) -> tuple[Container, ...]:
        """`count` containers like the one that the snapshot is of, upon its files, each with a layer of its own.

        In the same pod, or in `pod`. No data is copied. All or none; raises `NotFound` where the pod or the image is
        gone.
        """
        from atoll.client.container import Container  # noqa: PLC0415 - they name each other

        if not 1 <= count <= MAX_FORKS:
            raise errors.InvalidArgument(f"forks: {count} are not 1 to {MAX_FORKS}")
        asked = pb.ForkRequest(
            snapshot=self.id, pod_id=pod.id if pod is not None else "", count=count, no_start=not start
        )

        async def make() -> tuple[Container, ...]:
            answer = await self._wire.call(FORK, asked, timeout_s=COPY_TIMEOUT_S)
            return tuple(Container(self._wire, one.id, one.name, one.pod_id) for one in answer.containers)

        async def undo(made: tuple[Container, ...]) -> None:
            for one in made:
                await one.remove()

        return await made_or_undone(make(), undo, within=COPY_TIMEOUT_S + 5)

    async def remove(self) -> None:
        """Give its space back. Idempotent; raises `FailedPrecondition` while a container or a snapshot rests on it."""
        try:
            await self._wire.call(REMOVE, pb.RemoveRequest(snapshot=self.id), timeout_s=CALL_TIMEOUT_S)
        except errors.NotFound:
            return


async def every(connection: wire.Wire) -> tuple[SnapshotStatus, ...]:
    """Every snapshot, the oldest first."""
    answer = await connection.call(LIST, pb.ListRequest(), timeout_s=CALL_TIMEOUT_S)
    return tuple(SnapshotStatus.read(one) for one in answer.snapshots)


async def find(connection: wire.Wire, name: str) -> Snapshot:
    """By name, ID or unique beginning of an ID; raises `NotFound`, or `InvalidArgument` for several."""
    found = await every(connection)
    fitting = [one for one in found if name in (one.id, one.name)]
    fitting = fitting or [one for one in found if name and one.id.startswith(name)]
    if not fitting:
        raise errors.NotFound(f"snapshot {name[:80]!r}: there is none; `atoll snapshot ls` shows what there is")
    if len(fitting) > 1:
        raise errors.InvalidArgument(f"snapshot {name!r}: {len(fitting)} fit; use more of the ID")
    return Snapshot(connection, fitting[0].id, fitting[0].name)


async def take(connection: wire.Wire, container_id: str, name: str) -> Snapshot:
    asked = pb.TakeRequest(container_id=container_id, name=name)

    async def make() -> Snapshot:
        answer = await connection.call(TAKE, asked, timeout_s=COPY_TIMEOUT_S)
        cost = Cost(paused_s=answer.paused_s, copied_bytes=answer.copied_bytes, shared_bytes=answer.shared_bytes)
        return Snapshot(connection, answer.snapshot.id, answer.snapshot.name, cost)

    return await made_or_undone(make(), Snapshot.remove, within=COPY_TIMEOUT_S + 5)


async def rollback(connection: wire.Wire, container_id: str, snapshot: str, timeout: float) -> Container:
    from atoll.client.container import Container  # noqa: PLC0415 - they name each other

    asked = pb.RollbackRequest(container_id=container_id, snapshot=snapshot, timeout_s=timeout)
    answer = await connection.call(ROLLBACK, asked, timeout_s=timeout + COPY_TIMEOUT_S)
    return Container(connection, answer.id, answer.name, answer.pod_id)


async def diff(connection: wire.Wire, container_id: str, since: str) -> tuple[DiffEntry, ...]:
    found: list[DiffEntry] = []
    async for answer in connection.stream(DIFF, pb.DiffRequest(container_id=container_id, since=since)):
        found += [DiffEntry(kind=_KINDS[one.kind], path=os.fsdecode(one.path)) for one in answer.changes]
    return tuple(found)


async def export(connection: wire.Wire, container_id: str, since: str) -> AsyncGenerator[bytes]:
    answers = connection.stream(EXPORT, pb.ExportRequest(container_id=container_id, since=since))
    try:
        async for answer in answers:
            yield answer.data
    finally:
        await answers.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitOptions:
    """What is said of a new image beside its files; `changes` are instructions of a Dockerfile."""

    reference: str = ""
    changes: Sequence[str] = ()
    author: str = ""
    message: str = ""
    pause: bool = True


async def commit(connection: wire.Wire, container_id: str, options: CommitOptions) -> str:
    if isinstance(options.changes, str):
        raise errors.InvalidArgument(f"changes {options.changes!r}: must be a list, as in ['CMD [\"sh\"]']")
    asked = pb.CommitRequest(
        container_id=container_id,
        reference=options.reference,
        changes=list(options.changes),
        author=options.author,
        message=options.message,
        no_pause=not options.pause,
    )
    return (await connection.call(COMMIT, asked, timeout_s=COPY_TIMEOUT_S)).image_id
