"""The daemon's images: list, pull, load, remove."""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from atoll import errors
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import foreign, wire
from atoll.client.model import Image, LayerProgress, LoadedImage

CALL_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 3600.0

OnProgress = Callable[[tuple[LayerProgress, ...]], Awaitable[None] | None]


class Images:
    """What `Client` and `Pod` ask of the image store."""

    def __init__(self, connection: wire.Wire) -> None:
        self._wire = connection

    async def list(self) -> tuple[Image, ...]:
        answer = await self._wire.call(wire.LIST_IMAGES, cri.ListImagesRequest(), timeout_s=CALL_TIMEOUT_S)
        return tuple(Image.read(item) for item in answer.images)

    async def get(self, reference: str) -> Image | None:
        """The image of that name, ID or ID prefix; None where there is none."""
        asked = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference))
        answer = await self._wire.call(wire.IMAGE_STATUS, asked, timeout_s=CALL_TIMEOUT_S)
        return Image.read(answer.image) if answer.HasField("image") and answer.image.id else None

    async def has(self, reference: str) -> bool:
        return await self.get(reference) is not None

    async def runs_as_root(self, reference: str) -> bool:
        """Whether the image names root, or nobody, as its user."""
        asked = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference))
        answer = await self._wire.call(wire.IMAGE_STATUS, asked, timeout_s=CALL_TIMEOUT_S)
        image = answer.image
        return image.username in ("", "root") and image.uid.value == 0

    async def pull(
        self, reference: str, on_progress: OnProgress | None = None, *, username: str = "", password: str = ""
    ) -> str:
        """Fetch an image; its ID. `on_progress` is told all layers at each step. Cancelling stops the pull."""
        if self._wire.peer:
            return await foreign.pull(self._wire, reference, username, password)
        asked = own.PullRequest(reference=reference, username=username, password=password)
        image_id = ""
        answers = self._wire.stream(wire.PULL, asked)
        try:
            async for answer in answers:
                image_id = answer.image_id or image_id
                if on_progress is not None and answer.layers:
                    await _tell(on_progress, answer)
        finally:
            await answers.aclose()
        if not image_id:
            raise errors.Unavailable(f"pull of {reference}: ended without an image; try again")
        return image_id

    async def load(self, path: str | Path, reference: str = "") -> tuple[LoadedImage, ...]:
        """Import every image of a docker or OCI archive, or an OCI layout, that lies on the daemon's host."""
        where = path if os.fspath(path).startswith("/") else f"{os.getcwd()}/{path}"
        asked = own.ImportRequest(path=str(where), reference=reference)
        answer = await self._wire.call(wire.IMPORT, asked, timeout_s=LOAD_TIMEOUT_S)
        return tuple(LoadedImage(id=one.image_id, references=tuple(one.references)) for one in answer.images)

    async def remove(self, reference: str) -> None:
        """Take an image away. Idempotent; raises `FailedPrecondition` for one in use."""
        asked = cri.RemoveImageRequest(image=cri.ImageSpec(image=reference))
        await self._wire.call(wire.REMOVE_IMAGE, asked, timeout_s=CALL_TIMEOUT_S)


async def _tell(on_progress: OnProgress, answer: own.PullResponse) -> None:
    told = on_progress(
        tuple(
            LayerProgress(
                digest=layer.digest,
                current_bytes=layer.current_bytes,
                total_bytes=layer.total_bytes,
                phase=layer.phase,
            )
            for layer in answer.layers
        )
    )
    if inspect.isawaitable(told):
        await told
