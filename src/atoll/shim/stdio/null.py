"""A /dev/null for the streams of containers, which is not the host's.

OCI runtimes give a process's streams to its user (fchown(2)): crun 1.8 does so although it is the host's /dev/null,
and who owns that, as root of a pod with users of its own would, may change its mode for the whole host. So it is a
node of its own, in a file system that has no place in any mount namespace.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile

from atoll.linux import syscalls

_NODE = os.makedev(1, 3)
"""The memory devices' null (Documentation/admin-guide/devices.txt)."""


def open_null(flags: int) -> int:
    """A descriptor of it, close-on-exec; the caller closes it. Raises `OSError`."""
    return os.open("null", flags | os.O_CLOEXEC, dir_fd=_folder())


@functools.cache
def _folder() -> int:
    """The folder of the node, for this process's life. Blocks for well under a millisecond, once."""
    with tempfile.TemporaryDirectory(prefix="atoll-null-") as place:
        syscalls.mount("null", place, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "size=4k,mode=700")
        try:
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.mknod("null", stat.S_IFCHR | 0o666, _NODE, dir_fd=folder)
            os.chmod("null", 0o666, dir_fd=folder)  # noqa: S103  past the umask: anybody may write to it
        finally:
            syscalls.umount2(place, syscalls.MNT_DETACH)
    return folder
