"""containerd.services.sandbox.v1.Store: the records of sandboxes, for clients that keep theirs with this daemon.

The rules are containerd's; `atoll.sandbox.store` has them. The records of this daemon's own pods can be read, and are
changed by CRI alone. Nothing here touches what runs: a record may be there without a sandbox, and the other way round.
"""

from __future__ import annotations

from atoll import errors
from atoll.api import containerd_services_sandbox_v1_pb2 as pb
from atoll.sandbox.service import Context, namespace_of
from atoll.sandbox.store import SandboxStore
from atoll.sandbox.wire import from_sandbox, to_sandbox

MAX_FILTERS = 128


class StoreService:
    def __init__(self, store: SandboxStore) -> None:
        self._store = store

    async def Create(self, request: pb.StoreCreateRequest, context: Context) -> pb.StoreCreateResponse:
        namespace = namespace_of(context)
        if not request.sandbox.HasField("runtime"):
            raise errors.InvalidArgument(f"sandbox {request.sandbox.sandbox_id[:80]!r}: names no runtime")
        stored = await self._store.create(from_sandbox(request.sandbox), namespace=namespace)
        return pb.StoreCreateResponse(sandbox=to_sandbox(stored))

    async def Update(self, request: pb.StoreUpdateRequest, context: Context) -> pb.StoreUpdateResponse:
        namespace = namespace_of(context)
        self._refuse_pod(namespace, request.sandbox.sandbox_id)
        stored = await self._store.update(from_sandbox(request.sandbox), tuple(request.fields), namespace=namespace)
        return pb.StoreUpdateResponse(sandbox=to_sandbox(stored))

    async def Get(self, request: pb.StoreGetRequest, context: Context) -> pb.StoreGetResponse:
        return pb.StoreGetResponse(
            sandbox=to_sandbox(self._store.get(request.sandbox_id, namespace=namespace_of(context)))
        )

    async def List(self, request: pb.StoreListRequest, context: Context) -> pb.StoreListResponse:
        namespace = namespace_of(context)
        if len(request.filters) > MAX_FILTERS:
            raise errors.InvalidArgument(f"filters: {len(request.filters)} are more than {MAX_FILTERS}")
        found = self._store.list(*request.filters, namespace=namespace)
        return pb.StoreListResponse(list=[to_sandbox(sandbox) for sandbox in found])

    async def Delete(self, request: pb.StoreDeleteRequest, context: Context) -> pb.StoreDeleteResponse:
        namespace = namespace_of(context)
        self._refuse_pod(namespace, request.sandbox_id)
        await self._store.delete(request.sandbox_id, namespace=namespace)
        return pb.StoreDeleteResponse()

    def _refuse_pod(self, namespace: str, sandbox_id: str) -> None:
        if self._store.is_pod(sandbox_id, namespace=namespace):
            raise errors.FailedPrecondition(
                f"sandbox {sandbox_id}: is a pod of this daemon's CRI, whose record goes with it; use RemovePodSandbox"
            )
