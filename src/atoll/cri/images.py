"""runtime.v1.ImageService on the image store.

An image is the same for every runtime handler: the one that an image spec names must be there where something is to be
pulled, and changes nothing.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator

import msgspec

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.container.status import State
from atoll.cri import lists, views
from atoll.cri.encoded import Encoded
from atoll.engine.engine import Engine
from atoll.image.config import Auth
from atoll.image.model import Image
from atoll.image.reference import Reference
from atoll.image.skopeo import host_of
from atoll.snapshot.records import Usage


class ImageService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images = engine.parts.images

    async def ListImages(self, request: pb.ListImagesRequest, context: object) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=[views.image_item(image) for image in self._selected(request.filter)])

    async def StreamImages(self, request: pb.StreamImagesRequest, context: object) -> AsyncGenerator[Encoded]:
        for batch in lists.images(views.image_item(image) for image in self._selected(request.filter)):
            yield batch

    def _selected(self, wanted: pb.ImageFilter) -> tuple[Image, ...]:
        """What cannot be a name, or is the prefix of several IDs, selects nothing."""
        try:
            return self._images.list(wanted.image.image)
        except errors.InvalidArgument:
            return ()

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: object) -> pb.ImageStatusResponse:
        image = self._images.find(_named(request.image))
        if image is None:
            return pb.ImageStatusResponse()
        answer = pb.ImageStatusResponse(image=views.image_item(image))
        if request.verbose:
            info = {
                "chainID": image.top or "",
                "manifestDigest": image.manifest_digest,
                "imageSpec": msgspec.Raw(await self._images.document(image)),
            }
            answer.info["info"] = msgspec.json.encode(info).decode()
        return answer

    async def PullImage(self, request: pb.PullImageRequest, context: object) -> pb.PullImageResponse:
        name = _named(request.image)
        handlers = self._engine.parts.config.runtimes
        if request.image.runtime_handler and request.image.runtime_handler not in handlers:
            raise errors.InvalidArgument(
                f"image.runtime_handler {request.image.runtime_handler!r}: is none of {', '.join(sorted(handlers))}"
            )
        auth = credentials(request.auth, name) if request.HasField("auth") else None
        image = await self._engine.pull_image(name, auth)
        return pb.PullImageResponse(image_ref=image.id)

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: object) -> pb.RemoveImageResponse:
        """Whatever it was named by, the image goes with every name that it has."""
        image = self._images.find(_named(request.image))
        if image is not None:
            await self._engine.remove_image(image.id)
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: object) -> pb.ImageFsInfoResponse:
        images = self._images.usage()
        answer = pb.ImageFsInfoResponse()
        self._add(answer.image_filesystems.add(), images.blobs + images.snapshots)
        containers = self._engine.containers.list()
        sizes = await self._engine.usages.layers.sizes(
            [(one.record.snapshot_key, one.status.get().state is State.EXITED) for one in containers]
        )
        known = [size for size in sizes if size is not None]
        total = Usage(bytes=sum(size.bytes for size in known), inodes=sum(size.inodes for size in known))
        self._add(answer.container_filesystems.add(), total)
        return answer

    def _add(self, filesystem: pb.FilesystemUsage, usage: Usage) -> None:
        filesystem.timestamp = time.time_ns()
        filesystem.fs_id.mountpoint = str(self._engine.parts.paths.images)
        filesystem.used_bytes.value = usage.bytes
        filesystem.inodes_used.value = usage.inodes


def _named(image: pb.ImageSpec) -> str:
    if not image.image:
        raise errors.InvalidArgument("image.image: is empty, name an image")
    return image.image


def credentials(given: pb.AuthConfig, name: str) -> Auth | None:
    """The credentials of a pull; None where they are meant for another registry, as `server_address` says."""
    if given.server_address and host_of(given.server_address) != Reference.parse(name).domain:
        return None
    if given.registry_token:
        raise errors.InvalidArgument("auth.registry_token: is not supported; give identity_token, or user and password")
    username, password = given.username, given.password
    if given.auth and not username:
        try:
            username, _, password = base64.b64decode(given.auth, validate=True).decode().rstrip("\0").partition(":")
        except ValueError:
            raise errors.InvalidArgument("auth.auth: is not base64 of user:password") from None
    if not (username or password or given.identity_token):
        return None
    return Auth(username=username, password=password, identity_token=given.identity_token)
