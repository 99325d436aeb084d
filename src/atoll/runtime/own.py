"""What our own shim serves beyond containerd's Sandbox service: pause, resume and update of a pod."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from atoll.api import atoll_shim_v1_pb2 as wire
from atoll.ttrpc.client import Client

SERVICE = "atoll.shim.v1.Shim"
FREEZE_TIMEOUT_S = 15.0
CALL_TIMEOUT_S = 10.0


class OwnClient:
    """Calls our shim; another's answers `Unimplemented`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def pause(self) -> None:
        """Freeze the pod, or every container of a shim without one. Idempotent."""
        await self._client.call(SERVICE, "Pause", wire.PauseRequest(), wire.PauseResponse, timeout=FREEZE_TIMEOUT_S)

    async def resume(self) -> None:
        """Thaw what `pause` froze. Idempotent."""
        await self._client.call(SERVICE, "Resume", wire.ResumeRequest(), wire.ResumeResponse, timeout=CALL_TIMEOUT_S)

    async def update(
        self,
        *,
        resources: bytes,
        updated: bytes,
        annotations: Mapping[str, str],
        removed: Iterable[str],
        all_annotations: bool,
    ) -> None:
        """Change the pod's limits and annotations, all or nothing; the fields are those of `UpdateRequest`."""
        request = wire.UpdateRequest(
            linux_resources=resources,
            updated_resources=updated,
            annotations=wire.Annotations(values=dict(annotations), removed=list(removed), all=all_annotations),
        )
        await self._client.call(SERVICE, "Update", request, wire.UpdateResponse, timeout=CALL_TIMEOUT_S)
