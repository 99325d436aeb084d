"""runtime.v1.ImageService on the image store."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import msgspec

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.cri import lists, views
from atoll.cri.encoded import Encoded
from atoll.engine.engine import Engine
from atoll.image.config import Auth


class ImageService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images = engine.parts.images

    async def ListImages(self, request: pb.ListImagesRequest, context: object) -> pb.ListImagesResponse:
        images = self._images.list(request.filter.image.image)
        return pb.ListImagesResponse(images=[views.image_item(image) for image in images])

    async def StreamImages(self, request: pb.StreamImagesRequest, context: object) -> AsyncGenerator[Encoded]:
        for batch in lists.images(views.image_item(image) for image in self._images.list(request.filter.image.image)):
            yield batch

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: object) -> pb.ImageStatusResponse:
        image = self._images.find(request.image.image)
        if image is None:
            return pb.ImageStatusResponse()
        answer = pb.ImageStatusResponse(image=views.image_item(image))
        if request.verbose:
            answer.info["info"] = msgspec.json.encode(
                {"chainID": image.chain_ids[-1] if image.chain_ids else "", "imageConfig": image.config}
            ).decode()
        return answer

    async def PullImage(self, request: pb.PullImageRequest, context: object) -> pb.PullImageResponse:
        if not request.image.image:
            raise errors.InvalidArgument("image.image: is empty, name the image to pull")
        auth = None
        if request.HasField("auth"):
            given = request.auth
            auth = Auth(username=given.username, password=given.password, identity_token=given.identity_token)
        image = await self._images.pull(request.image.image, auth)
        return pb.PullImageResponse(image_ref=image.id)

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: object) -> pb.RemoveImageResponse:
        await self._engine.remove_image(request.image.image)
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: object) -> pb.ImageFsInfoResponse:
        usage = self._images.usage()
        answer = pb.ImageFsInfoResponse()
        for place in (answer.image_filesystems, answer.container_filesystems):
            filesystem = place.add(timestamp=time.time_ns())
            filesystem.fs_id.mountpoint = str(self._engine.parts.paths.images)
            filesystem.used_bytes.value = usage.content_bytes + usage.snapshots.bytes
            filesystem.inodes_used.value = usage.snapshots.inodes
        return answer
