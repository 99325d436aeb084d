"""The process that holds a pod's namespaces, and stands for the pod by its pid.

It is no program of the host: some hundred bytes of machine code in a memory file, which make a list of system
calls and then pause for good. The list brings it into the namespaces of its pod, sets what belongs to them, and takes
from it all that it could be used for: it ends up with an empty root of its own, no descriptor, no capability, another
user, and every signal blocked, so that only SIGKILL ends it. It costs a few pages, and no Python runs between the
fork and the exec. SIGCHLD is ignored, so the first process of a pid namespace reaps orphans (wait(2), "zombies").

    network   joined by the path given          uts, ipc   made
    sysctls   written from inside               pid        made, by a second process that the first one clones

Until the pod's record names it, it is on a leash, a socket to the process that started it: when all is done it waits
there, and ends where that process has closed its end, by itself or by its death. `Holder.keep` lets it off.

One without a pid namespace ends with the shim that started it: then nothing is left of the pod but
its containers, whose namespaces live on with them. The first process of a pid namespace stays, for its
end would be theirs; who frees the pod finds it in the pod's record.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import signal
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from atoll import errors
from atoll.linux import syscalls
from atoll.linux.process import ProcessId, identify
from atoll.shim.pod_namespaces import PodNamespaces
from atoll.shim.pod_sysctls import file_of
from atoll.shim.reaper import Exit, Reaper

USER = 65535
START_TIMEOUT_S = 10.0
# Any folder that is always there: in a mount namespace that nobody else is in.
MOUNT_POINT = "/proc"
_BARE = PodNamespaces(netns="", uts=False, ipc=False, pid=False)
_LOAD_ADDRESS = 0x400000
_HEADER_BYTES = 64 + 56
_STEP = struct.Struct("<6Q")
_REPORT = struct.Struct("<Qq")

_CODE_X86_64 = bytes.fromhex(
    "488d1d6d000000"  # lea rbx, [rip+109]        the list
    "488b03"  # next: mov rax, [rbx]              system call
    "4883f8ff"  # cmp rax, -1                     end of the list
    "7453"  # je hold
    "488b7b08488b7310488b53184c8b53204c8b4328"  # mov rdi|rsi|rdx|r10|r8, [rbx+8|16|24|32|40]
    "0f05"  # syscall
    "4885c0"  # test rax, rax
    "7814"  # js tell
    "7407"  # jz nothing
    "833b38"  # cmp dword [rbx], 56               clone:
    "740d"  # je tell                             the parent tells the pid and ends
    "eb05"  # jmp on
    "833b2d"  # nothing: cmp dword [rbx], 45      recvfrom:
    "7406"  # je tell                             nobody is there
    "4883c330"  # on: add rbx, 48
    "ebc8"  # jmp next
    "5053"  # tell: push rax; push rbx            result, step
    "b801000000"  # mov eax, 1                    write
    "488b3d1f000000"  # mov rdi, [rip+31]         the descriptor before the list
    "4889e6"  # mov rsi, rsp
    "ba10000000"  # mov edx, 16
    "0f05"  # syscall
    "b8e7000000"  # mov eax, 231                  exit_group
    "bf01000000"  # mov edi, 1
    "0f05"  # syscall
    "b822000000"  # hold: mov eax, 34             pause
    "0f05"  # syscall
    "ebf7"  # jmp hold
)
_LIST_OFFSET = len(_CODE_X86_64) + 8
_END = 0xFFFFFFFFFFFFFFFF

# System calls of x86_64 (arch/x86/entry/syscalls/syscall_64.tbl)
_WRITE, _OPEN, _CLOSE, _RT_SIGACTION, _RT_SIGPROCMASK = 1, 2, 3, 13, 14
_RECVFROM, _CLONE, _CHDIR, _SETSID, _SETGROUPS, _SETRESUID, _SETRESGID = 45, 56, 80, 112, 116, 117, 119
_PIVOT_ROOT, _PRCTL, _MOUNT, _UMOUNT2, _SETHOSTNAME = 155, 157, 165, 166, 170
_UNSHARE, _SETNS, _CLOSE_RANGE = 272, 308, 436
_CLONE_PARENT = 0x8000
_SIG_SETMASK = 2
# At the address of no step: every step was made
_READY = _REPORT.pack(0, 0)
# struct kernel_sigaction: handler SIG_IGN, flags, restorer, mask
_IGNORE = struct.pack("<4Q", 1, 0, 0, 0)
_ALL_SIGNALS = struct.pack("<Q", _END)


@dataclass(frozen=True, slots=True)
class Step:
    """One system call of the list; an argument of bytes is passed by its address. `what` names it in an error."""

    what: str
    call: int
    arguments: tuple[int | bytes, ...] = ()


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


def program(steps: tuple[Step, ...], tell: int) -> bytes:
    """A static ELF executable (elf(5)) of one segment: the code, the list, what the list points to.

    A step that fails, a clone, and a recvfrom that finds the other end closed are told on the descriptor `tell`:
    the address of the step and its result. Then the process ends.
    """
    if platform.machine() != "x86_64":
        raise errors.Unimplemented(f"a pod: Atoll has no holder of namespaces for {platform.machine()}")
    base = _LOAD_ADDRESS + _HEADER_BYTES
    data_at = base + _LIST_OFFSET + len(steps) * _STEP.size + 8
    rows, data = b"", b""
    for step in steps:
        values: list[int] = []
        for argument in step.arguments:
            if isinstance(argument, bytes):
                data += bytes(-len(data) % 8)
                values.append(data_at + len(data))
                data += argument + b"\0"
            else:
                values.append(argument)
        rows += _STEP.pack(step.call, *values, *(0,) * (5 - len(values)))
    body = _CODE_X86_64 + struct.pack("<Q", tell) + rows + struct.pack("<Q", _END) + data
    size = _HEADER_BYTES + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    # ET_EXEC for x86_64; the program header follows at 64
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, base, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)  # PT_LOAD, r-x
    return header + segment + body


def steps(
    namespaces: PodNamespaces,
    hostname: str,
    sysctls: Mapping[str, str],
    *,
    netns: int | None,
    root: int | None,
    leash: int,
) -> tuple[Step, ...]:
    """What a holder does.

    `netns` is the descriptor of its network namespace, `root` that of a mount namespace with an empty root; without
    one it makes itself one. `leash` is its end of its leash.
    """
    made = (syscalls.CLONE_NEWUTS if namespaces.uts else 0) | (syscalls.CLONE_NEWIPC if namespaces.ipc else 0)
    found: list[Step] = []
    if netns is not None:
        found.append(Step(namespaces.netns, _SETNS, (netns, syscalls.CLONE_NEWNET)))
    if made:
        found.append(Step("its namespaces", _UNSHARE, (made,)))
    if namespaces.uts and hostname:
        name = hostname.encode()
        found.append(Step(f"hostname {hostname!r}", _SETHOSTNAME, (name, len(name))))
    for key, value in sysctls.items():
        # The lowest descriptor that is free is the one that is opened: 0.
        what = f"sysctl {key}={value}"
        found.append(Step(what, _CLOSE, (0,)))
        found.append(Step(what, _OPEN, (os.fsencode(file_of(key)), os.O_WRONLY | os.O_CLOEXEC)))
        found.append(Step(what, _WRITE, (0, value.encode(), len(value.encode()))))
    if namespaces.pid:
        # Its parent is ours too, so that it is our child and not the first process's.
        found.append(Step("pid namespace", _CLONE, (syscalls.CLONE_NEWPID | _CLONE_PARENT | signal.SIGCHLD,)))
    return (*found, *_empty_root(root), *_give_up(), *_wait_to_be_kept(namespaces, leash))


def _empty_root(root: int | None) -> tuple[Step, ...]:
    """Leave the host's mounts for an empty, read-only root (pivot_root(2); setns(2) goes to a namespace's root)."""
    what = "its root"
    if root is not None:
        return (Step(what, _SETNS, (root, syscalls.CLONE_NEWNS)),)
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    folder = os.fsencode(MOUNT_POINT)
    return (
        Step(what, _UNSHARE, (syscalls.CLONE_NEWNS,)),
        Step(what, _MOUNT, (b"none", b"/", 0, syscalls.MS_REC | syscalls.MS_PRIVATE, 0)),
        Step(what, _MOUNT, (b"none", folder, b"tmpfs", flags, b"size=4k,mode=755")),
        Step(what, _CHDIR, (folder,)),
        Step(what, _PIVOT_ROOT, (b".", b".")),
        Step(what, _UMOUNT2, (b".", syscalls.MNT_DETACH)),
        Step(what, _CHDIR, (b"/",)),
    )


def _give_up() -> tuple[Step, ...]:
    what = "its credentials"
    return (
        Step("its session", _SETSID),
        Step(what, _SETGROUPS, (0, 0)),
        Step(what, _SETRESGID, (USER, USER, USER)),
        Step(what, _SETRESUID, (USER, USER, USER)),
        Step(what, _PRCTL, (syscalls.PR_SET_NO_NEW_PRIVS, 1)),
        Step(what, _PRCTL, (syscalls.PR_SET_NAME, b"pause")),
        Step("its signals", _RT_SIGACTION, (signal.SIGCHLD, _IGNORE, 0, 8)),
        Step("its signals", _RT_SIGPROCMASK, (_SIG_SETMASK, _ALL_SIGNALS, 0, 8)),
    )


def _wait_to_be_kept(namespaces: PodNamespaces, leash: int) -> tuple[Step, ...]:
    """Say that all is done, wait for the one packet that keeps it, let go of every descriptor.

    It is to end with its parent, which a change of user would forget, so it says so here; a parent that is dead
    by then has closed its end of the leash. A recvfrom of no bytes gives the packet's length (MSG_TRUNC, recv(2)).
    """
    what = "its leash"
    ends_with_us = () if namespaces.pid else (Step(what, _PRCTL, (syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)),)
    return (
        *ends_with_us,
        Step(what, _WRITE, (leash, _READY, len(_READY))),
        Step(what, _RECVFROM, (leash, 0, 0, socket.MSG_TRUNC)),
        Step("its descriptors", _CLOSE_RANGE, (0, 0xFFFFFFFF, 0)),
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

    async def start(self, namespaces: PodNamespaces, *, hostname: str, sysctls: Mapping[str, str]) -> Holder:
        """Make the namespaces of a pod and their holder, or nothing.

        Raises `InvalidArgument` for a sysctl that the kernel refuses, `OSError` naming the network namespace,
        `Internal` for the rest.
        """
        await self.prepare()
        assert self._root is not None
        if not namespaces.netns:
            return await self._begin(namespaces, hostname, sysctls, None)
        netns = os.open(namespaces.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return await self._begin(namespaces, hostname, sysctls, netns)
        finally:
            os.close(netns)

    async def _begin(
        self, namespaces: PodNamespaces, hostname: str, sysctls: Mapping[str, str], netns: int | None
    ) -> Holder:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            with self._reaper.expecting():
                with its:
                    leash, root = its.fileno(), self._root
                    todo = steps(namespaces, hostname, sysctls, netns=netns, root=root, leash=leash)
                    pid = _spawn(program(todo, leash), tuple(fd for fd in (leash, netns, root) if fd is not None))
                return await _ready(self._reaper, todo, pid, ours)
        except BaseException:
            ours.close()
            raise


async def _ready(reaper: Reaper, todo: tuple[Step, ...], pid: int, leash: socket.socket) -> Holder:
    """Wait until it has done everything; `pid` is that of the process that was spawned."""
    ended = reaper.watch(pid)
    # In any order: the second process does not wait for the first one's report of it.
    is_ready, is_cloned = False, all(step.call != _CLONE for step in todo)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (is_ready and is_cloned):
                report = await _receive(leash)
                if not report:
                    raise errors.Internal("pod holder: was killed before it was ready")
                address, result = cast("tuple[int, int]", _REPORT.unpack(report))
                if result < 0:
                    raise _refused(_step(todo, address), -result)
                if report == _READY:
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


def _step(todo: tuple[Step, ...], address: int) -> Step:
    return todo[(address - _LOAD_ADDRESS - _HEADER_BYTES - _LIST_OFFSET) // _STEP.size]


def _spawn(content: bytes, kept: tuple[int, ...]) -> int:
    executable = os.memfd_create("atoll-pod", os.MFD_CLOEXEC)
    try:
        os.write(executable, content)
        return os.posix_spawn(
            f"/proc/self/fd/{executable}",
            ["pause"],
            {},
            # dup2 onto itself makes the child's copy survive exec (posix_spawn_file_actions_adddup2(3)).
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in kept],
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    finally:
        os.close(executable)


async def _receive(leash: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(leash, _REPORT.size)
    except ConnectionResetError:
        return b""


def _refused(step: Step, number: int) -> Exception:
    reason = os.strerror(number)
    if step.what.startswith("sysctl "):
        return errors.InvalidArgument(f"{step.what}: {reason}")
    if step.call == _SETNS and step.what.startswith("/"):
        return OSError(number, reason, step.what)
    return errors.Internal(f"pod holder: {step.what}: {reason} ({errno.errorcode.get(number, number)})")
