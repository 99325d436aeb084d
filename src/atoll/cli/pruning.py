"""`atoll prune`: what nothing runs in, and what nothing uses."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from atoll import errors
from atoll.cli import show, work
from atoll.cli.outcome import Ended, say
from atoll.client import Client, ContainerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was removed; `bytes` are those of the images' compressed layers."""

    pods: tuple[str, ...]
    images: tuple[str, ...]
    bytes: int


def confirm(*, images: bool, force: bool) -> None:
    """Ask on the terminal; raises `InvalidArgument` where there is none, and ends where the answer is no."""
    if force:
        return
    if not sys.stdin.isatty():
        raise errors.InvalidArgument("prune: there is no terminal to ask on; use -f")
    what = "every pod in which nothing runs" + (", and every image that no container uses" if images else "")
    print(f"Remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Ended(1)


async def prune(client: Client, *, images: bool, as_json: bool) -> int:
    """Remove what is of no use any more; what cannot be removed is told, and holds up nothing."""
    removed: list[str] = []
    for pod, inside in await work.overview(client):
        if not inside or any(one.state in (ContainerState.RUNNING, ContainerState.CREATED) for one in inside):
            continue
        await client.pod_by_id(pod.id, pod.name).remove()
        removed.append(pod.name)
    gone, size = await _images(client) if images else ((), 0)
    done = Pruned(pods=tuple(removed), images=gone, bytes=size)
    if as_json:
        show.dump(done)
    else:
        for name in (*done.pods, *done.images):
            print(name)
        say(f"{len(done.pods)} pods and {len(done.images)} images removed, {show.size(done.bytes)}")
    return 0


async def _images(client: Client) -> tuple[tuple[str, ...], int]:
    used = {(await client.image(one.image)).id for one in await client.containers() if await _has(client, one.image)}
    gone: list[str] = []
    size = 0
    for image in await client.images():
        if image.id in used or image.pinned or any(tag.startswith("docker.io/atoll/") for tag in image.tags):
            continue
        await client.remove_image(image.id)
        gone.append(image.tags[0] if image.tags else show.short(image.id))
        size += image.size_bytes
    return tuple(gone), size


async def _has(client: Client, image: str) -> bool:
    try:
        await client.image(image)
    except errors.NotFound:
        return False
    return True
