"""Images on their way out, and who to be at a registry: `client.registries`."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from atoll import errors
from atoll.api import atoll_images_v1_pb2 as pb
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import wire
from atoll.client.images import OnProgress
from atoll.client.model import LayerProgress

CALL_TIMEOUT_S = 120.0
_SERVICE = "atoll.images.v1.Images"
TAG = wire.Method(_SERVICE, "Tag", pb.TagRequest, pb.TagResponse)
REMOVE = wire.Method(_SERVICE, "Remove", pb.RemoveRequest, pb.RemoveResponse)
PUSH = wire.Method(_SERVICE, "Push", pb.PushRequest, pb.PushResponse)
SAVE = wire.Method(_SERVICE, "Save", pb.SaveRequest, pb.SaveResponse)
LOGIN = wire.Method(_SERVICE, "Login", pb.LoginRequest, pb.LoginResponse)

Format = Literal["oci", "docker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who to be at a registry: a name with a password, or an identity token; all empty for nobody."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def message(self) -> pb.Credentials:
        return pb.Credentials(username=self.username, password=self.password, identity_token=self.identity_token)


NOBODY = Credentials()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push brought: the canonical name, and the digest of the manifest there."""

    target: str
    digest: str


class Registries:
    """What is asked about registries and archives."""

    def __init__(self, connection: wire.Wire) -> None:
        self._wire = connection

    async def details(self, image: str) -> dict[str, object] | None:
        """An image's names, sizes and configuration, as JSON has them; None for one that is not here."""
        asked = cri.ImageStatusRequest(image=cri.ImageSpec(image=image), verbose=True)
        answer = await self._wire.call(wire.IMAGE_STATUS, asked, timeout_s=CALL_TIMEOUT_S)
        if not answer.image.id:
            return None
        found = answer.image
        return {
            "id": found.id,
            "tags": list(found.repo_tags),
            "digests": list(found.repo_digests),
            "size_bytes": found.size,
            "pinned": found.pinned,
            **json.loads(answer.info["info"] or "{}"),
        }

    async def tag(self, image: str, tag: str) -> str:
        """Give an image one more name, which it takes from whichever had it; the name in its canonical form."""
        answer = await self._wire.call(TAG, pb.TagRequest(image=image, tag=tag), timeout_s=CALL_TIMEOUT_S)
        return answer.tag

    async def remove(self, image: str) -> bool:
        """Take a name from an image, or by ID the image with every name; whether the image is gone.

        The last name takes the image with it. Raises `NotFound` for what is not here.
        """
        answer = await self._wire.call(REMOVE, pb.RemoveRequest(image=image), timeout_s=CALL_TIMEOUT_S)
        return answer.gone

    async def push(
        self,
        image: str,
        target: str = "",
        on_progress: OnProgress | None = None,
        *,
        credentials: Credentials = NOBODY,
    ) -> Pushed:
        """Send an image to its registry, by the name `target` where it is given. Cancelling stops the push.

        Blobs that the registry has are not sent. Raises `NotFound` for an image that is not here, `Unauthenticated`,
        `PermissionDenied` and `Unavailable` for what the registry does.
        """
        asked = pb.PushRequest(image=image, target=target, credentials=credentials.message())
        answers = self._wire.stream(PUSH, asked)
        done: Pushed | None = None
        try:
            async for answer in answers:
                if answer.manifest_digest:
                    done = Pushed(target=answer.target, digest=answer.manifest_digest)
                if on_progress is not None and answer.blobs:
                    told = on_progress(tuple(_progress(blob) for blob in answer.blobs))
                    if inspect.isawaitable(told):
                        await told
        finally:
            await answers.aclose()
        if done is None:
            raise errors.Unavailable(f"push of {image}: ended without a word; try again")
        return done

    async def save(self, images: Sequence[str], *, format: Format = "oci") -> AsyncGenerator[bytes]:
        """The bytes of an archive of these images: an OCI layout that docker reads too, or docker's old form."""
        if format not in ("oci", "docker"):
            raise errors.InvalidArgument(f"format {format!r}: must be oci or docker")
        wanted = pb.SaveRequest.DOCKER if format == "docker" else pb.SaveRequest.OCI
        answers = self._wire.stream(SAVE, pb.SaveRequest(images=images, format=wanted))
        try:
            async for answer in answers:
                yield answer.data
        finally:
            await answers.aclose()

    async def check(self, registry: str, credentials: Credentials) -> None:
        """Ask a registry whether it takes a name and a password; raises `Unauthenticated` where not."""
        asked = pb.LoginRequest(registry=registry, credentials=credentials.message())
        await self._wire.call(LOGIN, asked, timeout_s=CALL_TIMEOUT_S)


def _progress(blob: pb.BlobProgress) -> LayerProgress:
    return LayerProgress(
        digest=blob.digest, current_bytes=blob.current_bytes, total_bytes=blob.total_bytes, phase=blob.phase
    )
