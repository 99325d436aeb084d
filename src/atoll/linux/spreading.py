"""Where ext4 lays the folders of a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

# linux/fs.h
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_TOPDIR_FL = 0x20000
_FLAGS = struct.Struct("l")


def spread(folder: Path) -> None:
    """Have ext4 lay the folders in `folder` apart from each other (chattr(1), `T`); elsewhere nothing happens. Blocks.

    Beside a folder that was removed within minutes a new file takes hundreds of microseconds: the kernel looks at every
    inode that was freed there, which it does not use again yet, before it finds another one.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # of a file system that has no such flag
            flags = _FLAGS.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, _FLAGS.pack(0)))[0]
            if not flags & _FS_TOPDIR_FL:
                fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags | _FS_TOPDIR_FL))
    finally:
        os.close(fd)
