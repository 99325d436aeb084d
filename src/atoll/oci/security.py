"""AppArmor and SELinux of a process and of its files: as asked, or an error where the host has no such module.

Source: config.md of the runtime spec (`apparmorProfile`, `selinuxLabel`); the CRI's security contexts.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass

from atoll import errors
from atoll.linux.host import HostFacts, apparmor_profiles
from atoll.oci.config import LinuxContainerSecurityContext, ProfileType, SecurityProfile, SELinuxOption

_LEVEL = re.compile(r"s\d+(-s\d+)?(:c\d+([.,]c\d+)*)?")
_WORD = re.compile(r"[A-Za-z0-9_.]{1,255}")
SELINUX_ATTRIBUTE = "security.selinux"
NOT_RELABELED = frozenset(
    f"/{name}" for name in ("", "boot", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var")
)
"""Folders that others than containers need with their labels."""
_PROFILE_NAME = re.compile(r"[^\x00-\x20\x7f]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """SELinux labels of the processes and of the files that are mounted for them; empty for none."""

    process: str = ""
    mount: str = ""


def legacy_profile(text: str, *, field: str) -> SecurityProfile | None:
    """A profile in the CRI's old notation: `runtime/default`, `unconfined`, `localhost/<name>`."""
    if not text:
        return None
    if text in ("runtime/default", "docker/default"):
        return SecurityProfile(profile_type=ProfileType.RUNTIME_DEFAULT)
    if text == "unconfined":
        return SecurityProfile(profile_type=ProfileType.UNCONFINED)
    kind, found, name = text.partition("/")
    if kind == "localhost" and found and name:
        return SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref=name)
    raise errors.InvalidArgument(f"{field}: {text[:100]!r} is none of runtime/default, unconfined, localhost/<name>")


def apparmor_profile(security: LinuxContainerSecurityContext, host: HostFacts) -> str:
    """The AppArmor profile's name, empty for none.

    The runtime's default is no profile where the host has no AppArmor, and the one named in
    `HostFacts.apparmor_default` where it has; who asks for nothing gets it too, where there is one. Raises
    `FailedPrecondition` for a profile asked by name, or the default asked for, that cannot be had here.
    """
    asked = security.apparmor or legacy_profile(security.apparmor_profile, field="apparmor_profile")
    if security.privileged or (asked is not None and asked.profile_type is ProfileType.UNCONFINED):
        return ""
    if asked is not None and asked.profile_type is ProfileType.LOCALHOST:
        name = asked.localhost_ref.removeprefix("localhost/")
        if not _PROFILE_NAME.fullmatch(name):
            raise errors.InvalidArgument(f"apparmor.localhost_ref: {name[:100]!r} is no profile name")
        if not host.apparmor:
            raise errors.FailedPrecondition(f"apparmor profile {name}: this host has no AppArmor")
        loaded = apparmor_profiles()
        # A stack of profiles names each of its parts (apparmor.d(5)).
        if loaded is not None and not loaded.issuperset(name.split("//&")):
            raise errors.FailedPrecondition(f"apparmor profile {name}: is not loaded; load it with apparmor_parser")
        return name
    if asked is not None and host.apparmor and not host.apparmor_default:
        raise errors.FailedPrecondition(
            "apparmor: no default profile is loaded; install apparmor_parser (package apparmor) and restart the daemon"
        )
    return host.apparmor_default if host.apparmor else ""


def selinux_labels(options: SELinuxOption | None, host: HostFacts) -> Labels:
    """The SELinux labels asked for; `InvalidArgument` for malformed ones, `FailedPrecondition` without SELinux."""
    if options is None or options == SELinuxOption():
        return Labels()
    if options.level and not _LEVEL.fullmatch(options.level):
        raise errors.InvalidArgument(f"selinux_options.level: {options.level[:60]!r} is no level such as s0:c1,c2")
    for field in ("user", "role", "type"):
        value: str = getattr(options, field)
        if value and not _WORD.fullmatch(value):
            raise errors.InvalidArgument(f"selinux_options.{field}: {value[:60]!r} is no word")
    if not host.selinux:
        raise errors.FailedPrecondition("selinux_options: this host has no SELinux")
    level = options.level or "s0"
    kind = options.type or "container_t"
    return Labels(
        process=f"{options.user or 'system_u'}:{options.role or 'system_r'}:{kind}:{level}",
        mount=f"system_u:object_r:container_file_t:{level}",
    )


def relabel(path: str, label: str) -> None:
    """Give a mount's source, and what is below it, the SELinux label of the container's files; links are not followed.

    File systems without labels are left out. Raises `InvalidArgument` for a folder that is the host's own,
    `FailedPrecondition` naming the file whose label cannot be set.
    """
    if path in NOT_RELABELED:
        raise errors.InvalidArgument(f"mount {path}: selinux_relabel: would take the folder from the host")
    pending = [path]
    for place in pending:
        try:
            os.setxattr(place, SELINUX_ATTRIBUTE, label.encode() + b"\0", follow_symlinks=False)
            if stat.S_ISDIR(os.lstat(place).st_mode):
                pending += [os.path.join(place, name) for name in os.listdir(place)]
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                continue
            raise errors.FailedPrecondition(f"mount {path}: selinux_relabel: {place}: {error.strerror}") from error
