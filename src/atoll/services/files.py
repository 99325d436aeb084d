"""atoll.files.v1.Files: an agent for as long as the call lasts."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from atoll.api import atoll_files_v1_pb2 as pb
from atoll.engine.engine import Engine


class FilesService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Open(self, request: pb.OpenRequest, context: object) -> AsyncGenerator[pb.OpenResponse]:
        container = self._engine.containers.get(request.container_id)
        pod = self._engine.pod_of(container)
        async with self._engine.files.open(pod, container, request.owner) as session:
            with self._engine.parts.uses.using(container.sandbox_id):
                yield pb.OpenResponse(socket=str(session.socket))
                await session.wait()
