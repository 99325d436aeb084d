"""Stand-ins for the images that critest runs, made on this machine: no registry is asked.

Each has the name that critest pulls, Atoll's built-in busybox as its base and what the specs look for on top. Most are
imported before the run, and critest pulls only what is not there; some it insists on pulling, from a registry here.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import msgspec

from atoll.image import builtin
from atoll.image.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of
from bench.daemons import PAUSE_COMMAND, PAUSE_IMAGE
from bench.places import PATH

E2E = "registry.k8s.io/e2e-test-images"
STAGING = "gcr.io/k8s-staging-cri-tools"
DIGESTED = "test-image-digest:latest"
"""The specs pull it by its digest alone: `Images.digested`."""
USERS = {"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:100"}
WEB = f"{E2E}/nginx:1.14-2"
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
    pulled: bool = False
    """Pulled by the specs themselves, from `Registry`, and so not imported."""


def stand_ins() -> tuple[StandIn, ...]:
    """Every image of the specs that run; needs gcc for the one that is set-user-id."""
    tools = {"usr/bin/ipcs": (EXECUTABLE, _IPCS.encode()), "usr/bin/pgrep": (EXECUTABLE, _PGREP.encode()), **_shell()}
    users = {"etc/passwd": (0o644, _PASSWD.encode()), "etc/group": (0o644, _GROUP.encode())}
    return (
        StandIn(names=(f"{E2E}/busybox:1.29-2", f"{E2E}/busybox:1.29-4"), files=tools, config={"Cmd": ["sh"]}),
        StandIn(names=(builtin.BUSYBOX,), config={"Cmd": ["sh"]}),
        StandIn(names=(PAUSE_IMAGE,), config={"Entrypoint": PAUSE_COMMAND}),
        _server(WEB, 80),
        _server(f"{E2E}/httpd:2.4.39-4", 80),
        _server(f"{STAGING}/hostnet-nginx-amd64:latest", 12003),
        StandIn(
            names=(f"{E2E}/nonewprivs:1.3",),
            files={"nnp": (SETUID, _compiled(_EFFECTIVE))},
            config={"Entrypoint": ["/nnp"]},
        ),
        StandIn(names=(f"{STAGING}/test-image-predefined-group:latest",), files=users, config={"User": "1000"}),
        *_pulled(),
    )


def _pulled() -> Iterator[StandIn]:
    """Each with an ID of its own: the specs remove it by its ID, and with it every name that it has."""
    same = (
        (f"{STAGING}/test-image-tags:{n}" for n in (1, 2, 3)),
        ("registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"),
    )
    alone = ("test-image-tag:test", "test-image-tag:all", "test-image-latest:latest", DIGESTED)
    several = (f"test-image-{n}:latest" for n in (1, 2, 3))
    for names in (*map(tuple, same), *((f"{STAGING}/{name}",) for name in (*alone, *several))):
        yield StandIn(names=names, config={"Entrypoint": PAUSE_COMMAND, "Labels": {"for": names[0]}}, pulled=True)
    for name, user in USERS.items():
        yield StandIn(names=(f"{STAGING}/test-image-user-{name}:latest",), config={"User": user}, pulled=True)


def _server(name: str, port: int) -> StandIn:
    files = {
        "usr/sbin/nginx": (EXECUTABLE, _SERVER.format(port=port).encode()),
        "srv/index.html": (0o644, _PAGE.encode()),
    }
    return StandIn(names=(name,), files=files, config={"Entrypoint": ["/usr/sbin/nginx"], "Cmd": ["master process"]})


def _shell() -> dict[str, tuple[int, bytes]]:
    """A shell that executes /bin/ls instead of being it, for a spec that masks it: `ls` renamed among its applets."""
    applets = (b"\0ls\0ls", b"\0lr\0ls")  # in their order, which is searched
    return {"bin/sh": (EXECUTABLE, builtin.find_busybox().read_bytes().replace(*applets))}


def _compiled(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:  # a linker must be able to seek
        command = ["gcc", "-static", "-O1", "-x", "c", "-", "-o", f"{folder}/out"]
        subprocess.run(command, input=source.encode(), check=True, capture_output=True, timeout=60)
        return Path(folder, "out").read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What `stand_ins` describes, as blobs and manifests by name."""

    blobs: dict[str, bytes]
    imported: dict[str, bytes]
    pulled: dict[str, bytes]

    @property
    def digested(self) -> str:
        """The digest of the image that the specs pull by digest."""
        return digest_of(self.pulled[f"{STAGING}/{DIGESTED}"])

    @classmethod
    def of(cls, images: tuple[StandIn, ...]) -> Images:
        base = next(one.layer for one in builtin.build(builtin.find_busybox()) if one.name == builtin.BUSYBOX)
        made = cls(blobs={digest_of(base): base}, imported={}, pulled={})
        for image in images:
            manifest = made._add(image, base)
            (made.pulled if image.pulled else made.imported).update(dict.fromkeys(image.names, manifest))
        return made

    def _add(self, image: StandIn, base: bytes) -> bytes:
        layers = [base, _layer(image.files)] if image.files else [base]
        config = msgspec.json.encode(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": [f"PATH={PATH}"], **image.config},
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
        self.blobs.update({digest_of(data): data for data in (*layers, config, manifest)})
        return manifest

    def write_archive(self, path: Path) -> None:
        """Those to import as one OCI archive, their layers uncompressed."""
        entries = [
            {
                **_descriptor(OCI_MANIFEST, manifest),
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name.rpartition(":")[2],
                },
            }
            for name, manifest in self.imported.items()
        ]
        with tarfile.open(path, "w") as archive:
            _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            _add(archive, "index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": entries}))
            for digest, data in self.blobs.items():
                _add(archive, f"blobs/sha256/{digest.removeprefix('sha256:')}", data)


class Registry(ThreadingHTTPServer):
    """Gives every image, whatever registry it is asked as, on a port of the loopback; a context.

    But the one that keeps containerd's pods: where that is removed a pod must fail.
    """

    daemon_threads = True

    def __init__(self, images: Images) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        given = {**images.imported, **images.pulled}
        del given[PAUSE_IMAGE]
        manifests = {name.partition("/")[2].replace(":", "/manifests/"): data for name, data in given.items()}
        self.content = {f"/v2/{path}": (OCI_MANIFEST, data) for path, data in manifests.items()}
        self.content["/v2/"] = ("application/json", b"{}")  # asked first: is this a registry?
        self.blobs = images.blobs
        self._thread = threading.Thread(target=self.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        digest = path.rpartition("/")[2]
        kind, data = self.server.content.get(path, ("application/octet-stream", self.server.blobs.get(digest, b"")))
        if "/manifests/sha256:" in path:
            kind = OCI_MANIFEST
        self.send_response(200 if data else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if data:
            self.send_header("Docker-Content-Digest", digest_of(data))
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


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
