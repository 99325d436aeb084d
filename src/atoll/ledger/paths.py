"""The kind that most owners need: a folder, directly in a folder of this daemon.

Everything in `root` is this daemon's: give each kind a folder of its own. The key of an entry is the
name in it, an identifier; unless `owner_of` says otherwise it is the owner's ID.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking
from atoll.identifiers import is_identifier, require_identifier
from atoll.ledger.kind import BlockingKind, Entry, Found
from atoll.ledger.tree import remove_tree


def _same(name: str) -> str:
    return name


class DirectoryKind(BlockingKind):
    """A folder and all in it."""

    limit_s = 60.0

    def __init__(
        self,
        name: str,
        root: Path,
        blocking: Blocking,
        *,
        volatile: bool = False,
        owner_of: Callable[[str], str] = _same,
    ) -> None:
        super().__init__(blocking)
        self.name = name
        self.volatile = volatile
        self._root = root
        self._owner_of = owner_of

    def path(self, key: str) -> Path:
        """Where the resource is; `InvalidArgument` for a key that could lead out of the root."""
        return self._root / require_identifier(key, f"{self.name} key")

    async def exists(self, entry: Entry) -> bool:
        return await self.blocking.run(os.path.lexists, self.path(entry.key))

    async def scan(self) -> list[Found]:
        return await self.blocking.run(self._scan)

    def _scan(self) -> list[Found]:
        try:
            with os.scandir(self._root) as entries:
                names = sorted(entry.name for entry in entries if self._is_ours(entry))
        except FileNotFoundError:
            return []
        return [Found(kind=self.name, key=name, owner=self._owner_of(name)) for name in names]

    async def acquire(self, key: str, *, mode: int = 0o700) -> Path:
        """Make the folder, exactly with `mode`; idempotent. What is there and no folder is `FailedPrecondition`."""
        path = self.path(key)
        try:
            await self.blocking.run(_make_folder, path, mode)
        except OSError as error:
            raise errors.FailedPrecondition(f"{path}: cannot be made: {error.strerror}") from error
        return path

    def free(self, entry: Entry) -> bool:
        """Remove the tree; never through a mount (see `tree.remove_tree`)."""
        remove_tree(self.path(entry.key))
        return True

    def _is_ours(self, entry: os.DirEntry[str]) -> bool:
        return is_identifier(entry.name) and entry.is_dir(follow_symlinks=False)


def _make_folder(path: Path, mode: int) -> None:
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise
    os.chmod(path, mode)
