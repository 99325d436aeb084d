"""The images of the store in memory: every lookup and list is answered here, without the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from atoll import errors
from atoll.image import records
from atoll.image.model import Image
from atoll.image.reference import Reference, is_digest

MIN_PREFIX_CHARACTERS = 4
_HEX = frozenset("0123456789abcdef")


class ImageIndex:
    """Images by ID and by canonical name, as the database has them."""

    def __init__(self) -> None:
        self._pins: set[str] = set()
        self._pinned_names: frozenset[str] = frozenset()
        self._images: dict[str, Image] = {}
        self._stored: dict[str, records.Stored] = {}
        self._names: dict[str, str] = {}

    def __iter__(self) -> Iterator[Image]:
        return iter(self._images.values())

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._images

    def stored(self, image_id: str) -> records.Stored:
        return self._stored[image_id]

    def put(self, stored: records.Stored, names: Iterable[str], *, pinned: bool) -> Image:
        """Enter an image, or the newer facts about it, and move `names` to it."""
        known = self._images.get(stored.id)
        self._stored[stored.id] = stored
        if pinned:
            self._pins.add(stored.id)
        self._images[stored.id] = _image(stored, (), pinned=stored.id in self._pins)
        if known is not None:
            names = {*names, *known.repo_tags, *known.repo_digests}
        return self.name(stored.id, names)

    def name(self, image_id: str, names: Iterable[str]) -> Image:
        """Move `names` to an image."""
        former: set[str] = set()
        for name in names:
            if (before := self._names.get(name)) is not None and before != image_id:
                former.add(before)
            self._names[name] = image_id
        for one in (*former, image_id):
            self._refresh(one)
        return self._images[image_id]

    def forget_names(self, names: Iterable[str]) -> None:
        for name in names:
            if (image_id := self._names.pop(name, None)) is not None:
                self._refresh(image_id)

    def forget(self, image_id: str) -> None:
        """Drop an image with its names."""
        self._images.pop(image_id, None)
        self._stored.pop(image_id, None)
        self._pins.discard(image_id)
        for name in [name for name, owner in self._names.items() if owner == image_id]:
            del self._names[name]

    def pin(self, image_id: str, pinned: bool) -> None:
        (self._pins.add if pinned else self._pins.discard)(image_id)
        self._refresh(image_id)

    def pin_names(self, names: frozenset[str]) -> None:
        """Whatever has one of these canonical names is pinned from now on, and nothing else by its name."""
        self._pinned_names = names
        for image_id in self._images:
            self._refresh(image_id)

    def find(self, text: str) -> tuple[Image, str | None] | None:
        """The image that `text` names, and the canonical name that it was found by (None for an ID).

        `text` is a reference in any form, an image ID, or a prefix of at least four digits of one; a
        name wins over a prefix. Raises `InvalidArgument` where a prefix fits several or `text` is malformed.
        """
        if (image := self._images.get(text)) is not None:
            return image, None
        if is_digest(text):
            return self._by_manifest(text)
        digits = text.removeprefix("sha256:")
        is_hex = len(digits) >= MIN_PREFIX_CHARACTERS and _HEX.issuperset(digits)
        if not text.startswith("sha256:") and len(digits) != 64:
            name = _lookup_name(Reference.parse(text))
            if (owner := self._names.get(name)) is not None:
                return self._images[owner], name
        if not is_hex or len(digits) > 64:
            return None
        return self._by_prefix(digits)

    def _by_prefix(self, digits: str) -> tuple[Image, None] | None:
        fitting = [image for image_id, image in self._images.items() if image_id.startswith("sha256:" + digits)]
        if len(fitting) > 1:
            raise errors.InvalidArgument(f"image {digits}: {len(fitting)} image ids start so; give more digits")
        return (fitting[0], None) if fitting else None

    def _by_manifest(self, digest: str) -> tuple[Image, None] | None:
        for image in self._images.values():
            if image.manifest_digest == digest or any(name.endswith("@" + digest) for name in image.repo_digests):
                return image, None
        return None

    def _names_of(self, image_id: str) -> tuple[str, ...]:
        return tuple(name for name, owner in self._names.items() if owner == image_id)

    def _refresh(self, image_id: str) -> None:
        names = self._names_of(image_id)
        pinned = image_id in self._pins or not self._pinned_names.isdisjoint(names)
        self._images[image_id] = _image(self._stored[image_id], names, pinned=pinned)


def _lookup_name(reference: Reference) -> str:
    """The canonical name that stands for `reference`: by its digest where it has one, else by its tag."""
    if reference.digest is not None:
        return str(reference.with_digest(reference.digest))
    return str(reference)


def canonical_names(reference: Reference, digest: str) -> tuple[str, ...]:
    """What an image that `reference` named, and whose manifest or index has `digest`, is called."""
    by_digest = str(reference.with_digest(digest))
    if reference.digest is not None or reference.tagged is None:
        return (by_digest,)
    return (reference.tagged, by_digest)


def _image(stored: records.Stored, names: Iterable[str], *, pinned: bool) -> Image:
    names = sorted(names)
    return Image(
        id=stored.id,
        repo_tags=tuple(name for name in names if "@" not in name),
        repo_digests=tuple(name for name in names if "@" in name),
        size=stored.size,
        config=stored.config,
        chain_ids=stored.chain_ids,
        created=stored.created,
        pinned=pinned,
        manifest_digest=stored.manifest_digest,
    )
