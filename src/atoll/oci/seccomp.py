"""The system call filter of a container: our default, a file of the host's, or none.

The default refuses (EPERM) whatever `atoll.oci.syscall_groups` does not name. Some calls stay open for some arguments
only; a capability opens those that make no sense without it. Its strength is that of the profiles that containerd and
Docker ship. Source: seccomp(2), clone(2), personality(2); config-linux.md of the runtime spec.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from atoll import errors
from atoll.linux.host import HostFacts
from atoll.oci import bpf
from atoll.oci import syscall_groups as groups
from atoll.oci.config import LinuxContainerSecurityContext, ProfileType, SecurityProfile
from atoll.oci.features import RuntimeFeatures
from atoll.oci.security import legacy_profile
from atoll.oci.spec import Seccomp, SeccompArg, SeccompSyscall
from atoll.unreadable import UNREADABLE

ALLOW = "SCMP_ACT_ALLOW"
ERRNO = "SCMP_ACT_ERRNO"
PROFILE_LIMIT_BYTES = 4 << 20
AF_VSOCK = 40
# The clone(2) flags of new mount, cgroup, UTS, IPC, user, PID and network namespaces, together.
NAMESPACE_FLAGS = 0x7E020000
TRACING_SAFE_KERNEL = (4, 8)

ACTIONS = frozenset(
    f"SCMP_ACT_{name}"
    for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "NOTIFY", "TRACE", "TRAP")
)
OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SeccompRequest:
    """`capabilities` is the bounding set; `unset` applies where the security context names no profile; profiles given
    by a relative name are below `folder`."""

    security: LinuxContainerSecurityContext
    capabilities: tuple[str, ...] = ()
    unset: SecurityProfile | None = None
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The profile for the spec and annotations that go with it; neither for an unfiltered container."""

    profile: Seccomp | None = None
    annotations: dict[str, str] = field(default_factory=dict[str, str])


def resolve(request: SeccompRequest, host: HostFacts, runtime: RuntimeFeatures) -> Filter:
    """The filter asked for. A privileged container has none.

    Raises `InvalidArgument` for a profile that is malformed or not there, `FailedPrecondition` for any filter where
    the kernel or the runtime has no seccomp.
    """
    security = request.security
    asked = (
        security.seccomp or legacy_profile(security.seccomp_profile_path, field="seccomp_profile_path") or request.unset
    )
    if security.privileged or asked is None or asked.profile_type is ProfileType.UNCONFINED:
        return Filter()
    if not host.seccomp or not runtime.seccomp:
        lacking = "this kernel" if not host.seccomp else f"{runtime.name} {runtime.version}"
        raise errors.FailedPrecondition(f"seccomp: {lacking} has no seccomp; ask for unconfined")
    if asked.profile_type is ProfileType.RUNTIME_DEFAULT:
        profile = default_profile(frozenset(request.capabilities), host.machine, host.kernel)
    else:
        profile = load_profile(asked.localhost_ref, request.folder)
    return Filter(profile=profile, annotations=bpf.annotation(profile) if runtime.seccomp_bpf else {})


@functools.lru_cache(maxsize=64)
def default_profile(capabilities: frozenset[str], machine: str, kernel: tuple[int, ...]) -> Seccomp:
    """The default filter for a process with `capabilities` on this kind of machine and kernel.

    Raises `FailedPrecondition` for a machine it does not know.
    """
    architectures = groups.ARCHITECTURES.get(machine)
    if architectures is None:
        raise errors.FailedPrecondition(f"seccomp: there is no default profile for {machine}; use one of your own")
    names = set(_names(groups.ALWAYS))
    names.update(groups.BY_MACHINE.get(machine, "").split())
    if kernel >= TRACING_SAFE_KERNEL:
        names.update(groups.TRACING.split())
    for capability, opened in groups.BY_CAPABILITY.items():
        if capability in capabilities:
            names.update(opened.split())
    rules = [_allow(sorted(names)), *_conditional(machine)]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules += _clone_without_namespaces(machine)
    return Seccomp(
        default_action=ERRNO,
        default_errno_ret=errno.EPERM,
        architectures=architectures,
        syscalls=tuple(rules),
    )


