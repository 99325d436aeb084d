"""The process that holds a pod's namespaces, and stands for the pod by its pid.

It is no program of the host: some hundred bytes of machine code in a memory file, which make a list of system
calls and then pause for good. The list brings it into the namespaces of its pod, sets what belongs to them, and takes
from it all that it could be used for: it ends up with an empty root of its own, no descriptor, no capability, another
user, and every signal blocked, so that only SIGKILL ends it. It costs a few pages, and no Python runs between the
fork and the exec. SIGCHLD is ignored, so the first process of a pid namespace reaps orphans (wait(2), "zombies").

    network   joined by the path given          uts, ipc   made
    sysctls   written from inside               pid        made, by a second process that the first one clones
    user      the one that owns the network namespace, or made; it owns what is made after it

Until the pod's record names it, it is on a leash, a socket to the process that started it: when all is done it waits
there, and ends where that process has closed its end, by itself or by its death. `Holder.keep` lets it off.

One without a pid namespace ends with the shim that started it: then nothing is left of the pod but
its containers, whose namespaces live on with them. The first process of a pid namespace stays, for its
end would be theirs; who frees the pod finds it in the pod's record, or by its command line where that is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import struct
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from atoll import errors
from atoll.linux import steps as calls
from atoll.linux import syscalls
from atoll.linux.process import ProcessId, identify
from atoll.linux.steps import Step
from atoll.linux.userns import IDMap, are_same, ask_for_maps, maps_of, owner, write_maps
from atoll.shim.pod_namespaces import PodNamespaces
from atoll.shim.pod_sysctls import DOMAINNAME, file_of
from atoll.shim.reaper import Exit, Reaper
from atoll.shim.records import content

USER = 65535
START_TIMEOUT_S = 10.0
# Any folder that is always there: in a mount namespace that nobody else is in.
MOUNT_POINT = "/proc"
_BARE = PodNamespaces(netns="", uts=False, ipc=False, pid=False)
_CLONE_PARENT = 0x8000
_SIG_SETMASK = 2
# struct kernel_sigaction: handler SIG_IGN, flags, restorer, mask
_IGNORE = struct.pack("<4Q", 1, 0, 0, 0)
_ALL_SIGNALS = struct.pack("<Q", calls.END)


@dataclass(frozen=True, slots=True)
class Holder:
    """A pod's holder; `ended` is its end, seen by the reaper. It is on its leash until `keep`."""

    id: ProcessId
    ended: asyncio.Future[Exit]
    leash: socket.socket

    @property
    def pid(self) -> int:
        return self.id.pid

    def keep(self) -> None:
        """Let it outlive its leash: a record names it now. Call it once."""
        with self.leash, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `ended` tells that it died
            self.leash.send(b"k")

    def kill(self) -> None:
        """End it, where it lives; idempotent."""
        self.leash.close()
        _kill(self.pid, self.ended)


def _kill(pid: int, ended: asyncio.Future[Exit]) -> None:
    # Our child: its pid is nobody else's before the reaper saw its end.
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def steps(
    namespaces: PodNamespaces,
    hostname: str,
    sysctls: Mapping[str, str],
    *,
    netns: int | None,
    root: int | None,
    leash: int,
    userns: int | None = None,
) -> tuple[Step, ...]:
    """What a holder does.

    `netns` is the descriptor of its network namespace, `root` that of a mount namespace with an empty root; without
    one it makes itself one. `leash` is its end of its leash, `userns` the user namespace of a pod with a network.
    """
    made = (syscalls.CLONE_NEWUTS if namespaces.uts else 0) | (syscalls.CLONE_NEWIPC if namespaces.ipc else 0)
    found: list[Step] = []
    if netns is not None:
        found.append(Step(namespaces.netns, calls.SETNS, (netns, syscalls.CLONE_NEWNET)))
    if userns is not None:
        found.append(Step("its user namespace", calls.SETNS, (userns, syscalls.CLONE_NEWUSER)))
    elif namespaces.users is not None:
        found += ask_for_maps(leash)
    if namespaces.users is not None:
        # It is the host's root still, which owns no file and can mount nothing in there.
        found.append(Step("its user", calls.SETRESGID, (0, 0, 0)))
        found.append(Step("its user", calls.SETRESUID, (0, 0, 0)))
        root = None  # to enter that namespace takes the host's rights
    if made:
        found.append(Step("its namespaces", calls.UNSHARE, (made,)))
    if namespaces.uts and hostname:
        name = hostname.encode()
        found.append(Step(f"hostname {hostname!r}", calls.SETHOSTNAME, (name, len(name))))
    for key, value in sysctls.items():
        if key == DOMAINNAME:  # its file is for the host's root alone
            found.append(Step(f"sysctl {key}={value}", calls.SETDOMAINNAME, (value.encode(), len(value.encode()))))
            continue
        # The lowest descriptor that is free is the one that is opened: 0.
        what = f"sysctl {key}={value}"
        found.append(Step(what, calls.CLOSE, (0,)))
        found.append(Step(what, calls.OPEN, (os.fsencode(file_of(key)), os.O_WRONLY | os.O_CLOEXEC)))
        found.append(Step(what, calls.WRITE, (0, value.encode(), len(value.encode()))))
    if namespaces.pid:
        # Its parent is ours too, so that it is our child and not the first process's.
        flags = syscalls.CLONE_NEWPID | _CLONE_PARENT | signal.SIGCHLD
        found.append(Step("pid namespace", calls.CLONE, (flags,)))
    uid, gid = namespaces.users.nobody if namespaces.users is not None else (USER, USER)
    return (*found, *_empty_root(root), *_give_up(uid, gid), *_wait_to_be_kept(namespaces, leash))


