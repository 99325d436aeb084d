"""`atoll doctor`: what this host has and lacks for Atoll, and the way to fix it. Needs no daemon, changes nothing.

Each check is a function that gives one or more `Check`s; a check is `ok`, a `warning` where something works
less well, or `missing` where Atoll cannot do its work.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from atoll import errors
from atoll.cli import show
from atoll.cli.outcome import FOUND
from atoll.client import connect
from atoll.client.private import answers
from atoll.config import Config
from atoll.image.builtin import find_busybox
from atoll.linux.host import HostFacts, read_host_facts
from atoll.linux.process import PidfdSpawner
from atoll.network.default import PLUGINS, can_masquerade, missing_on_host
from atoll.oci import detect

KERNEL = (5, 9)
"""The oldest kernel with close_range and pidfd waits, which everything here stands on."""
MACHINE = "x86_64"
CONTROLLERS = ("cpu", "memory", "pids")
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_CHROOT", "CAP_SETUID", "CAP_MKNOD", "CAP_KILL")
DISK_WARNING_BYTES = 1 << 30
ASK_WITHIN_S = 5.0
DISK_MISSING_BYTES = 64 << 20


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at: what was found, and where it is not `ok` what to do."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


async def report(config: Config, *, as_json: bool, own_folders: bool = True) -> int:
    """Print every check; 1 where something needed is missing.

    Disks are those of `config`, without `own_folders` those of the daemon that answers, where one does.
    """
    checks = await examine(config if own_folders else await _as_the_daemon(config))
    if as_json:
        show.dump(checks)
    else:
        marks = {Verdict.OK: "ok", Verdict.WARNING: "warn", Verdict.MISSING: "MISSING"}
        show.table(("", "CHECK", "FOUND"), [(marks[one.verdict], one.name, one.found) for one in checks])
        for one in checks:
            if one.fix:
                print(f"\n{one.name}: {one.fix}")
    return FOUND if any(one.verdict is Verdict.MISSING for one in checks) else 0


async def examine(config: Config) -> list[Check]:
    """Every check of this host, those that matter most first."""
    checks = [_root(), _daemon(config.socket_path)]
    try:
        facts = read_host_facts()
    except errors.FailedPrecondition as error:
        checks.append(Check(name="cgroups", verdict=Verdict.MISSING, found="none", fix=str(error)))
    else:
        checks += _kernel(facts)
        checks += _cgroups(facts)
    checks += await _oci_runtimes()
    checks += _cni(config)
    checks += _firewall()
    checks += _images()
    checks += _disk(config)
    return checks


async def _as_the_daemon(config: Config) -> Config:
    """With the folders of the daemon at its socket; as it is where none tells them in time."""
    try:
        async with asyncio.timeout(ASK_WITHIN_S), connect(config.socket_path, start=False) as client:
            told = await client.info()
    except (errors.AtollError, TimeoutError):
        return config
    return msgspec.structs.replace(config, root=told.root, state=told.state)


def _root() -> Check:
    if os.geteuid() == 0:
        return Check(name="user", verdict=Verdict.OK, found="root")
    return Check(name="user", verdict=Verdict.MISSING, found=f"uid {os.geteuid()}", fix="run as root: sudo atoll ...")


def _daemon(socket: Path) -> Check:
    """Whether one answers; none is needed, and none is started."""
    try:
        found = f"answers at {socket}" if answers(socket) else f"none at {socket}"
    except errors.AtollError as error:
        return Check(name="daemon", verdict=Verdict.WARNING, found=f"cannot be asked at {socket}", fix=str(error))
    return Check(name="daemon", verdict=Verdict.OK, found=found)


def _kernel(facts: HostFacts) -> Iterator[Check]:
    enough = facts.kernel >= KERNEL
    wanted = ".".join(map(str, KERNEL))
    yield Check(
        name="kernel",
        verdict=Verdict.OK if enough else Verdict.MISSING,
        found=facts.kernel_release,
        fix="" if enough else f"boot a kernel of version {wanted} or later",
    )
    known = facts.machine == MACHINE
    yield Check(
        name="architecture",
        verdict=Verdict.OK if known else Verdict.MISSING,
        found=facts.machine,
        fix="" if known else f"run on {MACHINE}: the holder of a pod's namespaces is machine code, for it alone",
    )
    yield Check(
        name="overlayfs",
        verdict=Verdict.OK if facts.overlay else Verdict.MISSING,
        found="there" if facts.overlay else "not in this kernel",
        fix="" if facts.overlay else "modprobe overlay, or boot a kernel with CONFIG_OVERLAY_FS",
    )
    yield Check(
        name="seccomp",
        verdict=Verdict.OK if facts.seccomp else Verdict.MISSING,
        found="there" if facts.seccomp else "not in this kernel",
        fix="" if facts.seccomp else "boot a kernel with CONFIG_SECCOMP_FILTER",
    )
    modules = [name for name, on in (("AppArmor", facts.apparmor), ("SELinux", facts.selinux)) if on]
    yield Check(name="security modules", verdict=Verdict.OK, found=", ".join(modules) or "none")
    yield Check(
        name="user namespaces",
        verdict=Verdict.OK if facts.user_namespaces else Verdict.WARNING,
        found="there" if facts.user_namespaces else "switched off",
        fix=""
        if facts.user_namespaces
        else "pods with hostUsers: false cannot run; sysctl user.max_user_namespaces=15000",
    )
    lacking = [name for name in CAPABILITIES if name not in facts.capabilities]
    yield Check(
        name="capabilities",
        verdict=Verdict.MISSING if lacking else Verdict.OK,
        found=f"without {', '.join(lacking)}" if lacking else f"{len(facts.capabilities)}",
        fix="run where root has these capabilities: not in a container without --privileged" if lacking else "",
    )


def _cgroups(facts: HostFacts) -> Iterator[Check]:
    hierarchies = facts.hierarchies
    lacking = [name for name in CONTROLLERS if name not in hierarchies.controllers]
    fix = ""
    if lacking:
        fix = f"limits of {', '.join(lacking)} cannot be kept; enable them on the kernel's command line or mount them"
    yield Check(
        name="cgroups",
        verdict=Verdict.MISSING if lacking else Verdict.OK,
        found=f"{hierarchies.layout}: {', '.join(sorted(hierarchies.controllers))}",
        fix=fix,
    )
    yield Check(
        name="swap limit",
        verdict=Verdict.OK,
        found="there" if facts.swap_limit else "none: memory limits do not count swap",
    )


async def _oci_runtimes() -> list[Check]:
    """Each runtime runs a container of the host's own /bin/true; one that works is enough."""
    if os.geteuid() != 0:
        return [Check(name="OCI runtime", verdict=Verdict.WARNING, found="not tried: needs root")]
    reports: list[detect.RuntimeReport] = []
    spawner = PidfdSpawner()
    with tempfile.TemporaryDirectory(prefix="atoll-doctor-") as scratch:
        for name in detect.PREFERRED:
            binary = detect.find(name)
            if binary is None:
                reports.append(detect.RuntimeReport(binary=name, works=False, reason="is not installed"))
            else:
                reports.append(await detect.probe(binary, spawner, folder=Path(scratch)))
    works = any(one.works for one in reports)
    checks = [
        Check(
            name=f"OCI runtime {Path(one.binary).name}",
            verdict=Verdict.OK if one.works else Verdict.WARNING if works else Verdict.MISSING,
            found=f"{one.version} works" if one.works else one.reason,
        )
        for one in reports
    ]
    if not works:
        checks.append(
            Check(
                name="OCI runtime",
                verdict=Verdict.MISSING,
                found="none works",
                fix="install Debian package crun or runc",
            )
        )
    return checks


