"""What a path to a namespace leads to."""

from __future__ import annotations

import fcntl
import os

from atoll import errors
from atoll.linux import syscalls

NS_GET_NSTYPE = 0xB703


def require_network(path: str) -> None:
    """Raise `InvalidArgument` where `path` is no network namespace (ioctl_ns(2)). A pipe there holds nobody up."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
        finally:
            os.close(fd)
    except OSError as error:
        raise errors.InvalidArgument(f"network namespace {path}: is none ({error.strerror})") from error
    if kind != syscalls.CLONE_NEWNET:
        raise errors.InvalidArgument(f"network namespace {path}: is a namespace of another kind")
