"""The AppArmor profile of containers that ask for none, or for the runtime's default: `atoll-default`.

It backs up what the spec does already with masked and read-only paths: a container with more capabilities than
usual, or a path that was not masked, still cannot mount, change the kernel's settings, or look into and signal what is
not its own. The kernel keeps a loaded profile until the host is switched off.
Source: apparmor.d(5), apparmor_parser(8).
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from atoll import errors
from atoll.linux.host import DEFAULT_APPARMOR_PROFILES, HostFacts
from atoll.linux.process import Spawner
from atoll.oci.detect import find

log = logging.getLogger(__name__)

NAME = DEFAULT_APPARMOR_PROFILES[0]
PARSER = "apparmor_parser"
LOAD_TIMEOUT_S = 20.0
MESSAGE_LIMIT_BYTES = 400

# A rule that denies wins over one that allows, whatever their order.
PROFILE = f"""\
profile {NAME} flags=(attach_disconnected, mediate_deleted) {{
  file,
  network,
  capability,
  unix,
  umount,
  signal (receive) peer=unconfined,
  signal (send, receive) peer={NAME},
  ptrace (read, readby, trace, tracedby) peer={NAME},

  deny mount,
  deny pivot_root,
  deny /proc/sys/** wkl,
  deny /proc/sysrq-trigger rwkl,
  deny /proc/kcore rwkl,
  deny /proc/{{acpi,bus,fs,irq,scsi}}/** wkl,
  deny /sys/{{[^f],f[^s]}}** wkl,
  deny /sys/fs/[^c]** wkl,
  deny /sys/firmware/** rwkl,
  deny /sys/kernel/security/** rwkl,
  deny /sys/devices/virtual/powercap/** rwkl,
}}
"""


async def with_default(host: HostFacts, spawner: Spawner) -> HostFacts:
    """`host` with `atoll-default` as its default profile, loaded now where the kernel does not have it.

    Where it cannot be loaded the log says why, and `host` keeps the profile it had, or none.
    """
    if not host.apparmor or host.apparmor_default == NAME:
        return host
    try:
        await _load(spawner)
    except errors.AtollError as error:
        log.warning("%s", error)
        return host
    return replace(host, apparmor_default=NAME)


async def _load(spawner: Spawner) -> None:
    program = find(PARSER)
    if program is None:
        raise errors.FailedPrecondition(
            f"{PARSER} is missing, so AppArmor does not confine containers by default; install the package apparmor"
        )
    profile, said = os.memfd_create("profile", os.MFD_CLOEXEC), os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        os.write(profile, PROFILE.encode())
        os.lseek(profile, 0, os.SEEK_SET)
        # Neither a cache of compiled profiles is read nor one written.
        argv = (str(program), "--replace", "--skip-cache")
        code = await spawner.run(argv, stdin=profile, stdout=said, stderr=said, timeout_s=LOAD_TIMEOUT_S)
        if code != 0:
            text = os.pread(said, MESSAGE_LIMIT_BYTES, 0).decode(errors="replace")
            raise errors.FailedPrecondition(
                f"the AppArmor profile {NAME} cannot be loaded, {program} says: {' '.join(text.split())}"
            )
    finally:
        os.close(profile)
        os.close(said)
