"""atoll.images.v1.Images on the image store: names, pushes, archives, and the question whether credentials are good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from atoll import errors
from atoll.api import atoll_images_v1_pb2 as pb
from atoll.concurrency import TaskOwner
from atoll.engine.engine import Engine
from atoll.image import export, push
from atoll.image.config import Auth
from atoll.image.progress import Phase, Progress
from atoll.image.reference import Reference

PROGRESS_INTERVAL_S = 0.1
MESSAGE_BYTES = 1 << 20
_PHASES = {Phase.UPLOADING: "pushing"}


class ImagesService:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images = engine.parts.images

    async def Tag(self, request: pb.TagRequest, context: object) -> pb.TagResponse:
        image = await self._images.tag(request.image, request.tag)
        return pb.TagResponse(image_id=image.id, tag=str(Reference.parse(request.tag)))

    async def Remove(self, request: pb.RemoveRequest, context: object) -> pb.RemoveResponse:
        image = self._images.find(request.image)
        if image is None:
            raise errors.NotFound(f"image {request.image!r}: is not here; `atoll images` shows what is")
        await self._engine.remove_image(request.image)
        return pb.RemoveResponse(gone=self._images.find(image.id) is None)

    async def Push(self, request: pb.PushRequest, context: object) -> AsyncGenerator[pb.PushResponse]:
        target = Reference.parse(request.target or request.image)
        auth = _auth(request.credentials)
        store = self._images.outward
        blobs: dict[str, Progress] = {}

        def note(progress: Progress) -> None:
            blobs[progress.digest] = progress

        async with store.held(request.image) as held, TaskOwner("push") as tasks:
            pushing = tasks.spawn(push.push(store, held, target, auth, note), name=f"push/{target}")
            sent: dict[str, Progress] = {}
            while not pushing.done():
                await asyncio.wait({pushing}, timeout=PROGRESS_INTERVAL_S)
                if blobs != sent:
                    sent = dict(blobs)
                    yield pb.PushResponse(blobs=[_blob(one) for one in sent.values()])
            digest = pushing.result()
            yield pb.PushResponse(
                blobs=[_blob(one) for one in blobs.values()], target=str(target), manifest_digest=digest
            )

    async def Save(self, request: pb.SaveRequest, context: object) -> AsyncGenerator[pb.SaveResponse]:
        if not request.images:
            raise errors.InvalidArgument("save: names no image")
        store = self._images.outward
        archive = export.docker_archive if request.format == pb.SaveRequest.DOCKER else export.oci_archive
        async with contextlib.AsyncExitStack() as stack:
            held = [await stack.enter_async_context(store.held(name)) for name in request.images]
            chunks = await stack.enter_async_context(contextlib.aclosing(archive(store, held)))
            waiting = bytearray()
            async for chunk in chunks:
                waiting += chunk
                if len(waiting) >= MESSAGE_BYTES:
                    yield pb.SaveResponse(data=bytes(waiting))
                    waiting.clear()
            yield pb.SaveResponse(data=bytes(waiting))

    async def Login(self, request: pb.LoginRequest, context: object) -> pb.LoginResponse:
        auth = _auth(request.credentials)
        if auth is None or not auth.username:
            raise errors.InvalidArgument(f"login to {request.registry}: names no user; give a name and a password")
        await push.log_in(self._images.outward, request.registry, auth)
        return pb.LoginResponse()


def _auth(given: pb.Credentials) -> Auth | None:
    if not (given.username or given.password or given.identity_token):
        return None
    return Auth(username=given.username, password=given.password, identity_token=given.identity_token)


def _blob(progress: Progress) -> pb.BlobProgress:
    return pb.BlobProgress(
        digest=progress.digest,
        current_bytes=progress.done,
        total_bytes=max(progress.total, 0),
        phase=_PHASES.get(progress.phase, str(progress.phase)),
    )
