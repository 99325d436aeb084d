"""What one test owns outside its process, and what of it is still there when the test has ended.

Everything a test makes carries its `prefix`: in the environment of its processes, in the paths of its
folders, in the names of its links, networks and cgroups. So a test is judged by its own things although
others work on this machine. In CI, where nobody does, `Machine` compares the whole machine as well.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

MARKER = "ATOLL_TEST_PREFIX"
SETTLE_S = 2.0
"""The kernel takes namespaces and cgroups down behind the last process; this long may it take."""

CGROUPS = Path("/sys/fs/cgroup")
SHARED_FOLDERS = tuple(map(Path, ("/tmp", "/var/tmp", "/run", "/run/netns", "/dev/shm", "/var/lib/cni")))
LAZY_FDS = re.compile(r"anon_inode:\[(eventpoll|eventfd)\]$")
"""Made once by an event loop or by gRPC's core, and kept for the life of the process."""
KEPT = re.compile(
    r"(/run/(netns|crun|runc|containerd|xtables\.lock|lock)|/var/lib/cni(/[a-z]+)?|/tmp/pytest-of-\S+"
    r"|.*\b(CNI-HOSTPORT-[A-Z]+|CNI-FORWARD|CNI-ADMIN)\b.*|/(system|user)\.slice/.*)$"
)
"""What other programs make once on a machine and keep: their run folders, and the fixed chains of the CNI plugins."""

MODULE_LINKS = re.compile(r"(ifb[01]|sit0|tunl0|ip6tnl0|gre0|gretap0|erspan0)$")
"""Links that a kernel module makes when it is first used."""
IPTABLES_TABLE = re.compile(r"table ip6? (filter|nat|mangle|raw|security)\b")
"""The tables of nft that belong to iptables, which lists them itself."""

SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"
NETLINK_NETFILTER, NFT_NEWGEN, NFT_GETGEN, NLM_F_REQUEST = 12, 10 << 8 | 15, 10 << 8 | 16, 1
PF_KTHREAD = 0x00200000


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The things of one test; `prefix` is unique to it, and `folders` are its own."""

    prefix: str
    folders: tuple[Path, ...]
    fds_before: frozenset[tuple[int, str]]

    @classmethod
    def of(cls, prefix: str, fds_before: frozenset[tuple[int, str]]) -> Self:
        """That of the test, or of the daemon, with this prefix."""
        return cls(prefix=prefix, folders=(Path("/var/tmp", prefix), Path("/run", prefix)), fds_before=fds_before)

    def leaks(self) -> list[str]:
        """One line for each thing left. The test's folders are not counted, mounts below them are."""
        return [
            *(f"process {pid}: {command(pid)}" for pid in self.processes()),
            *(f"mount {point}" for point in self.mounts()),
            *(f"link {name}" for name in self.links()),
            *(f"cgroup {path}" for path in self.cgroups()),
            *(f"firewall: {rule}" for rule in sorted(firewall()) if self.prefix in rule),
            *(f"file {path}" for path in self.strays()),
            *(f"file descriptor {fd} -> {target}" for fd, target in sorted(own_fds() - self.fds_before)),
        ]

    def processes(self) -> list[int]:
        """Processes that carry the prefix in environment, command line or cgroup, or whose root file system is ours."""
        mark = self.prefix.encode()
        return [
            pid
            for pid in pids()
            if pid != os.getpid()
            and not is_of_the_kernel(pid)
            and not awaits_init(pid)
            and (
                any(mark in read(pid, name) for name in ("environ", "cmdline", "cgroup"))
                or (not has_our_root(pid) and any(mark in line for line in root_mounts(pid)))
            )
        ]

    def mounts(self) -> list[str]:
        """Mount points of this namespace with the prefix in their path, the latest first."""
        return [point for point in reversed(mount_points()) if self.prefix in point]

    def links(self) -> list[str]:
        """Links of this network namespace with the prefix in their name, and those attached to one of them."""
        return sorted(name for name, bridge in links().items() if self.prefix in name or self.prefix in bridge)

    def cgroups(self) -> list[Path]:
        """Cgroups with the prefix in their path, the innermost first."""
        return sorted((path for path in cgroups() if self.prefix in str(path)), reverse=True)

    def strays(self) -> list[Path]:
        """Entries of the machine's shared folders with the prefix in their name, the test's own folders excepted."""
        return [path for path in shared_entries() if self.prefix in path.name and path not in self.folders]

    def remove(self) -> None:
        """Take away what is left, so that a leak fails one test only; rules of iptables stay."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes())
        for point in self.mounts():
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        for name in self.links():
            subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)
        for table in {
            rule.partition(":")[0] for rule in firewall() if self.prefix in rule and rule.startswith("table ")
        }:
            subprocess.run(["nft", "delete", *table.split()], check=False, capture_output=True)
        for path in self.cgroups():
            with contextlib.suppress(OSError):
                path.rmdir()
        for path in (*self.strays(), *self.folders):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The outside state of the whole machine, of every kind that a pod touches."""

    things: frozenset[str]

    @classmethod
    def now(cls) -> Machine:
        return cls(
            things=frozenset(
                thing
                for thing in (
                    *(f"mount {point}" for point in mount_points() if not KEPT.match(point)),
                    *(f"link {name}" for name in links() if not MODULE_LINKS.match(name)),
                    *(f"network namespace {inode}" for inode in network_namespaces()),
                    *(f"cgroup {path}" for path in cgroups() if not KEPT.match(f"/{path.relative_to(CGROUPS)}")),
                    *(f"firewall: {rule}" for rule in firewall() if not KEPT.match(rule)),
                    *(f"file {path}" for path in shared_entries() if not KEPT.match(str(path))),
                )
            )
        )

    def leaks_since(self, before: Machine) -> list[str]:
        """What is here now and was not before."""
        return sorted(self.things - before.things)


