"""The images that need no registry: `atoll/busybox` and `atoll/pause`, of the host's static busybox.

Both have the one layer: busybox at /bin/busybox, a hard link for each applet, and the few files that
programs expect. `atoll/pause` differs in its command, a shell that as PID 1 of a pod sleeps for ever,
reaps whatever is orphaned (a shell's `wait` collects any child) and ends on SIGTERM or SIGINT. It
sleeps anew when somebody kills its sleep, and gives up where it cannot start one (status 2: no /dev/null).

The same busybox gives the same digests: the layer is a plain tar (compressors differ between
versions) in a fixed order, with no times and no names of this machine in it.
"""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from atoll import errors
from atoll.image.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of

BUSYBOX = "docker.io/atoll/busybox:latest"
PAUSE = "docker.io/atoll/pause:latest"
REPOSITORY_PREFIX = "docker.io/atoll/"
CANDIDATES = ("/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PAUSE = "trap 'kill $!; exit 0' TERM INT; until sleep 2147483647 & wait $!; [ $? -eq 2 ]; do :; done"
_PLATFORMS = {  # by e_machine: elf(5)
    62: {"architecture": "amd64"},
    183: {"architecture": "arm64", "variant": "v8"},
    243: {"architecture": "riscv64"},
}
_APPLET = re.compile(r"[a-z0-9/._\[+-]+")
_LIST_TIMEOUT_S = 10.0
_FOLDERS = (
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
    ("var/www", 0o755),
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/os-release": 'ID=atoll-busybox\nNAME="Atoll BusyBox"\n',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin:
    """One image, as its documents and its layer."""

    name: str
    manifest: bytes
    config: bytes
    layer: bytes
    pinned: bool


def find_busybox(candidates: Iterable[str] = CANDIDATES) -> Path:
    """The host's statically linked busybox; `FailedPrecondition` where there is none."""
    for candidate in candidates:
        path = Path(candidate)
        if path.is_file() and _is_static(path):
            return path
    raise errors.FailedPrecondition(
        f"no static busybox at {' or '.join(candidates)}: install it (Debian: apt-get install busybox-static)"
    )


def build(busybox: Path) -> tuple[Builtin, ...]:
    """The built-in images; runs `busybox --list-full`, takes some 20 ms, blocks."""
    binary = busybox.read_bytes()
    layer = _layer(binary, _applets(busybox))
    platform = _PLATFORMS.get(int.from_bytes(binary[18:20], "little"), {"architecture": "unknown"})
    processes = (
        (BUSYBOX, {"Cmd": ["sh"]}, False),
        (PAUSE, {"Entrypoint": ["/bin/busybox", "sh", "-c", _PAUSE]}, True),
    )
    return tuple(_image(name, layer, process, platform, pinned) for name, process, pinned in processes)


def _image(name: str, layer: bytes, process: dict[str, list[str]], platform: dict[str, str], pinned: bool) -> Builtin:
    config = {
        **platform,
        "os": "linux",
        "config": {
            "Env": [_PATH],
            **process,
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.title": name.removeprefix("docker.io/").partition(":")[0]},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        "history": [{"created_by": "atoll", "comment": "made from the host's static busybox"}],
    }
    config_bytes = msgspec.json.encode(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config_bytes), "size": len(config_bytes)},
        "layers": [{"mediaType": OCI_LAYER, "digest": digest_of(layer), "size": len(layer)}],
    }
    return Builtin(name=name, manifest=msgspec.json.encode(manifest), config=config_bytes, layer=layer, pinned=pinned)


def _applets(busybox: Path) -> list[str]:
    """Where busybox wants its applets, sorted, as it says itself."""
    try:
        result = subprocess.run(
            [str(busybox), "--list-full"], capture_output=True, check=True, timeout=_LIST_TIMEOUT_S, env={}
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise errors.FailedPrecondition(f"{busybox}: cannot list its applets: {error}") from error
    names = set(result.stdout.decode().split())
    if not names or any(not _APPLET.fullmatch(name) or ".." in name for name in names):
        raise errors.FailedPrecondition(f"{busybox}: `--list-full` does not list applets")
    return sorted(names - {"bin/busybox", "linuxrc"})


def _layer(binary: bytes, applets: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, "./", 0o755, kind=tarfile.DIRTYPE)
        made = {path for path, _ in _FOLDERS}
        for path, mode in _FOLDERS:
            _add(archive, path, mode, kind=tarfile.DIRTYPE)
        _add(archive, "bin/busybox", 0o755, binary)
        for applet in applets:
            folder = os.path.dirname(applet)
            if folder in made:
                _add(archive, applet, 0o755, kind=tarfile.LNKTYPE, link="bin/busybox")
        for path, text in _FILES.items():
            _add(archive, path, 0o644, text.encode())
    return buffer.getvalue()


def _add(
    archive: tarfile.TarFile, path: str, mode: int, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(path)
    member.mode, member.type, member.linkname, member.size = mode, kind, link, len(data)
    archive.addfile(member, io.BytesIO(data))


def _is_static(path: Path) -> bool:
    """Whether the ELF file has no interpreter (PT_INTERP): elf(5)."""
    with path.open("rb") as file:
        header = file.read(64)
        if (
            len(header) < 64
            or not header.startswith(b"\x7fELF\x02")
            or not stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        ):
            return False
        offset = int.from_bytes(header[32:40], "little")
        entry, count = int.from_bytes(header[54:56], "little"), int.from_bytes(header[56:58], "little")
        file.seek(offset)
        table = file.read(entry * count)
    return all(int.from_bytes(table[at : at + 4], "little") != 3 for at in range(0, entry * count, entry or 1))
