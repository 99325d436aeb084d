"""The files of a pod: hostname, hosts, resolv.conf and /dev/shm.

<folder>/hostname      the pod's name, or the host's where it has none
         hosts         the host's
         resolv.conf   made of the pod's DNS config, or the host's
         shm/          a tmpfs of 64 MiB, mode 1777; none where the pod uses the host's IPC
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from atoll.linux import mounts, syscalls
from atoll.sandbox.config import DNSConfig, PodConfig

SHM_SIZE_BYTES = 64 << 20
FILES = ("hostname", "hosts", "resolv.conf")
SHM = "shm"
STACKED_LIMIT = 64


def create(folder: Path, pod: PodConfig, *, shm: bool) -> None:
    """Make the folder and what belongs in it, each file whole or not at all; raises `OSError`. Idempotent.

    The files belong to root of the pod's users.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    name = pod.hostname or socket.gethostname()
    owner = pod.users.root if pod.users is not None else None
    _write(folder / "hostname", f"{name}\n".encode(), owner)
    _write(folder / "hosts", _host_file("/etc/hosts"), owner)
    dns = pod.dns_config
    _write(folder / "resolv.conf", _host_file("/etc/resolv.conf") if dns is None else resolv_conf(dns), owner)
    if shm:
        mount_shm(folder / SHM)


def mount_shm(path: Path) -> None:
    """Mount the pod's shared memory, unless it is mounted."""
    path.mkdir(mode=0o755, exist_ok=True)
    if _is_mounted(path):
        return
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("shm", path, "tmpfs", flags, f"mode=1777,size={SHM_SIZE_BYTES}")


def remove(folder: Path) -> None:
    """Unmount and remove what `create` made, and the folder if nothing else is in it; idempotent. Raises `OSError`."""
    shm = folder / SHM
    for _ in range(STACKED_LIMIT):
        if not _is_mounted(shm):
            break
        mounts.unmount(shm)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for path in (shm, folder):
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise


def _is_mounted(shm: Path) -> bool:
    # A tmpfs is a file system of its own, so its device tells; the mount table would have to be read whole.
    try:
        return shm.stat().st_dev != shm.parent.stat().st_dev
    except FileNotFoundError:
        return False


def resolv_conf(dns: DNSConfig) -> bytes:
    """The file for a DNS config: one line of search domains, one a server, one of options; none for what is empty."""
    lines: list[str] = []
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(f"{line}\n" for line in lines).encode()


def _host_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""


def _write(path: Path, content: bytes, owner: tuple[int, int] | None) -> None:
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "wb") as stream:
        stream.write(content)
        os.fchmod(fd, 0o644)
        if owner is not None:
            os.fchown(fd, *owner)
    os.replace(temporary, path)
