"""Programs that outlive the process of ours that executed them: one that hangs would do so for ever.

Each is known by its environment, which what it executes inherits: in whose folders it works, and which process waits
for its end.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection
from pathlib import Path

from atoll.linux.process import ProcessId, boot_id, identify, is_alive

VARIABLE = "ATOLL_RUN_BY"


def marked_by(place: Path) -> dict[str, str]:
    """What the environment of a program has in addition that this process executes for a folder of ours."""
    return {VARIABLE: f"{place}/:{os.getpid()}:{_start(os.getpid())}"}


@functools.cache
def _start(pid: int) -> int:
    own = identify(pid)
    assert own is not None, "this process runs"
    return own.start_ticks


def lost(places: Collection[Path]) -> list[ProcessId]:
    """The processes that were executed for folders in `places` by processes that are gone. Blocks."""
    seen = (identify(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return [who for who in seen if who is not None and _is_lost(who, places) and is_alive(who)]


def is_lost(who: ProcessId, places: Collection[Path]) -> bool:
    """Whether exactly this process is one of `lost`. Blocks."""
    return is_alive(who) and _is_lost(who, places) and is_alive(who)


def _is_lost(who: ProcessId, places: Collection[Path]) -> bool:
    mark = f"{VARIABLE}=".encode()
    try:
        environment = Path(f"/proc/{who.pid}/environ").read_bytes()
    except OSError:
        return False
    value = next((one.removeprefix(mark) for one in environment.split(b"\0") if one.startswith(mark)), b"")
    place, _, owner = os.fsdecode(value).rpartition("/:")
    pid, _, start = owner.partition(":")
    if not (place and pid.isdecimal() and start.isdecimal()):
        return False
    if not any(Path(place) == one or one in Path(place).parents for one in places):
        return False
    return not is_alive(ProcessId(pid=int(pid), start_ticks=int(start), boot_id=boot_id()))
