"""Blobs on the disk, each named by the SHA-256 of its bytes; blocking calls, to be run off the loop.

<root>/content/blobs/sha256/<hex>   whole, checked, read-only
<root>/content/ingest/<n>           being written; swept at start
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from tempfile import mkdtemp

from atoll import errors

_CHUNK = 1 << 20


class Content:
    """The blobs below `root`/content."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "content" / "blobs" / "sha256"
        self._ingest = root / "content" / "ingest"
        self._names = itertools.count()
        self._writing: set[str] = set()
        """Names in the ingest folder that this process writes to."""

    def make(self) -> None:
        """Make the folders and sweep what was being written when the last daemon ended."""
        shutil.rmtree(self._ingest, ignore_errors=True)
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ingest.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, digest: str) -> Path:
        """Where the blob `digest`, which the caller has checked to be one, is or would be."""
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: str, size: int) -> bool:
        """Whether the blob is there with all its bytes."""
        try:
            return self.path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def read(self, digest: str, most: int) -> bytes:
        """The bytes of a small blob, checked again; raises `NotFound` or `DataLoss`."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(most + 1)
        except FileNotFoundError as error:
            raise errors.NotFound(f"{digest}: no such blob") from error
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise errors.DataLoss(
                f"{self.path(digest)}: the blob does not have its digest any more; pull its image again"
            )
        return data

    def digests(self) -> dict[str, int]:
        """Every blob with its size."""
        with os.scandir(self._blobs) as entries:
            return {f"sha256:{entry.name}": entry.stat().st_size for entry in entries}

    def remove(self, digests: Iterable[str]) -> int:
        """Delete blobs; those not there are passed over; the bytes freed."""
        freed = 0
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                path = self.path(digest)
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def keep_only(self, digests: AbstractSet[str]) -> None:
        """Delete every blob that is none of `digests`."""
        self.remove(set(self.digests()) - digests)

    def folder(self) -> Path:
        """A new private folder for an ingest; the caller removes it."""
        for name in list(self._writing):  # each was there when it was added, so that one that is not has ended
            if not os.path.lexists(self._ingest / name):
                self._writing.discard(name)
        folder = Path(mkdtemp(dir=self._ingest))
        self._writing.add(folder.name)
        return folder

    def leftovers(self) -> list[str]:
        """Names in the ingest folder that nobody in this process writes to."""
        return sorted(set(os.listdir(self._ingest)) - self._writing)

    def drop_leftover(self, name: str) -> None:
        """Delete one of them; idempotent."""
        if name not in self.leftovers():
            return
        path = self._ingest / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def put(self, data: bytes, digest: str | None = None) -> str:
        """Keep `data`; raises `DataLoss` where it does not have `digest`; the digest."""
        chunks = iter((data, b""))
        return self.write(lambda: next(chunks), digest, len(data))

    def write(self, next_chunk: Callable[[], bytes], digest: str | None, size: int | None) -> str:
        """Keep the blob that `next_chunk` gives, empty at its end, if it has `digest` and `size`.

        Nothing is left where it fails. Not yet durable: the caller syncs the file system once for all.
        Raises `DataLoss` for wrong bytes, `ResourceExhausted` where the disk is full.
        """
        temporary = self._ingest / f"blob-{next(self._names)}"
        try:
            with open(temporary, "xb", buffering=0) as file:
                self._writing.add(temporary.name)
                actual, written = _copy(next_chunk, file.fileno(), digest, size)
                os.fchmod(file.fileno(), 0o400)
            if (digest is not None and actual != digest) or (size is not None and written != size):
                raise errors.DataLoss(f"{digest}: got {written} bytes with the digest {actual}, not what was asked for")
            os.rename(temporary, self.path(actual))
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            if isinstance(error, OSError) and error.filename is None:
                raise errors.ResourceExhausted(f"{self._ingest}: cannot write a blob: {error.strerror}") from error
            raise
        finally:
            self._writing.discard(temporary.name)
        return actual


def _copy(next_chunk: Callable[[], bytes], descriptor: int, digest: str | None, size: int | None) -> tuple[str, int]:
    state = hashlib.sha256()
    written = 0
    while chunk := next_chunk():
        written += len(chunk)
        if size is not None and written > size:
            raise errors.DataLoss(f"{digest}: has more than the {size} bytes that its manifest says")
        state.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]
    return "sha256:" + state.hexdigest(), written


def chunks_of(descriptor: int) -> Callable[[], bytes]:
    """The bytes of an open file, in chunks."""
    return lambda: os.read(descriptor, _CHUNK)
