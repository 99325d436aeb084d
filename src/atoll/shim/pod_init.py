"""The first process of a pod that shares a pid namespace: it holds the namespace and reaps.

It is no program of the host: some twenty bytes of machine code in a memory file, which ignore SIGCHLD, so that the
kernel reaps orphans by itself (wait(2), "zombies"), and pause. It costs a few pages. A container that may
ptrace can look into the root folder of its pid 1, so this one has an empty root of its own, no descriptor,
no capability and another user. Only SIGKILL from outside the namespace ends it (pid_namespaces(7)).
"""

from __future__ import annotations

import os
import platform
import signal
import struct
from pathlib import Path
from typing import NoReturn

from atoll import errors
from atoll.linux import syscalls

USER = 65535
_LOAD_ADDRESS = 0x400000
_HEADER_BYTES = 64 + 56

# rt_sigaction(SIGCHLD, &ignore, NULL, 8); for (;;) pause();   with `ignore` right behind the code
_CODE_X86_64 = bytes.fromhex(
    "b80d000000"  # mov eax, 13            rt_sigaction
    "bf11000000"  # mov edi, 17            SIGCHLD
    "488d3518000000"  # lea rsi, [rip+24]  ignore
    "31d2"  # xor edx, edx
    "41ba08000000"  # mov r10d, 8
    "0f05"  # syscall
    "b822000000"  # mov eax, 34            pause
    "0f05"  # syscall
    "ebf7"  # jmp to the mov before
    "9090909090"  # pads `ignore` to its place
)
# struct kernel_sigaction: handler SIG_IGN, flags, restorer, mask
IGNORE = struct.pack("<4Q", 1, 0, 0, 0)


def program() -> bytes:
    """A static ELF executable (elf(5)) of one segment: the header, the code, the sigaction."""
    if platform.machine() != "x86_64":
        raise errors.Unimplemented(f"a shared pid namespace: Atoll has no pod init for {platform.machine()}")
    body = _CODE_X86_64 + IGNORE
    size = _HEADER_BYTES + len(body)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        2,  # ET_EXEC
        62,  # EM_X86_64
        1,
        _LOAD_ADDRESS + _HEADER_BYTES,
        64,
        0,
        0,
        64,
        56,
        1,
        0,
        0,
        0,
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)  # PT_LOAD, r-x
    return header + segment + body


def start(mount_point: Path) -> int:
    """Start it in a new pid namespace; its pid in ours. The caller reaps it.

    `mount_point` is any folder; the init mounts its root there, seen by nobody else. Call it on the only thread of
    the process. Raises `OSError`, and `Internal` where the init does not get as far as its program.
    """
    executable = os.memfd_create("atoll-pod-init", os.MFD_CLOEXEC)
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(executable, program())
        syscalls.unshare(syscalls.CLONE_NEWPID)  # for children from now on
        try:
            pid = os.fork()
            if pid == 0:
                _become_init(executable, writing, mount_point)
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWPID)  # for children from now on: back
        os.close(writing)
        writing = -1
        # Closed by exec; anything read is the reason why it did not come so far.
        reason = os.read(reading, 4096)
    finally:
        for fd in (executable, own, reading, writing):
            if fd >= 0:
                os.close(fd)
    if reason:
        raise errors.Internal(f"pod init: {reason.decode('utf-8', 'replace')}")
    return pid


def _become_init(executable: int, failure: int, mount_point: Path) -> NoReturn:
    try:
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                signal.signal(number, signal.SIG_DFL)
        os.setsid()
        _empty_root(mount_point)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        syscalls.set_no_new_privs()
        syscalls.set_name("pause")
        for fd in (0, 1, 2):
            os.close(fd)
        os.execve(executable, ["pause"], {})
    except OSError as error:
        os.write(failure, str(error).encode())
    finally:
        os._exit(1)


def _empty_root(mount_point: Path) -> None:
    """Leave the host's mounts for an empty, read-only root of its own (pivot_root(2))."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("none", mount_point, "tmpfs", flags, "size=4k,mode=755")
    os.chdir(mount_point)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
