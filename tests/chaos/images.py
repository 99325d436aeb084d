"""The life of images: pulled and imported, with a layer that both have, used and removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.chaos.life import Life


@dataclass(slots=True)
class ImageLife(Life):
    """Two images that share a layer; each is whole when it is answered, and gone with its space when it is removed."""

    ABOUT: ClassVar[str] = "images: pull, import, removal"
    CAUSES: ClassVar[tuple[str, ...]] = ("image/record", "pull/fetch:done", "import/take:done")

    def lead_once(self) -> None:
        world = self.world
        self.tried(self._pull)
        self.tried(self._import)
        self._require_whole()
        for reference in (world.reference, world.archived):
            self.tried(lambda name=reference: self._remove(name))
        self.remove()

    def remove(self) -> None:
        left = {self.world.reference, self.world.archived} & self._names()
        assert not left, f"images that were removed: {left}"

    def _names(self) -> set[str]:
        return {name for image in self.tried(self.cri.list_images) for name in image.repo_tags}

    def _pull(self) -> None:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=self.world.reference))
        self.cri.images.call("PullImage", request, pb.PullImageResponse)
        assert self.world.reference in self._names()

    def _import(self) -> None:
        request = own.ImportRequest(path=str(self.world.archive))
        self.cri.own.call("Import", request, own.ImportResponse)
        assert self.world.archived in self._names()

    def _remove(self, reference: str) -> None:
        request = pb.RemoveImageRequest(image=pb.ImageSpec(image=reference))
        self.cri.images.call("RemoveImage", request, pb.RemoveImageResponse)
        assert reference not in self._names()

    def _require_whole(self) -> None:
        """What the records promise is on the disk: every file of the images' layers."""
        snapshots = self.world.roots.root / "images" / "snapshots"
        for path, content in self.world.marks:
            found = [one for one in snapshots.glob(f"*/fs/{path}") if one.read_bytes() == content]
            assert found, f"{path}: is in no layer"
