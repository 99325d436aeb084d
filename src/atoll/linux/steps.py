"""A process that makes a list of system calls and then pauses, without any program of the host.

It is some hundred bytes of machine code in a memory file, so that nothing runs between the fork and the list, and what
stays costs a few pages. `program` makes the file, `spawn` executes it. Who started it hears on a descriptor:

    READY, ASKING          packets that steps of the list write
    (address, result)      of a step that failed, of a clone, and of a recvfrom that found its other end closed
"""

from __future__ import annotations

import os
import platform
import signal
import struct
from dataclasses import dataclass

from atoll import errors

_LOAD_ADDRESS = 0x400000
_HEADER_BYTES = 64 + 56
_STEP = struct.Struct("<6Q")
REPORT = struct.Struct("<Qq")

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
END = 0xFFFFFFFFFFFFFFFF

# System calls of x86_64 (arch/x86/entry/syscalls/syscall_64.tbl)
WRITE, OPEN, CLOSE, RT_SIGACTION, RT_SIGPROCMASK = 1, 2, 3, 13, 14
RECVFROM, CLONE, CHDIR, SETSID, SETGROUPS, SETRESUID, SETRESGID = 45, 56, 80, 112, 116, 117, 119
PIVOT_ROOT, PRCTL, MOUNT, UMOUNT2, SETHOSTNAME, SETDOMAINNAME = 155, 157, 165, 166, 170, 171
UNSHARE, SETNS, CLOSE_RANGE = 272, 308, 436

NAME = "pause"
"""The first word of a program's command line."""

# At the addresses of no step: every step was made; the next one waits for an answer
READY = REPORT.pack(0, 0)
ASKING = REPORT.pack(1, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One system call of the list; an argument of bytes is passed by its address. `what` names it in an error."""

    what: str
    call: int
    arguments: tuple[int | bytes, ...] = ()


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
    body = _CODE_X86_64 + struct.pack("<Q", tell) + rows + struct.pack("<Q", END) + data
    size = _HEADER_BYTES + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    # ET_EXEC for x86_64; the program header follows at 64
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, base, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)  # PT_LOAD, r-x
    return header + segment + body


def step_at(todo: tuple[Step, ...], address: int) -> Step:
    """The step that a report is about."""
    return todo[(address - _LOAD_ADDRESS - _HEADER_BYTES - _LIST_OFFSET) // _STEP.size]


def spawn(content: bytes, kept: tuple[int, ...], arguments: tuple[str, ...] = ()) -> int:
    """Execute a `program`, which has the descriptors `kept` by their numbers and no others; its pid, to be reaped.

    It reads no `arguments`: they tell whoever looks at the process (proc(5), /proc/<pid>/cmdline) what it is for.
    """
    executable = os.memfd_create("atoll-pod", os.MFD_CLOEXEC)
    try:
        os.write(executable, content)
        return os.posix_spawn(
            f"/proc/self/fd/{executable}",
            [NAME, *arguments],
            {},
            # dup2 onto itself makes the child's copy survive exec (posix_spawn_file_actions_adddup2(3)).
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in kept],
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    finally:
        os.close(executable)
