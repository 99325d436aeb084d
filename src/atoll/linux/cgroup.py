"""One cgroup, wherever its controllers live: made, joined, limited, frozen, killed and removed as one.

A `Cgroup` is a path that exists in every hierarchy. A process joins it by itself before it calls exec: in
version 1 by writing 0 to `tasks`, which moves the one thread it has and waits for nobody; a write to
`cgroup.procs` waits for an RCU grace period (10 ms and more, see `expedite_attach`). In a hybrid layout
the version 2 hierarchy has no controllers to offer and is not joined.
Source: cgroups(7), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.linux import freezer
from atoll.linux.cgroup_layout import Hierarchies, Layout, validated

DELETE_TIMEOUT_S = 5.0
FREEZE_TIMEOUT_S = 5.0
KILL_ROUNDS = 50
EXPEDITE_WRITES = 3
PAUSE_S = 0.005
CPU_SHARES_TO_WEIGHT = (2, 262142, 9999)
V1_UNLIMITED = 0x7FFFFFFFFFFFF000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a cgroup grants; None leaves a setting as it is. Times in µs, memory in bytes; -1 lifts a limit.

    `memory_and_swap_bytes` bounds both together, as version 1 counts. `cpu_shares` are version 1's (1024 is one part).
    """

    cpu_shares: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    memory_bytes: int | None = None
    memory_and_swap_bytes: int | None = None
    pids: int | None = None


Setting = tuple[str, str, int | str]
"""A controller, its file and what is written there."""


def cpu_weight(shares: int) -> int:
    """The version 2 weight (1-10000) that stands for version 1 `shares` (2-262144), as OCI runtimes convert."""
    low, span, scale = CPU_SHARES_TO_WEIGHT
    return 1 + (min(max(shares, low), low + span) - low) * scale // span


