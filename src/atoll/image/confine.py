"""Confinement of the unpack process: a root of its own, no network, few capabilities, few system calls.

After `confine(target)` the calling process sees nothing but `target` (as `/`, mounted nodev, nosuid and
noexec) and the descriptors that it holds. An attacker who takes it over through a decoder can spoil
the one layer that he wrote anyway.

Not for the daemon: these calls change the whole process. Single-threaded callers only.
Sources: mount(2), pivot_root(2), capabilities(7), seccomp(2), linux/filter.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct

from atoll import errors

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

# chown, dac_override, fowner, fsetid, mknod, setfcap, sys_admin (trusted.* xattrs; the system calls that
# make it dangerous are not in the filter).
_KEPT_CAPABILITIES = (0, 1, 3, 4, 21, 27, 31)

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 mremap madvise
# getpid exit fcntl ftruncate fchmod fchown gettid futex clock_gettime exit_group getrandom sigaltstack and the file
# calls, whose names differ: open mkdir rmdir unlink symlink link chmod lchown chown mknod setxattr lsetxattr fsetxattr
# newfstatat openat mkdirat mknodat fchownat unlinkat linkat symlinkat fchmodat utimensat statx.
_SYSTEM_CALLS = {
    "x86_64": (
        *(0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 25, 28, 39, 60, 72, 77, 91, 93, 186, 202, 228, 231, 318, 131),
        *(2, 83, 84, 87, 88, 86, 90, 94, 92, 133, 188, 189, 190),
        *(262, 257, 258, 259, 260, 263, 265, 266, 268, 280, 332),
    ),
    "aarch64": (
        *(63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 67, 216, 233, 172, 93, 25, 46, 52, 55, 178, 98, 113),
        *(94, 278, 132),
        *(5, 6, 7, 79, 56, 34, 33, 54, 35, 37, 36, 53, 88, 291),
    ),
}

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """End this process when its parent does; at once where the parent is no longer `parent`."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def confine(target: str, *, max_file_bytes: int, max_memory_bytes: int) -> None:
    """Shut this process into `target` for good; raises `Internal` where the host does not let it."""
    try:
        _limit(max_file_bytes, max_memory_bytes)
        _pivot(target)
        _drop_capabilities()
        _filter_system_calls()
    except OSError as error:
        raise errors.Internal(
            f"{target}: cannot confine the unpack process: {error}; it needs root with CAP_SYS_ADMIN"
        ) from error


def _limit(max_file_bytes: int, max_memory_bytes: int) -> None:
    for which, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_FSIZE, max_file_bytes),
        (resource.RLIMIT_AS, max_memory_bytes),
    ):
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG instead


def _pivot(target: str) -> None:
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWNET), "unshare")
    _mount(None, "/", _MS_REC | _MS_PRIVATE)
    _mount(target, target, _MS_BIND)
    _mount(None, target, _MS_REMOUNT | _MS_BIND | _MS_NODEV | _MS_NOSUID | _MS_NOEXEC)
    os.chdir(target)
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise errors.Unimplemented(f"unpacking on {platform.machine()} is not supported; use x86_64 or aarch64")
    # pivot_root(".", "."): the old root ends up on top of the new one, whence it is detached.
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")
    os.umask(0)


def _drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        if capability not in _KEPT_CAPABILITIES and _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # EINVAL: above the last one that the kernel knows
    low = sum(1 << capability for capability in _KEPT_CAPABILITIES)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", low, low, 0, 0, 0, 0)
    _check(_libc.capset(header, data), "capset")


def _filter_system_calls() -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    machine = platform.machine()
    allowed = _SYSTEM_CALLS[machine]
    load, equal, give = 0x20, 0x15, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000  # SECCOMP_RET_KILL_PROCESS, ERRNO(EPERM), ALLOW
    program = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(equal, len(allowed) - index, 0, number) for index, number in enumerate(allowed)]
    program += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    sock_fprog = struct.pack("@HP", len(program), ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, sock_fprog, 0, 0), "prctl(PR_SET_SECCOMP)")


def _mount(source: str | None, target: str, flags: int) -> None:
    raw = os.fsencode(source) if source is not None else None
    _check(_libc.mount(raw, os.fsencode(target), None, ctypes.c_ulong(flags), None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
