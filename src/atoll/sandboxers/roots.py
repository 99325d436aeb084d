"""Root filesystems of pause containers: snapshots of the pause image.

They are writable, although the container sees its root read-only: an OCI runtime makes the mount points that the image
lacks. The key of a snapshot is `snapshot_key` of its sandbox, so that no container's snapshot is ever taken for it.
"""

from __future__ import annotations

from atoll import errors
from atoll.image.store import ImageStore
from atoll.linux.userns import IDMap
from atoll.oci.builder import ImageDefaults
from atoll.sandboxers.pause import PauseRoot
from atoll.snapshot.mount import with_users
from atoll.snapshot.snapshotter import Snapshotter


def snapshot_key(sandbox_id: str) -> str:
    """The key of a pause container's snapshot, which an entry in the ledger has to name."""
    return f"pause.{sandbox_id}"


class ImageRoots:
    """Snapshots of the image that `reference` names, which must be in the store; implements `RootProvider`."""

    def __init__(self, images: ImageStore, snapshotter: Snapshotter, reference: str) -> None:
        self._images = images
        self._snapshotter = snapshotter
        self._reference = reference

    async def prepare(self, sandbox_id: str, users: IDMap | None) -> PauseRoot:
        image = self._images.get(self._reference)
        if image.top is None:
            raise errors.FailedPrecondition(f"pause image {self._reference}: has no layers, so nothing to run")
        mounts = await self._snapshotter.prepare(snapshot_key(sandbox_id), image.top, users=users)
        config = image.config
        return PauseRoot(
            mounts=with_users(mounts, users),
            image=ImageDefaults(
                entrypoint=config.entrypoint,
                cmd=config.cmd,
                env=config.env,
                user=config.user,
                working_dir=config.working_dir,
            ),
            image_name=self._reference,
            layers=tuple(self._snapshotter.fs(chain) for chain in reversed(image.chain_ids)),
        )

    async def remove(self, sandbox_id: str) -> None:
        await self._snapshotter.remove(snapshot_key(sandbox_id))