class Cgroup:
    """The cgroup at `path` in every hierarchy of this host.

    Raises `InvalidArgument` for a path that could leave the hierarchies. Errors of the kernel are `OSError` with
    the file's path. Methods block; `freeze`, `kill` and `delete` up to their bounds.
    """

    def __init__(self, path: str, hierarchies: Hierarchies) -> None:
        self.path = validated(path)
        self._hierarchies = hierarchies

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r})"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Its folder in every hierarchy, there or not."""
        return tuple(mount / self.path[1:] for mount in self._hierarchies.mounts)

    def folder(self, controller: str) -> Path | None:
        """Its folder where `controller` is; None where the host lacks that controller."""
        if (mount := self._hierarchies.v1.get(controller)) is not None:
            return mount / self.path[1:]
        return self.unified if controller in self._hierarchies.unified_controllers else None

    @property
    def unified(self) -> Path | None:
        """Its folder in the version 2 hierarchy, in a hybrid layout too."""
        mount = self._hierarchies.unified
        return None if mount is None else mount / self.path[1:]

    @property
    def is_v2(self) -> bool:
        return self._hierarchies.layout is Layout.V2

    def exists(self) -> bool:
        """Whether any hierarchy has it."""
        return any(folder.is_dir() for folder in self.folders)

    def create(self) -> None:
        """Make it and its parents in every hierarchy, ready to be joined; idempotent."""
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
        if self.is_v2:
            self._enable_controllers()
        if (cpuset := self._hierarchies.v1.get("cpuset")) is not None:
            self._inherit_cpuset(cpuset)

    def _enable_controllers(self) -> None:
        # A child has the controllers that its parent's subtree_control names, down from the root.
        folder = self._hierarchies.unified
        assert folder is not None
        for part in self.path[1:].split("/"):
            there = (folder / "cgroup.subtree_control").read_text(encoding="ascii").split()
            can = (folder / "cgroup.controllers").read_text(encoding="ascii").split()
            for name in can:
                if name not in there:
                    # One by one: a controller that is busy elsewhere (EBUSY) keeps no other from being enabled.
                    with contextlib.suppress(OSError):
                        _write(folder / "cgroup.subtree_control", f"+{name}")
            folder = folder / part

    def _inherit_cpuset(self, mount: Path) -> None:
        # A new cpuset is empty and refuses to be joined until it has processors and memory nodes (cpuset(7)).
        folder = mount
        for part in self.path[1:].split("/"):
            parent, folder = folder, folder / part
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not (folder / name).read_text(encoding="ascii").strip():
                    _write(folder / name, (parent / name).read_text(encoding="ascii").strip())

    def joining_files(self) -> tuple[Path, ...]:
        """The files that a process of one thread writes `0` to, to be in the cgroup; for a child before its exec."""
        if self.is_v2:
            return tuple(folder / "cgroup.procs" for folder in self.folders)
        return tuple(dict.fromkeys(mount / self.path[1:] / "tasks" for mount in self._hierarchies.v1.values()))

    def join(self) -> None:
        """Move the calling process, of one thread, into the cgroup."""
        for file in self.joining_files():
            _write(file, "0")

    def add(self, pid: int) -> None:
        """Move a living process with all its threads into the cgroup; waits for a grace period a hierarchy."""
        for folder in self.folders:
            _write(folder / "cgroup.procs", str(pid))

    def processes(self) -> tuple[int, ...]:
        """The pids in it and in the cgroups below, sorted; empty where it is absent."""
        # All hold the same ones, unless a runtime was killed between two writes.
        return tuple(sorted(set[int]().union(*map(pids_below, self.folders))))

    def set_limits(self, limits: Limits) -> None:
        """Apply `limits`, all or none. Raises `FailedPrecondition` where the host lacks the controller of one."""
        changed: list[tuple[Path, str]] = []
        try:
            for folder, name, value in self._settings(limits):
                before = (folder / name).read_text(encoding="ascii").strip()
                _write(folder / name, value)
                changed.append((folder / name, before))
        except OSError:
            for file, before in reversed(changed):
                with contextlib.suppress(OSError):
                    _write(file, before)
            raise

    def _settings(self, limits: Limits) -> list[tuple[Path, str, str]]:
        """What is to be written where, in this order."""
        found = self._v2_settings(limits) if self.is_v2 else self._v1_settings(limits)
        return [(self._need(controller), name, str(value)) for controller, name, value in found]

    def _v2_settings(self, limits: Limits) -> Iterator[Setting]:
        if limits.cpu_shares is not None:
            yield "cpu", "cpu.weight", cpu_weight(limits.cpu_shares)
        if limits.cpu_quota_us is not None or limits.cpu_period_us is not None:
            quota = "max" if limits.cpu_quota_us == -1 else limits.cpu_quota_us
            if quota is None:
                quota = (self._need("cpu") / "cpu.max").read_text(encoding="ascii").split()[0]
            yield "cpu", "cpu.max", f"{quota}" if limits.cpu_period_us is None else f"{quota} {limits.cpu_period_us}"
        if limits.memory_bytes is not None:
            yield "memory", "memory.max", _or_max(limits.memory_bytes)
        if limits.memory_and_swap_bytes is not None:
            both, memory = limits.memory_and_swap_bytes, limits.memory_bytes
            if both != -1 and (memory is None or memory < 0):
                raise errors.InvalidArgument("a limit of memory and swap needs a memory limit beside it")
            yield "memory", "memory.swap.max", "max" if both == -1 else max(0, both - (memory or 0))
        if limits.pids is not None:
            yield "pids", "pids.max", _or_max(limits.pids)
        yield from _cpuset_settings(limits)

    def _v1_settings(self, limits: Limits) -> Iterator[Setting]:
        if limits.cpu_shares is not None:
            yield "cpu", "cpu.shares", limits.cpu_shares
        if limits.cpu_period_us is not None:
            yield "cpu", "cpu.cfs_period_us", limits.cpu_period_us
        if limits.cpu_quota_us is not None:
            yield "cpu", "cpu.cfs_quota_us", limits.cpu_quota_us
        if limits.memory_bytes is not None or limits.memory_and_swap_bytes is not None:
            yield from self._v1_memory_settings(limits)
        if limits.pids is not None:
            yield "pids", "pids.max", _or_max(limits.pids)
        yield from _cpuset_settings(limits)

    def _v1_memory_settings(self, limits: Limits) -> Iterator[Setting]:
        # Memory may never exceed memory and swap: when both grow the sum goes first, when both shrink last.
        wanted = {
            "memory.memsw.limit_in_bytes": limits.memory_and_swap_bytes,
            "memory.limit_in_bytes": limits.memory_bytes,
        }
        folder = self._need("memory")
        now = _number(folder / "memory.memsw.limit_in_bytes") if limits.memory_and_swap_bytes is not None else 0
        both = limits.memory_and_swap_bytes
        order = list(wanted) if both is not None and (both == -1 or both > now) else list(reversed(wanted))
        for name in order:
            if (value := wanted[name]) is not None:
                yield "memory", name, value

    def _need(self, controller: str) -> Path:
        folder = self.folder(controller)
        if folder is None:
            raise errors.FailedPrecondition(f"cgroup {self.path}: this host has no {controller} controller")
        return folder

    def freeze(self) -> None:
        """Stop every process in it and below, and wait until all stand. Raises `DeadlineExceeded`, thawed then."""
        if not self.is_v2:
            self._need("freezer")
        if not _wait(freezer.Freezing(self.folders).poll, FREEZE_TIMEOUT_S):
            self.thaw()
            raise errors.DeadlineExceeded(f"cgroup {self.path}: did not freeze within {FREEZE_TIMEOUT_S:g} s")

    def thaw(self) -> None:
        """Let every process go on; idempotent."""
        freezer.thaw(self.folders)

    def _need_unified(self) -> Path:
        assert self.unified is not None
        return self.unified

    def kill(self) -> None:
        """SIGKILL every process in it and below, those that are forked meanwhile too; returns without reaping.

        Absent is fine. Raises `DeadlineExceeded` where processes keep appearing.
        """
        if self.is_v2 and (kill := self._need_unified() / "cgroup.kill").exists():
            with contextlib.suppress(FileNotFoundError):
                _write(kill, "1")
            return
        for _ in range(KILL_ROUNDS):
            alive = [pid for pid in self.processes() if _can_still_run(pid)]
            if not alive:
                return
            self._kill_frozen(alive)
            time.sleep(PAUSE_S)
        raise errors.DeadlineExceeded(f"cgroup {self.path}: processes keep appearing although they are killed")

    def _kill_frozen(self, pids: list[int]) -> None:
        # Frozen processes cannot fork away from the list; a SIGKILL takes effect when they are thawed.
        folder = self.folder("freezer") if not self.is_v2 else None
        if folder is not None:
            with contextlib.suppress(OSError):
                _write(folder / "freezer.state", "FROZEN")
        for pid in {*pids, *self.processes()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for frozen in () if folder is None else _tree(folder):
            with contextlib.suppress(OSError):
                _write(frozen / "freezer.state", "THAWED")

    def delete(self, timeout_s: float = DELETE_TIMEOUT_S) -> None:
        """Remove it and the cgroups below from every hierarchy; idempotent.

        Waits up to `timeout_s` for processes that are ending. Raises `FailedPrecondition` where some stay.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left = [folder for root in self.folders for folder in _remove_tree(root)]
            if not left:
                return
            if time.monotonic() >= deadline:
                raise errors.FailedPrecondition(
                    f"{left[0]}: still holds processes {self.processes()[:8]}; kill them first"
                )
            time.sleep(PAUSE_S)


def expedite_attach(hierarchies: Hierarchies) -> None:
    """Let the next write to any `cgroup.procs` of this host pass at once; blocks for about ten milliseconds.

    Such a write takes a kernel-wide lock that every fork reads, and the first writer waits for an RCU grace
    period before it has it; one that follows within another grace period does not. So run this on a thread while an
    OCI runtime starts up, and the runtime's own write finds the way open. It writes this process's pid into the
    cgroup it is in already, which moves nothing. Best effort: errors are not raised.
    Source: cgroup_threadgroup_rwsem and rcu_sync in kernel/cgroup/cgroup.c and kernel/rcu/sync.c.
    """
    with contextlib.suppress(OSError):
        file = _own_procs_file(hierarchies)
        for _ in range(EXPEDITE_WRITES if file is not None else 0):
            assert file is not None
            _write(file, str(os.getpid()))


def _own_procs_file(hierarchies: Hierarchies) -> Path | None:
    found = memberships("self", hierarchies)
    return found[0][0] / found[0][1] / "cgroup.procs" if found else None


def memberships(pid: int | str, hierarchies: Hierarchies) -> list[tuple[Path, str]]:
    """Where a process is: the mount of each hierarchy and the path below it, empty for its root (proc(5), "cgroup").

    None where the process is gone, and of hierarchies that are not mounted.
    """
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return []
    found: list[tuple[Path, str]] = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        mount = hierarchies.v1.get(controllers.split(",")[0]) if controllers else hierarchies.unified
        if mount is not None:
            found.append((mount, path[1:]))
    return found


def pids_below(folder: Path) -> set[int]:
    """The processes in one folder of a cgroup and below; none where it is gone."""
    return {pid for below in _tree(folder) for pid in _pids(below / "cgroup.procs")}


def _cpuset_settings(limits: Limits) -> Iterator[Setting]:
    if limits.cpuset_cpus is not None:
        yield "cpuset", "cpuset.cpus", limits.cpuset_cpus
    if limits.cpuset_mems is not None:
        yield "cpuset", "cpuset.mems", limits.cpuset_mems


def _write(file: Path, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        os.close(fd)


def _number(file: Path) -> int:
    text = file.read_text(encoding="ascii").strip()
    return V1_UNLIMITED if text == "max" else int(text)


def _or_max(value: int) -> str:
    return "max" if value == -1 else str(value)


def _pids(file: Path) -> list[int]:
    try:
        return [int(line) for line in file.read_text(encoding="ascii").split()]
    except OSError as error:
        # ENODEV: the cgroup was removed while it was open.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
            return []
        raise


def _can_still_run(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def _tree(root: Path) -> Iterator[Path]:
    """`root` and every cgroup below it, the innermost first; nothing where it is absent."""
    for parent, _, _ in os.walk(root, topdown=False):
        yield Path(parent)


def _remove_tree(root: Path) -> list[Path]:
    """Try to remove every cgroup of the tree; those that are busy are returned."""
    try:
        root.rmdir()
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    else:
        return []
    busy: list[Path] = []
    for folder in _tree(root):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            busy.append(folder)
    return busy


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE_S)
    return True