def _cni(config: Config) -> Iterator[Check]:
    folders = [Path(one) for one in config.network.bin_dirs]
    where = ", ".join(map(str, folders))

    def there(plugin: str) -> bool:
        return any(os.access(folder / plugin, os.X_OK) for folder in folders)

    lacking = [plugin for plugin in PLUGINS if not there(plugin)]
    yield Check(
        name="CNI plugins",
        verdict=Verdict.MISSING if lacking else Verdict.OK,
        found=f"without {', '.join(lacking)} in {where}" if lacking else ", ".join(PLUGINS),
        fix="install Debian package containernetworking-plugins" if lacking else "",
    )
    yield Check(
        name="CNI portmap",
        verdict=Verdict.OK if there("portmap") else Verdict.WARNING,
        found="there" if there("portmap") else f"not in {where}",
        fix="" if there("portmap") else "no ports can be published; install Debian package containernetworking-plugins",
    )
    conf_dir = Path(config.network.conf_dir)
    own = sorted(path.name for path in conf_dir.glob("*.conf*")) if conf_dir.is_dir() else []
    yield Check(
        name="CNI config",
        verdict=Verdict.OK,
        found=f"{conf_dir}: {', '.join(own)}" if own else f"none in {conf_dir}: the default bridge network is used",
    )


def _firewall() -> Iterator[Check]:
    lacking = missing_on_host()
    verdict = Verdict.OK if not lacking else Verdict.WARNING if can_masquerade() else Verdict.MISSING
    programs = [name for name in ("nft", "iptables") if shutil.which(name, path=detect.ENVIRONMENT["PATH"])]
    yield Check(name="firewall", verdict=verdict, found=", ".join(programs) or "none", fix="; ".join(lacking))


def _images() -> Iterator[Check]:
    skopeo = shutil.which("skopeo")
    yield Check(
        name="skopeo",
        verdict=Verdict.OK if skopeo else Verdict.WARNING,
        found=skopeo or "is not installed",
        fix="" if skopeo else "no image can be pulled; install Debian package skopeo",
    )
    try:
        busybox = find_busybox()
    except errors.FailedPrecondition as error:
        yield Check(name="built-in images", verdict=Verdict.WARNING, found="no static busybox", fix=str(error))
    else:
        yield Check(name="built-in images", verdict=Verdict.OK, found=f"of {busybox}")


def _disk(config: Config) -> Iterator[Check]:
    for what, folder in (("root", Path(config.root)), ("state", Path(config.state))):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        enough = free >= (DISK_WARNING_BYTES if what == "root" else DISK_MISSING_BYTES)
        verdict = Verdict.OK if enough else Verdict.MISSING if free < DISK_MISSING_BYTES else Verdict.WARNING
        yield Check(
            name=f"disk of the {what}",
            verdict=verdict,
            found=f"{show.size(free)} free at {there}",
            fix="" if enough else f"make room at {there}, or choose another folder (`{what}` in the config file)",
        )
