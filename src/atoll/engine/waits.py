"""What the operations on a pod wait on at this moment: the daemon's own tasks, and processes of others.

A process is the pod's business where it descends from the daemon or a shim and names the pod or one of its containers,
or a parent of it does: CNI plugins in CNI_CONTAINERID, OCI runtimes and shims in their arguments. What runs inside a
container is left out. A task is shown as the chain of our functions that it is in. Sources: proc(5) (environ, cmdline,
wchan); the Python reference on coroutines (cr_await).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from atoll.blocker import Blocker
from atoll.engine.engine import Engine
from atoll.engine.phases import Phase, Story
from atoll.linux import process

MAX_PROCESSES = 64
MAX_FRAMES = 12
COMMAND_BYTES = 400
RUNTIMES = frozenset({"crun", "runc", "youki", "runsc", "kata-runtime"})
PACKAGE = str(Path(__file__).parents[1]) + os.sep


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One step that lasts, with the functions that its task is in, the innermost last."""

    story: Story
    phase: Phase
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All that can be said of a pod now."""

    pod_id: str
    name: str
    state: str
    reason: str
    stories: tuple[Story, ...]
    waiting: tuple[Waiting, ...]
    processes: tuple[Blocker, ...]
    debts: tuple[str, ...]


async def account(engine: Engine, pod_id: str) -> Account:
    """What a pod does and waits on, also one that is being made or is gone."""
    parts = engine.parts
    stories = parts.stories.of(pod_id)
    waiting = tuple(
        Waiting(story=story, phase=phase, frames=_frames(phase.task) or _own(phase))
        for story in stories
        for phase in story.phases
        if phase.duration_ns < 0
    )
    pod = engine.pods.find(pod_id)
    containers = [one.id for one in engine.containers.list() if one.sandbox_id == pod_id]
    subjects = {pod_id, *containers, *(one.story.subject for one in waiting)}
    processes = await parts.blocking.run(blockers, subjects) if waiting else ()
    return Account(
        pod_id=pod_id,
        name=parts.stories.name_of(pod_id),
        state=pod.state.name.lower() if pod is not None else "being made" if waiting else "gone",
        reason=pod.reason if pod is not None else "",
        stories=stories,
        waiting=waiting,
        processes=processes,
        debts=tuple(str(debt) for owner in (pod_id, f"net.{pod_id}") for debt in parts.ledger.debts(owner)),
    )


# --- our own side ---


def _frames(task: asyncio.Task[Any] | None) -> tuple[str, ...]:
    """The functions of this package that a task is in, outermost first."""
    found: list[str] = []
    awaited: object = task.get_coro() if task is not None else None
    for _ in range(200):
        code, frame = _place(awaited)
        if awaited is None:
            break
        if code is not None and frame is not None and code.co_filename.startswith(PACKAGE):
            found.append(_words(code, frame))
        awaited = _inside(awaited)
    return tuple(found[-MAX_FRAMES:])


def _own(phase: Phase) -> tuple[str, ...]:
    """Where a step is of whose task nothing can be seen, because gRPC's own coroutines are around it."""
    frame = phase.frame
    return (_words(frame.f_code, frame),) if frame is not None else ()


def _words(code: CodeType, frame: FrameType) -> str:
    return f"{code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} {code.co_qualname}"


def _place(awaited: object) -> tuple[CodeType | None, FrameType | None]:
    """Of a coroutine, an asynchronous generator or a generator, gRPC's too, which are not Python's own."""
    for kind in ("cr", "ag", "gi"):
        code: object = getattr(awaited, f"{kind}_code", None)
        frame: object = getattr(awaited, f"{kind}_frame", None)
        if isinstance(code, CodeType) and isinstance(frame, FrameType):
            return code, frame
    return None, None


def _inside(awaited: object) -> object:
    for name in ("cr_await", "ag_await", "gi_yieldfrom"):
        found: object = getattr(awaited, name, None)
        if found is not None:
            return found
    return None


# --- the others ---


def blockers(subjects: Iterable[str]) -> tuple[Blocker, ...]:
    """The processes that work for these pods and containers outside of them, parents first. Blocks."""
    words = [subject.encode() for subject in subjects]
    stats = {seen.pid: seen for seen in map(process.stat, _pids()) if seen is not None}
    shims = {pid for pid in stats if _is_shim(_arguments(pid))}
    ours = _with_descendants({os.getpid(), *shims}, stats) - {os.getpid()}
    named = _with_descendants({pid for pid in ours if _names(pid, words)}, stats)
    found = [_blocker(stats[pid]) for pid in sorted(named) if not _is_inside(pid, words)]
    return tuple(found[:MAX_PROCESSES])


def _with_descendants(roots: set[int], stats: Mapping[int, process.ProcessStat]) -> set[int]:
    found = set(roots)
    while fresh := {pid for pid, seen in stats.items() if seen.parent in found} - found:
        found |= fresh
    return found


def _pids() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _names(pid: int, words: Iterable[bytes]) -> bool:
    """Whether its arguments, or what a CNI plugin is told, name one of these."""
    arguments = _read(pid, "cmdline")
    told = [one for one in _read(pid, "environ").split(b"\0") if one.startswith(b"CNI_CONTAINERID=")]
    return any(word in arguments or any(word in one for one in told) for word in words)


def _is_inside(pid: int, words: Iterable[bytes]) -> bool:
    """Whether it is a process of a container, or holds a pod's namespaces: its cgroup is the pod's."""
    groups = _read(pid, "cgroup")
    return any(word in groups for word in words)


def _arguments(pid: int) -> list[bytes]:
    return _read(pid, "cmdline").rstrip(b"\0").split(b"\0")


def _is_shim(arguments: list[bytes]) -> bool:
    return os.path.basename(arguments[0]).startswith(b"containerd-shim") or any(
        b"atoll.shim" in one for one in arguments
    )


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def _blocker(seen: process.ProcessStat) -> Blocker:
    arguments = _arguments(seen.pid)
    command = b" ".join(arguments)[:COMMAND_BYTES].decode(errors="replace")
    channel = _read(seen.pid, "wchan").decode(errors="replace")
    booted_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return Blocker(
        pid=seen.pid,
        parent=seen.parent,
        role=_role(seen.pid, arguments),
        command=command or f"[{seen.command}]",
        state=_STATES.get(seen.state, seen.state),
        wait_channel="" if channel == "0" else channel,
        age_s=max(0.0, booted_s - seen.start_ticks / os.sysconf("SC_CLK_TCK")),
    )


def _role(pid: int, arguments: list[bytes]) -> str:
    names = {os.path.basename(one).decode(errors="replace") for one in arguments[:2]}  # a script's is the second one
    if b"\0CNI_COMMAND=" in b"\0" + _read(pid, "environ"):
        return "CNI plugin"
    if _is_shim(arguments):
        return "shim"
    return "program" if names.isdisjoint(RUNTIMES) else "OCI runtime"


_STATES: Mapping[str, str] = {
    "R": "runs",
    "S": "sleeps",
    "D": "waits in the kernel, cannot be killed",
    "T": "is stopped",
    "t": "is traced",
    "Z": "has ended",
    "I": "idle",
}
