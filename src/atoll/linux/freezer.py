"""The freezer of a cgroup, given by its folders: one a version 1 hierarchy, or the single version 2 folder.

Version 1 has `freezer.state` in a hierarchy of its own, version 2 `cgroup.freeze` and `cgroup.events`. Where a host has
both, version 1's counts. Both stop the cgroups below too. A process that version 1 holds dies of SIGKILL only when
it is thawed; one that version 2 holds dies at once. A folder that went holds nobody.
Source: freezer-subsystem.rst of the kernel's cgroup-v1 guide, cgroup-v2.rst, "Core Interface Files".
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

V1_STATE = "freezer.state"
V2_STATE = "cgroup.freeze"
PAUSE_S = 0.005
POLLS_TO_LOOSEN = 20


def has_freezer(folders: tuple[Path, ...]) -> bool:
    """Whether processes in the cgroup can be frozen at all."""
    return _state(folders) is not None


def freeze(folders: tuple[Path, ...]) -> None:
    """Ask that every process in the cgroup and below stands; `is_frozen` tells when all do. Raises `OSError`."""
    state = _state(folders)
    if state is not None:
        _write(state, "FROZEN" if state.name == V1_STATE else "1")


def is_frozen(folders: tuple[Path, ...]) -> bool:
    """Whether all its processes stand, after somebody asked for it; true where no freezer tells.

    A version 1 freezer can stay at FREEZING for good when a fork runs beside it, so it is asked again each time.
    """
    state = _state(folders)
    if state is None:
        return True
    with contextlib.suppress(FileNotFoundError):
        if state.name == V1_STATE:
            _write(state, "FROZEN")
            return state.read_text(encoding="ascii").strip() == "FROZEN"
        return "frozen 1" in state.with_name("cgroup.events").read_text(encoding="ascii")
    return True


class Freezing:
    """A freeze under way: `poll` it every `PAUSE_S` until it says that every process stands."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        """Asks for it; raises `OSError`."""
        self.folders = folders
        self._polls = 0
        freeze(folders)

    def poll(self) -> bool:
        """Whether all stand now.

        A thread that calls exec waits for the others of its process to end, which they cannot where version 1 holds
        them (de_thread in fs/exec.c): then nothing stands and nothing goes on, until all are let go for a moment.
        """
        self._polls += 1
        state = _state(self.folders)
        if self._polls % POLLS_TO_LOOSEN == 0 and state is not None and state.name == V1_STATE:
            thaw(self.folders)
            return False
        return is_frozen(self.folders)


def is_asked(folders: tuple[Path, ...]) -> bool:
    """Whether somebody asked that it stands, whether it does yet or not; changes nothing."""
    state = _state(folders)
    if state is None:
        return False
    with contextlib.suppress(FileNotFoundError):
        return state.read_text(encoding="ascii").strip() not in ("THAWED", "0")
    return False


def thaw(folders: tuple[Path, ...]) -> None:
    """Let its processes go on, but for those whom a cgroup above or below holds; idempotent. Raises `OSError`."""
    state = _state(folders)
    if state is not None:
        _write(state, "THAWED" if state.name == V1_STATE else "0")


def release_killed(folders: tuple[Path, ...]) -> None:
    """Let go whatever a version 1 freezer holds in the cgroup and below, so that a SIGKILL takes effect."""
    for folder in folders:
        if (folder / V1_STATE).exists():
            for parent, _, _ in os.walk(folder):
                _write(Path(parent, V1_STATE), "THAWED")


def _state(folders: tuple[Path, ...]) -> Path | None:
    states = (folder / name for name in (V1_STATE, V2_STATE) for folder in folders)
    return next((state for state in states if state.exists()), None)


def _write(state: Path, word: str) -> None:
    try:
        state.write_text(word, encoding="ascii")
    except OSError as error:
        # ENODEV: the cgroup was removed while the file was open.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise OSError(error.errno, error.strerror, str(state)) from error
