"""Stand-ins for the images that critest runs, made on this machine: no registry is asked.

Each has the name that critest pulls, Atoll's built-in busybox as its base and what the specs look for on top. They are
imported before the run, and critest pulls only what is not there.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from atoll.image import builtin
from atoll.image.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of
from bench.daemons import PAUSE_COMMAND, PAUSE_IMAGE

E2E = "registry.k8s.io/e2e-test-images"
STAGING = "gcr.io/k8s-staging-cri-tools"
EXECUTABLE = 0o755
SETUID = 0o4755

# busybox's httpd below a script that has nginx's name, command line and pid file; pidof finds it by its first argument.
_SERVER = """#!/bin/sh
echo "$0: master process, httpd on port {port}"
mkdir -p /var/run
echo $$ >/var/run/nginx.pid
trap 'kill $! 2>/dev/null; exit 0' TERM QUIT INT
busybox httpd -f -p {port} -h /srv &
wait
"""
_PAGE = "<!DOCTYPE html><title>Welcome to nginx!</title><p>It works!</p>\n"
_IPCS = "#!/bin/sh\nawk 'NR > 1 { print $2 }' /proc/sysvipc/shm\n"
_PGREP = '#!/bin/sh\nexec pidof "$@"\n'
_EFFECTIVE = """#include <stdio.h>
#include <unistd.h>
int main(void) { return printf("Effective uid: %d\\n", (int)geteuid()) < 0; }
"""
_PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"
    "default-user:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
)
_GROUP = (
    "root:x:0:\ntty:x:5:\nwww-data:x:33:\ndefault-user:x:1000:\n"
    "group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """An image: its names, the files on top of busybox with their modes, its config."""

    names: tuple[str, ...]
    files: dict[str, tuple[int, bytes]] = field(default_factory=dict[str, tuple[int, bytes]])
    config: dict[str, object] = field(default_factory=dict[str, object])


def stand_ins() -> tuple[StandIn, ...]:
    """Every image of the specs that run; needs gcc for the one that is set-user-id."""
    tools = {"usr/bin/ipcs": (EXECUTABLE, _IPCS.encode()), "usr/bin/pgrep": (EXECUTABLE, _PGREP.encode())}
    users = {"etc/passwd": (0o644, _PASSWD.encode()), "etc/group": (0o644, _GROUP.encode())}
    return (
        StandIn(names=(f"{E2E}/busybox:1.29-2", f"{E2E}/busybox:1.29-4"), files=tools, config={"Cmd": ["sh"]}),
        StandIn(names=(builtin.BUSYBOX,), config={"Cmd": ["sh"]}),
        StandIn(names=(PAUSE_IMAGE,), config={"Entrypoint": PAUSE_COMMAND}),
        _server(f"{E2E}/nginx:1.14-2", 80),
        _server(f"{E2E}/httpd:2.4.39-4", 80),
        _server(f"{STAGING}/hostnet-nginx-amd64:latest", 12003),
        StandIn(
            names=(f"{E2E}/nonewprivs:1.3",),
            files={"nnp": (SETUID, _compiled(_EFFECTIVE))},
            config={"Entrypoint": ["/nnp"]},
        ),
        StandIn(names=(f"{STAGING}/test-image-predefined-group:latest",), files=users, config={"User": "1000"}),
    )


def _server(name: str, port: int) -> StandIn:
    files = {
        "usr/sbin/nginx": (EXECUTABLE, _SERVER.format(port=port).encode()),
        "srv/index.html": (0o644, _PAGE.encode()),
    }
    return StandIn(names=(name,), files=files, config={"Entrypoint": ["/usr/sbin/nginx"], "Cmd": ["master process"]})


def _compiled(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:  # a linker must be able to seek
        command = ["gcc", "-static", "-O1", "-x", "c", "-", "-o", f"{folder}/out"]
        subprocess.run(command, input=source.encode(), check=True, capture_output=True, timeout=60)
        return Path(folder, "out").read_bytes()


def write_archive(path: Path, images: tuple[StandIn, ...]) -> None:
    """All of them as one OCI archive, their layers uncompressed."""
    base = next(one.layer for one in builtin.build(builtin.find_busybox()) if one.name == builtin.BUSYBOX)
    blobs: dict[str, bytes] = {digest_of(base): base}
    entries: list[dict[str, object]] = []
    for image in images:
        layers = [base, _layer(image.files)] if image.files else [base]
        config = msgspec.json.encode(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {
                    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                    **image.config,
                },
                "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            }
        )
        manifest = msgspec.json.encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": _descriptor(OCI_CONFIG, config),
                "layers": [_descriptor(OCI_LAYER, layer) for layer in layers],
            }
        )
        blobs |= {digest_of(data): data for data in (*layers, config, manifest)}
        for name in image.names:
            names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
            entries.append({**_descriptor(OCI_MANIFEST, manifest), "annotations": names})
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": entries}))
        for digest, data in blobs.items():
            _add(archive, f"blobs/sha256/{digest.removeprefix('sha256:')}", data)


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _layer(files: dict[str, tuple[int, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, (mode, data) in sorted(files.items()):
            _add(archive, path, data, mode)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, path: str, data: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))
