"""The directory that a shim and each of its tasks are given.

<dir>/config.json      the OCI spec
      rootfs/          where the root filesystem is mounted
      bootstrap.json   where the shim answers
      shim-binary-path the foreign shim that serves it
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.ledger.tree import remove_tree
from atoll.linux import mounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The bundle of one shim or task; its path ends in its ID."""

    id: str
    namespace: str
    path: Path

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    def create(self, spec: bytes | None) -> None:
        """Make the directory (0700) with its `rootfs`, and the spec where there is one; all of it or nothing.

        Raises `AlreadyExists`, `ResourceExhausted` for a full disk, `Unavailable` for what else the disk refuses.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            raise errors.AlreadyExists(f"bundle {self.path}: exists") from None
        except OSError as error:
            raise _refused(self.path, error) from error
        try:
            self.rootfs.mkdir(mode=0o711)
            if spec is not None:
                self.write_spec(spec)
        except OSError as error:
            remove_tree(self.path)
            raise _refused(self.path, error) from error

    def write_spec(self, spec: bytes) -> None:
        (self.path / "config.json").write_bytes(spec)

    def read_spec(self) -> bytes:
        try:
            return (self.path / "config.json").read_bytes()
        except FileNotFoundError:
            raise errors.NotFound(f"bundle {self.path}: has no config.json") from None

    def delete(self) -> None:
        """Unmount everything below and remove the directory; idempotent, off the event loop."""
        remove_mounted_tree(self.path)


def _refused(path: Path, error: OSError) -> errors.AtollError:
    kind = errors.ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else errors.Unavailable
    return kind(f"bundle {path}: cannot be written: {error.strerror}")


def remove_mounted_tree(path: Path) -> None:
    """Remove a folder and the mounts in it; idempotent, blocks.

    Only the mounts go, never what is mounted. The mount table is read where the usual places were not all.
    Raises `Unavailable` or `FailedPrecondition` naming what is left; a second call goes on there.
    """
    try:
        for usual in ("rootfs", "shm"):
            mounts.unmount(path / usual)
        try:
            remove_tree(path)
        except errors.AtollError:  # another mount, one stacked on another, or one on a file
            mounts.unmount_tree(path)
            remove_tree(path)
    except OSError as error:
        raise errors.Unavailable(f"{path}: cannot be unmounted: {error.strerror} ({error.filename})") from error
