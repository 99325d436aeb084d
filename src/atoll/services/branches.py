"""atoll.branches.v1.Branches on the engine."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator

from atoll import errors
from atoll.api import atoll_branches_v1_pb2 as pb
from atoll.container.store import Container
from atoll.engine import branch_base as base
from atoll.engine.engine import Engine
from atoll.image.committing import Commit
from atoll.snapshot.changes import Change, Changed
from atoll.snapshot.records import Snapshot

BATCH = 1000
CHUNK_BYTES = 256 << 10
LONGEST_STOP_S = 366 * 24 * 3600.0
KINDS = {Change.ADDED: pb.Change.ADDED, Change.CHANGED: pb.Change.CHANGED, Change.DELETED: pb.Change.DELETED}


class BranchesService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Take(self, request: pb.TakeRequest, context: object) -> pb.TakeResponse:
        taken = await self._engine.branches.snapshot(request.container_id, request.name)
        return pb.TakeResponse(
            snapshot=self._snapshot(taken.snapshot),
            paused_s=taken.paused_s,
            copied_bytes=taken.copied.copied_bytes,
            shared_bytes=taken.copied.shared_bytes,
        )

    async def List(self, request: pb.ListRequest, context: object) -> pb.ListResponse:
        return pb.ListResponse(snapshots=[self._snapshot(one) for one in self._engine.branches.list()])

    async def Remove(self, request: pb.RemoveRequest, context: object) -> pb.RemoveResponse:
        await self._engine.branches.remove(request.snapshot)
        return pb.RemoveResponse()

    async def Fork(self, request: pb.ForkRequest, context: object) -> pb.ForkResponse:
        made = await self._engine.branches.fork(
            request.snapshot, pod_id=request.pod_id, count=request.count or 1, start=not request.no_start
        )
        return pb.ForkResponse(containers=[_container(one) for one in made])

    async def Rollback(self, request: pb.RollbackRequest, context: object) -> pb.Container:
        if not (math.isfinite(request.timeout_s) and 0 <= request.timeout_s <= LONGEST_STOP_S):
            raise errors.InvalidArgument(f"timeout {request.timeout_s:g}: must be 0 to {LONGEST_STOP_S:g} s")
        return _container(
            await self._engine.branches.rollback(request.container_id, request.snapshot, request.timeout_s)
        )

    async def Diff(self, request: pb.DiffRequest, context: object) -> AsyncIterator[pb.DiffResponse]:
        found = await self._engine.branches.diff(request.container_id, request.since)
        for at in range(0, len(found), BATCH):
            yield pb.DiffResponse(changes=[_change(one) for one in found[at : at + BATCH]])

    async def Export(self, request: pb.ExportRequest, context: object) -> AsyncIterator[pb.ExportResponse]:
        descriptor = await self._engine.branches.export(request.container_id, request.since)
        try:
            while data := await self._engine.parts.blocking.run(os.read, descriptor, CHUNK_BYTES):
                yield pb.ExportResponse(data=data)
        finally:
            os.close(descriptor)

    async def Commit(self, request: pb.CommitRequest, context: object) -> pb.CommitResponse:
        commit = Commit(changes=tuple(request.changes), author=request.author, message=request.message)
        image = await self._engine.branches.commit(
            request.container_id, request.reference, commit, pause=not request.no_pause
        )
        return pb.CommitResponse(image_id=image.id)

    def _snapshot(self, snapshot: Snapshot) -> pb.Snapshot:
        labels = snapshot.labels
        return pb.Snapshot(
            id=snapshot.name.removeprefix(base.PREFIX),
            name=labels.get(base.NAME, ""),
            container_id=labels.get(base.CONTAINER, ""),
            container_name=labels.get(base.CONTAINER_NAME, ""),
            pod_id=labels.get(base.POD, ""),
            image=labels.get(base.IMAGE, ""),
            bytes=snapshot.usage.bytes,
            inodes=snapshot.usage.inodes,
            created_at=snapshot.created_ns,
            in_use=self._engine.branches.is_used(snapshot),
        )


def _container(container: Container) -> pb.Container:
    config = container.metadata.config
    name = config.metadata.name if config is not None and config.metadata is not None else ""
    return pb.Container(id=container.id, name=name, pod_id=container.sandbox_id)


def _change(found: Changed) -> pb.Change:
    return pb.Change(kind=KINDS[found.change], path=os.fsencode(found.path))