def settled_leaks(footprint: Footprint, machine: Machine | None) -> list[str]:
    """The leaks that are still there when the kernel has had its time to settle."""
    leaks: list[str] = []

    def none_left() -> bool:
        leaks[:] = footprint.leaks()
        if machine is not None:
            own = tuple(f"file {folder}" for folder in footprint.folders)
            leaks.extend(leak for leak in Machine.now().leaks_since(machine) if leak not in own and leak not in leaks)
        return not leaks

    wait_until(none_left)
    return leaks


def wait_until(done: Callable[[], bool], *, within: float = SETTLE_S) -> bool:
    """Ask `done` until it says yes, for at most `within` seconds; its last answer."""
    deadline = time.monotonic() + within
    while not (answer := done()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return answer


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def read(pid: int, name: str) -> bytes:
    """A file of /proc/<pid>; empty where the process has gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError, OSError):
        return b""


def awaits_init(pid: int) -> bool:
    """Whether all that is left of a process is for the machine's first process to reap, which takes its time."""
    return read(pid, "stat").rpartition(b") ")[2].startswith(b"Z 1 ")


def is_of_the_kernel(pid: int) -> bool:
    """Whether it is a thread of the kernel, which no test starts."""
    after_name = read(pid, "stat").rpartition(b") ")[2].split()
    return bool(after_name and int(after_name[6]) & PF_KTHREAD)


def has_our_root(pid: int) -> bool:
    """Whether its root is this process's: the folder, and so the mount above all of its paths."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))
    return False


def root_mounts(pid: int) -> list[bytes]:
    """The lines of its mount table that are mounted on its root: each costs the kernel a walk, so few are asked for."""
    return [line for line in read(pid, "mountinfo").splitlines() if line.split()[4:5] == [b"/"]]


def command(pid: int) -> str:
    return (read(pid, "cmdline").replace(b"\0", b" ") or read(pid, "stat")).decode(errors="replace").strip()[:200]


def own_fds() -> frozenset[tuple[int, str]]:
    """This process's descriptors with what they point at, after the unreachable ones were collected."""
    gc.collect()
    found: set[tuple[int, str]] = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            target = os.readlink(f"/proc/self/fd/{name}")
            if not LAZY_FDS.match(target):
                found.add((int(name), target))
    return frozenset(found)


def fds_before() -> frozenset[tuple[int, str]]:
    """`own_fds` at the beginning of a test; what lives by now is not looked through again, for a run gathers much."""
    found = own_fds()
    gc.freeze()
    return found


def mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def links() -> dict[str, str]:
    """Links of this network namespace, each with the name of the bridge it is attached to, or an empty string."""
    found: dict[str, str] = {}
    for name in os.listdir("/sys/class/net"):
        master = Path("/sys/class/net", name, "master")
        if master.parent.is_symlink():
            found[name] = ""
            with contextlib.suppress(FileNotFoundError):  # attached to nothing, or gone since
                found[name] = os.path.basename(os.readlink(master))
    return found


def network_namespaces() -> set[str]:
    """The inodes of those that a process lives in or a mount pins."""
    found: set[str] = set()
    for pid in pids():
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if (root := line.split()[3]).startswith("net:["):
            found.add(root)
    return found


def cgroups(below: Path = CGROUPS) -> Iterator[Path]:
    """All of them; the link count of a folder tells the kernel's number of those in it, so leaves are not listed."""
    with contextlib.suppress(FileNotFoundError), os.scandir(below) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                path = Path(entry.path)
                yield path
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_nlink != 2:
                        yield from cgroups(path)


def shared_entries() -> Iterator[Path]:
    for folder in SHARED_FOLDERS:
        if folder.is_dir():
            yield from folder.iterdir()


def firewall() -> frozenset[str]:
    """The rules and chains of iptables in both families, and those of nft's other tables, one line each."""
    generation = firewall_generation()
    return firewall_of(generation) if generation is not None else firewall_now()


def firewall_generation() -> tuple[str, int] | None:
    """This network namespace and the number of its last change of rules; None where not all of them are nft's."""
    if not iptables_is_nft():
        return None
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asked:
        asked.settimeout(5)
        asked.send(struct.pack("=IHHIIBBH", 20, NFT_GETGEN, NLM_F_REQUEST, 1, 0, 0, 0, 0))
        answer = asked.recv(4096)
    if int.from_bytes(answer[4:6], sys.byteorder) != NFT_NEWGEN:  # a kernel without nft says so
        return None
    return os.readlink("/proc/thread-self/ns/net"), int.from_bytes(answer[24:28])


@functools.cache
def iptables_is_nft() -> bool:
    paths = [shutil.which(name, path=SBIN) for name in ("iptables-save", "ip6tables-save")]
    return all(path is None or os.path.realpath(path).endswith("-nft-multi") for path in paths)


@functools.lru_cache(maxsize=2)
def firewall_of(generation: tuple[str, int]) -> frozenset[str]:
    return firewall_now()


def firewall_now() -> frozenset[str]:
    found: set[str] = set()
    for program in ("iptables-save", "ip6tables-save"):
        found.update(line for line in output(program) if line.startswith(("-A ", ":")) and " ACCEPT [" not in line)
    table = ""
    for line in output("nft", "--numeric", "--stateless", "list", "ruleset"):
        if line.startswith("table "):
            table = line.removesuffix(" {")
            found.add(table)
        elif line.strip() not in ("", "}"):
            found.add(f"{table}: {line.strip()}")
    return frozenset(re.sub(r" ?\[\d+:\d+\]$", "", rule) for rule in found if not IPTABLES_TABLE.match(rule))


def output(*arguments: str) -> list[str]:
    """The lines a program prints; none where it is not installed or this kernel lacks what it lists."""
    path = shutil.which(arguments[0], path=SBIN)
    if path is None:
        return []
    finished = subprocess.run([path, *arguments[1:]], capture_output=True, text=True, check=False, timeout=30)
    return finished.stdout.splitlines()
