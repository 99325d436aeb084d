"""Stop signals: the CRI's numbers, names and the kernel's numbers."""

from __future__ import annotations

import signal

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri

DEFAULT = signal.SIGTERM


def number(name: str) -> int:
    """The kernel's number of `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` or `SIGRTMAX-1`; raises `InvalidArgument`."""
    text = name.strip().upper()
    if text.isdigit():
        value = int(text)
    else:
        text = text if text.startswith("SIG") else f"SIG{text}"
        base, sign, offset = (
            text.replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-").partition("+" if "RTMIN" in text else "-")
        )
        try:
            value = int(signal.Signals[base]) + (int(f"{sign}{offset}") if offset else 0)
        except (KeyError, ValueError):
            raise errors.InvalidArgument(f"signal {name!r}: there is no such signal") from None
    if not 1 <= value <= signal.SIGRTMAX:
        raise errors.InvalidArgument(f"signal {name!r}: there is no such signal")
    return value


def resolve(asked: int, image: str) -> int:
    """The stop signal of a container: the CRI's enum value where set, else the image's name, else SIGTERM."""
    if asked:
        return number(enum_name(asked))
    return number(image) if image else DEFAULT


def enum_name(value: int) -> str:
    """The name of a CRI signal value; raises `InvalidArgument` for an unknown one."""
    if value not in cri.Signal.values():
        raise errors.InvalidArgument(f"stop signal {value}: is not a signal of the CRI")
    return cri.Signal.Name(value)