def _names(lists: Iterable[str]) -> Iterable[str]:
    for text in lists:
        yield from text.split()


def _allow(names: Iterable[str], *conditions: SeccompArg) -> SeccompSyscall:
    return SeccompSyscall(names=tuple(names), action=ALLOW, args=conditions)


def _conditional(machine: str) -> list[SeccompSyscall]:
    rules = [
        _allow(("personality",), SeccompArg(index=0, value=value, op="SCMP_CMP_EQ")) for value in groups.PERSONALITIES
    ]
    # A vsock reaches the host past every network namespace.
    return [*rules, _allow(("socket",), SeccompArg(index=0, value=AF_VSOCK, op="SCMP_CMP_NE"))]


def _clone_without_namespaces(machine: str) -> list[SeccompSyscall]:
    # The flags are the first argument, on s390 the second (clone(2)).
    index = 1 if machine == "s390x" else 0
    no_namespace = SeccompArg(index=index, value=NAMESPACE_FLAGS, value_two=0, op="SCMP_CMP_MASKED_EQ")
    # clone3 has its flags in memory, where no filter can look; ENOSYS makes the C library fall back to clone.
    return [
        _allow(("clone",), no_namespace),
        SeccompSyscall(names=("clone3",), action=ERRNO, errno_ret=errno.ENOSYS),
    ]


class _ForeignSyscall(msgspec.Struct, rename="camel"):
    """What Docker's own notation adds to a rule, which no OCI runtime understands."""

    includes: dict[str, msgspec.Raw] | None = None
    excludes: dict[str, msgspec.Raw] | None = None


class _ForeignProfile(msgspec.Struct, rename="camel"):
    arch_map: list[msgspec.Raw] | None = None
    syscalls: list[_ForeignSyscall] | None = None


def load_profile(reference: str, folder: Path | None = None) -> Seccomp:
    """Read a profile file of the host: an absolute path, or a name below `folder`.

    Raises `InvalidArgument` for what is no file, no profile, or one with conditions that a runtime would ignore.
    """
    path = Path(reference.removeprefix("localhost/"))
    if not path.is_absolute():
        if folder is None or ".." in path.parts or not path.parts:
            raise errors.InvalidArgument(f"seccomp.localhost_ref: {reference[:200]!r} must be an absolute path")
        path = folder / path
    document = _read(path)
    try:
        foreign = msgspec.json.decode(document, type=_ForeignProfile)
        profile = msgspec.json.decode(document, type=Seccomp)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"seccomp profile {path}: {error}") from error
    if foreign.arch_map or any(rule.includes or rule.excludes for rule in foreign.syscalls or ()):
        raise errors.InvalidArgument(
            f"seccomp profile {path}: archMap, includes and excludes are Docker's; an OCI runtime would ignore them"
        )
    _check(profile, path)
    return profile


def _read(path: Path) -> bytes:
    try:
        # Whatever the name leads to, opening it must not wait.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise errors.InvalidArgument(f"seccomp profile {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise errors.InvalidArgument(f"seccomp profile {path}: is not a file")
    with open(fd, "rb") as stream:
        content = stream.read(PROFILE_LIMIT_BYTES + 1)
    if len(content) > PROFILE_LIMIT_BYTES:
        raise errors.InvalidArgument(f"seccomp profile {path}: is larger than {PROFILE_LIMIT_BYTES} bytes")
    return content


def _check(profile: Seccomp, path: Path) -> None:
    if profile.default_action not in ACTIONS:
        raise errors.InvalidArgument(f"seccomp profile {path}: defaultAction {profile.default_action!r} is unknown")
    for rule in profile.syscalls:
        subject = f"seccomp profile {path}: rule for {', '.join(rule.names[:3]) or 'nothing'}"
        if not rule.names:
            raise errors.InvalidArgument(f"{subject}: names no system call")
        if rule.action not in ACTIONS:
            raise errors.InvalidArgument(f"{subject}: action {rule.action!r} is unknown")
        for condition in rule.args:
            if condition.op not in OPERATORS or not 0 <= condition.index <= 5:
                raise errors.InvalidArgument(f"{subject}: a condition has an unknown op or an index not from 0 to 5")
