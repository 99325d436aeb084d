"""What this host can do, read once: the facts that decide about a container's spec and that `doctor` shows."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from atoll.linux import cgroup_layout, syscalls
from atoll.linux.cgroup_layout import Hierarchies

# Profiles for ordinary containers: ours, then those that containerd and Docker load where they run.
APPARMOR_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
DEFAULT_APPARMOR_PROFILES = ("atoll-default", "cri-containerd.apparmor.d", "docker-default")
SECCOMP_RET_ERRNO = 0x00050000

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}


def architecture() -> str:
    """This machine in the words of the OCI image spec, such as amd64."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip  in the order of their bits (linux/capability.h)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """`capabilities` are those the daemon may pass on; `oom_score_adj` is the daemon's own; `apparmor_default` is the
    loaded profile fit for any container, empty where none is."""

    kernel: tuple[int, ...]
    kernel_release: str
    machine: str
    hierarchies: Hierarchies
    capabilities: frozenset[str]
    oom_score_adj: int
    seccomp: bool
    apparmor: bool
    apparmor_default: str
    selinux: bool
    user_namespaces: bool
    overlay: bool
    swap_limit: bool
    hugepage_sizes: tuple[str, ...]
    cpus: frozenset[int] = frozenset()
    """The processors that are there, also those that are off; empty where the kernel does not tell."""
    memory_nodes: frozenset[int] = frozenset()


def read_host_facts() -> HostFacts:
    """Ask the kernel; about a millisecond. Raises `FailedPrecondition` where no cgroup hierarchy is mounted."""
    name = os.uname()
    hierarchies = cgroup_layout.detect()
    return HostFacts(
        kernel=kernel_version(name.release),
        kernel_release=name.release,
        machine=name.machine,
        hierarchies=hierarchies,
        capabilities=effective_capabilities(Path("/proc/self/status").read_text(encoding="ascii")),
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii")),
        seccomp=_has_seccomp(),
        apparmor=_read(Path("/sys/module/apparmor/parameters/enabled")) == "Y",
        apparmor_default=_apparmor_default(),
        selinux=Path("/sys/fs/selinux/enforce").exists(),
        user_namespaces=Path("/proc/self/ns/user").exists() and _has_room(Path("/proc/sys/user/max_user_namespaces")),
        overlay=_has_overlay(),
        swap_limit=_has_swap_limit(hierarchies),
        hugepage_sizes=_hugepage_sizes(),
        cpus=listed(_read(Path("/sys/devices/system/cpu/present"))),
        memory_nodes=listed(_read(Path("/sys/devices/system/node/online"))),
    )


def listed(text: str) -> frozenset[int]:
    """The numbers of a list of the kernel's, such as 0-3,7; cpuset(7), "List format"."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def kernel_version(release: str) -> tuple[int, ...]:
    """The leading numbers of a release: `6.1.0-18-amd64` gives (6, 1, 0)."""
    numbers: list[int] = []
    for part in release.partition("-")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def effective_capabilities(status: str) -> frozenset[str]:
    """The names of the bits of `CapEff` in a /proc/<pid>/status; bits without a name are left out."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1)
    return frozenset()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _has_room(path: Path) -> bool:
    return _read(path) not in ("", "0")


def _has_seccomp() -> bool:
    try:
        return syscalls.seccomp_action_available(SECCOMP_RET_ERRNO)
    except OSError:
        return False


def apparmor_profiles() -> frozenset[str] | None:
    """The names of the AppArmor profiles that the kernel has now; None where it does not tell (no securityfs)."""
    try:
        text = APPARMOR_PROFILES.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return frozenset(line.rpartition(" (")[0] for line in text.splitlines())


def _apparmor_default() -> str:
    loaded = apparmor_profiles() or frozenset()
    return next((name for name in DEFAULT_APPARMOR_PROFILES if name in loaded), "")


def _has_overlay() -> bool:
    # The module loads on the first mount, so a host that has it as a file has it too.
    if any(line.split()[-1] == "overlay" for line in _read(Path("/proc/filesystems")).splitlines()):
        return True
    return any(Path(f"/lib/modules/{os.uname().release}/kernel/fs/overlayfs").glob("overlay.ko*"))


def _has_swap_limit(hierarchies: Hierarchies) -> bool:
    if (memory := hierarchies.v1.get("memory")) is not None:
        return (memory / "memory.memsw.limit_in_bytes").exists()
    # The root of the unified hierarchy has no limits; any child with the controller shows the file.
    if hierarchies.unified is None or "memory" not in hierarchies.unified_controllers:
        return False
    return any(hierarchies.unified.glob("*/memory.swap.max"))


def _hugepage_sizes() -> tuple[str, ...]:
    folders = Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")
    sizes = [int(folder.name.removeprefix("hugepages-").removesuffix("kB")) for folder in folders]
    return tuple(_size_name(size) for size in sorted(sizes))


def _size_name(kib: int) -> str:
    for unit, factor in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kib >= factor and kib % factor == 0:
            return f"{kib // factor}{unit}"
    return f"{kib}KB"