def _empty_root(root: int | None) -> tuple[Step, ...]:
    """Leave the host's mounts for an empty, read-only root (pivot_root(2); setns(2) goes to a namespace's root)."""
    what = "its root"
    if root is not None:
        return (Step(what, calls.SETNS, (root, syscalls.CLONE_NEWNS)),)
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    folder = os.fsencode(MOUNT_POINT)
    return (
        Step(what, calls.UNSHARE, (syscalls.CLONE_NEWNS,)),
        Step(what, calls.MOUNT, (b"none", b"/", 0, syscalls.MS_REC | syscalls.MS_PRIVATE, 0)),
        Step(what, calls.MOUNT, (b"none", folder, b"tmpfs", flags, b"size=4k,mode=755")),
        Step(what, calls.CHDIR, (folder,)),
        Step(what, calls.PIVOT_ROOT, (b".", b".")),
        Step(what, calls.UMOUNT2, (b".", syscalls.MNT_DETACH)),
        Step(what, calls.CHDIR, (b"/",)),
    )


def _give_up(uid: int, gid: int) -> tuple[Step, ...]:
    what = "its credentials"
    return (
        Step("its session", calls.SETSID),
        Step(what, calls.SETGROUPS, (0, 0)),
        Step(what, calls.SETRESGID, (gid, gid, gid)),
        Step(what, calls.SETRESUID, (uid, uid, uid)),
        Step(what, calls.PRCTL, (syscalls.PR_SET_NO_NEW_PRIVS, 1)),
        Step(what, calls.PRCTL, (syscalls.PR_SET_NAME, b"pause")),
        Step("its signals", calls.RT_SIGACTION, (signal.SIGCHLD, _IGNORE, 0, 8)),
        Step("its signals", calls.RT_SIGPROCMASK, (_SIG_SETMASK, _ALL_SIGNALS, 0, 8)),
    )


def _wait_to_be_kept(namespaces: PodNamespaces, leash: int) -> tuple[Step, ...]:
    """Say that all is done, wait for the one packet that keeps it, let go of every descriptor.

    It is to end with its parent, which a change of user would forget, so it says so here; a parent that is dead
    by then has closed its end of the leash. A recvfrom of no bytes gives the packet's length (MSG_TRUNC, recv(2)).
    """
    what = "its leash"
    ends_with_us = () if namespaces.pid else (Step(what, calls.PRCTL, (syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)),)
    return (
        *ends_with_us,
        Step(what, calls.WRITE, (leash, calls.READY, len(calls.READY))),
        Step(what, calls.RECVFROM, (leash, 0, 0, socket.MSG_TRUNC)),
        Step("its descriptors", calls.CLOSE_RANGE, (0, 0xFFFFFFFF, 0)),
    )


