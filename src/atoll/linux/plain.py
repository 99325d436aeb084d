"""Small plain files, read without waiting for anybody."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from atoll.linux import syscalls


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a plain file; waits for nobody, whatever is there under that name.

    Raises `OSError`: EINVAL for what is no plain file, EFBIG for more than `limit` bytes.
    """
    # A fifo opens at once without a writer only so (fifo(7)); of a plain file the flag says nothing.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        text = file.read(limit + 1)
    if len(text) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit} bytes", str(path))
    return text


def open_below(path: Path, below: int) -> int:
    """A descriptor to read the plain file `path`, whose last `below` names lead through no symbolic link.

    Raises `OSError`: ELOOP for a link among them, EINVAL for what is no plain file. Waits for nobody, as `read_small`.
    """
    names = path.parts[-below:]
    folder = os.open(path.parents[len(names) - 1], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        fd = syscalls.openat2("/".join(names), flags, resolve=resolve, folder_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return fd
