"""A seccomp profile compiled once, so that crun need not compile it for each container.

Compiling the default profile takes about ten milliseconds, loading the result half of one. crun takes a
compiled filter by annotation (`run.oci.seccomp_bpf_data`, base64) for create and keeps it for exec; the
profile itself stays in the spec, so a runtime that does not know the annotation filters just the same. The compiler is
libseccomp, which the OCI runtimes use themselves; where the library is not installed nothing is compiled here.
Source: seccomp_rule_add(3), seccomp_export_bpf(3), crun(1).
"""

from __future__ import annotations

import base64
import ctypes
import functools
import os

from atoll.oci.spec import Seccomp, SeccompSyscall

ANNOTATION = "run.oci.seccomp_bpf_data"
LIBRARY = "libseccomp.so.2"
FILTER_LIMIT_BYTES = 4096 * 8  # BPF_MAXINSNS instructions of eight bytes (seccomp(2))

_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_DATA = frozenset(("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"))
_OPERATORS = {
    f"SCMP_CMP_{name}": number for number, name in enumerate(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"), 1)
}
_EPERM = 1
_EEXIST = 17


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


class CannotCompile(Exception):
    """This profile has no compiled form here; the runtime compiles it itself, or refuses it."""


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    return library


@functools.lru_cache(maxsize=64)
def annotation(profile: Seccomp) -> dict[str, str]:
    """The annotation with which crun takes `profile` compiled; empty where it has no compiled form here.

    Blocks for about ten milliseconds the first time, and is kept for later calls with an equal profile.
    """
    try:
        return {ANNOTATION: base64.b64encode(compile_filter(profile)).decode("ascii")}
    except CannotCompile:
        return {}


def compile_filter(profile: Seccomp) -> bytes:
    """The BPF program of `profile`, instructions of eight bytes, for the machine that this runs on.

    Raises `CannotCompile` without libseccomp, and for what a plain program cannot express (flags, notifications).
    """
    library = _library()
    if library is None:
        raise CannotCompile(f"{LIBRARY} is not installed")
    if profile.flags or profile.listener_path:
        raise CannotCompile("flags and listeners go with the system call that loads the filter")
    default = _action(profile.default_action, profile.default_errno_ret)
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise CannotCompile("libseccomp refuses the default action")
    try:
        for name in profile.architectures:
            _add_architecture(library, context, name)
        for rule in profile.syscalls:
            _add_rule(library, context, rule, default)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _action(name: str, errno_ret: int | None) -> int:
    if name not in _ACTIONS:
        raise CannotCompile(f"action {name} is not of a plain filter")
    data = (_EPERM if errno_ret is None else errno_ret) if name in _WITH_DATA else 0
    return _ACTIONS[name] | (data & 0xFFFF)


def _add_architecture(library: ctypes.CDLL, context: ctypes.c_void_p, name: str) -> None:
    token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode("ascii", "replace"))
    result: int = library.seccomp_arch_add(context, ctypes.c_uint32(token)) if token else -1
    if result not in (0, -_EEXIST):
        raise CannotCompile(f"libseccomp does not know the architecture {name}")


def _add_rule(library: ctypes.CDLL, context: ctypes.c_void_p, rule: SeccompSyscall, default: int) -> None:
    action = _action(rule.action, rule.errno_ret)
    if action == default:
        return  # libseccomp refuses rules that change nothing
    comparisons = [
        _Comparison(arg.index, _OPERATORS[arg.op], arg.value & 0xFFFFFFFFFFFFFFFF, arg.value_two) for arg in rule.args
    ]
    if len({comparison.arg for comparison in comparisons}) < len(comparisons):
        raise CannotCompile("several conditions on one argument mean different things to different runtimes")
    for name in rule.names:
        number: int = library.seccomp_syscall_resolve_name(name.encode("ascii", "replace"))
        if number == -1:
            continue  # a system call that this libseccomp does not know keeps the default action
        array = (_Comparison * len(comparisons))(*comparisons)
        result: int = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(comparisons)), array
        )
        if result != 0:
            raise CannotCompile(f"libseccomp refuses the rule for {name}: {os.strerror(-result)}")


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("atoll-seccomp", os.MFD_CLOEXEC)
    try:
        result: int = library.seccomp_export_bpf(context, ctypes.c_int(fd))
        program = os.pread(fd, FILTER_LIMIT_BYTES + 1, 0)
    finally:
        os.close(fd)
    if result != 0 or not program or len(program) > FILTER_LIMIT_BYTES or len(program) % 8:
        raise CannotCompile("libseccomp cannot make a program of this profile")
    return program