class Holders:
    """Starts the holders of one process.

    They share one mount namespace, which is empty and cannot be written to: to make one each would cost
    each pod some milliseconds of waiting for the kernel's readers of the mount tree.
    """

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._root: int | None = None

    async def prepare(self) -> None:
        """Make that mount namespace, ahead of the first pod. Raises as `start`."""
        if self._root is not None:
            return
        first = await self._begin(_BARE, "", {}, None)
        try:
            root = os.open(f"/proc/{first.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            first.kill()
        if self._root is None:
            self._root = root
        else:  # another pod was faster
            os.close(root)

    def close(self) -> None:
        """Let that mount namespace go; idempotent. Holders live on in it."""
        if self._root is not None:
            os.close(self._root)
            self._root = None

    async def start(
        self, namespaces: PodNamespaces, *, hostname: str, sysctls: Mapping[str, str], bundle: Path | None = None
    ) -> Holder:
        """Make the namespaces of a pod and their holder, or nothing; `bundle` is what it is found by (`holders_in`).

        Raises `InvalidArgument` for a sysctl that the kernel refuses, `OSError` naming the network namespace,
        `Internal` for the rest.
        """
        await self.prepare()
        assert self._root is not None
        with contextlib.ExitStack() as opened:
            netns = _open(namespaces.netns, opened) if namespaces.netns else None
            userns = _owner(namespaces.netns, netns, opened) if namespaces.users is not None and netns else None
            holder = await self._begin(namespaces, hostname, sysctls, netns, userns, bundle=bundle)
        if namespaces.users is not None and not are_same(maps_of(holder.pid), namespaces.users):
            holder.kill()
            raise errors.InvalidArgument(f"network namespace {namespaces.netns}: its owner has other ids than the pod")
        return holder

    @contextlib.asynccontextmanager
    async def user_namespace(self, users: IDMap) -> AsyncGenerator[int]:
        """A descriptor of a user namespace with these ids, for the time of the block. Raises as `start`."""
        holder = await self._begin(replace(_BARE, users=users), "", {}, None)
        try:
            with contextlib.ExitStack() as opened:
                yield _open(f"/proc/{holder.pid}/ns/user", opened)
        finally:
            holder.kill()

    async def _begin(
        self,
        namespaces: PodNamespaces,
        hostname: str,
        sysctls: Mapping[str, str],
        netns: int | None,
        userns: int | None = None,
        *,
        bundle: Path | None = None,
    ) -> Holder:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            with self._reaper.expecting():
                with its:
                    leash, root = its.fileno(), self._root
                    todo = steps(namespaces, hostname, sysctls, netns=netns, root=root, leash=leash, userns=userns)
                    kept = tuple(fd for fd in (leash, netns, root, userns) if fd is not None)
                    mark = (str(bundle),) if bundle is not None else ()
                    pid = calls.spawn(calls.program(todo, leash), kept, mark)
                return await _ready(self._reaper, todo, pid, ours, namespaces.users)
        except BaseException:
            ours.close()
            raise


def holders_in(folder: Path) -> list[tuple[ProcessId, Path]]:
    """The holders whose bundle is `folder` or below, each with its bundle; by their command lines. Blocks."""
    found: list[tuple[ProcessId, Path]] = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            words = content(f"/proc/{name}/cmdline").split(b"\0")
        except OSError:
            continue
        if len(words) < 2 or words[0] != calls.NAME.encode():
            continue
        bundle = Path(os.fsdecode(words[1]))
        if (bundle == folder or folder in bundle.parents) and (who := identify(int(name))) is not None:
            found.append((who, bundle))
    return found


def _open(path: str, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    opened.callback(os.close, fd)
    return fd


def _owner(path: str, netns: int, opened: contextlib.ExitStack) -> int:
    """The user namespace of a pod is the one that owns its network: else it could not change it (namespaces(7))."""
    fd = owner(netns)
    if fd is None:
        raise errors.InvalidArgument(f"network namespace {path}: belongs to the host, and the pod has users of its own")
    opened.callback(os.close, fd)
    return fd


async def _ready(reaper: Reaper, todo: tuple[Step, ...], pid: int, leash: socket.socket, users: IDMap | None) -> Holder:
    """Wait until it has done everything; `pid` is that of the process that was spawned, `users` what it may ask for."""
    ended = reaper.watch(pid)
    # In any order: the second process does not wait for the first one's report of it.
    is_ready, is_cloned = False, all(step.call != calls.CLONE for step in todo)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (is_ready and is_cloned):
                report = await _receive(leash)
                if not report:
                    raise errors.Internal("pod holder: was killed before it was ready")
                address, result = cast("tuple[int, int]", calls.REPORT.unpack(report))
                if result < 0:
                    raise _refused(calls.step_at(todo, address), -result)
                if report == calls.ASKING and users is not None:
                    write_maps(pid, users)
                    leash.send(b"m")
                elif report == calls.READY:
                    is_ready = True
                else:
                    is_cloned, pid, ended = True, result, reaper.watch(result)
        found = identify(pid)
        if found is None:
            raise errors.Internal("pod holder: was killed before it was ready")
        return Holder(found, ended, leash)
    except BaseException as error:
        # One whose pid was not told yet finds its leash closed.
        _kill(pid, ended)
        if isinstance(error, TimeoutError):
            raise errors.Internal(f"pod holder: not ready within {START_TIMEOUT_S:g} s") from None
        raise


async def _receive(leash: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(leash, calls.REPORT.size)
    except ConnectionResetError:
        return b""


def _refused(step: Step, number: int) -> Exception:
    reason = os.strerror(number)
    if step.what.startswith("sysctl "):
        return errors.InvalidArgument(f"{step.what}: {reason}")
    if step.call == calls.SETNS and step.what.startswith("/"):
        return OSError(number, reason, step.what)
    return errors.Internal(f"pod holder: {step.what}: {reason} ({errno.errorcode.get(number, number)})")
