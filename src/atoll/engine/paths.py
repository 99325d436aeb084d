"""Where the daemon keeps what: the durable root and the volatile state.

<root>/state.db                     records and the ledger
       instance                     eight hex digits that mark what is this daemon's
       containers/<id>/status       checkpoints
       images/                      content and snapshots
       volumes/<pod>/               what the containers of a pod share on the disk
       cni/                         cached results and addresses of the default network
<state>/atoll.sock                  every gRPC service
        lock                        held while a daemon runs
        netns/<pod>                 pinned network namespaces
        pods/<pod>/                 hostname, hosts, resolv.conf, shm
        shims/<pod>/                the bundle of the pod's shim
        bundles/<container>/        the bundle of a container
        relays/<pod>/               the relay and the fifos of a pod whose shim is not ours
        s/                          sockets of shims
        oci/                        the OCI runtime's records of containers; oci.d/<namespace>/ for other namespaces
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.linux.files import replacing

NAMESPACE = "k8s.io"
"""The containerd namespace of everything that CRI clients ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    root: Path
    state: Path
    instance: str

    @classmethod
    def prepare(cls, root: Path, state: Path) -> Paths:
        """Make both trees (0700, the state 0711 for what containers mount) and give the root its instance ID.

        Durable when it returns. Raises `FailedPrecondition` naming what the disk refuses, or what is no instance ID.
        """
        try:
            return cls._prepare(root, state)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"{error.filename or root}: cannot be made: {error.strerror}; choose another --root or --state"
            ) from error

    @classmethod
    def _prepare(cls, root: Path, state: Path) -> Paths:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        for folder in (root / "containers", root / "images"):
            folder.mkdir(mode=0o700, exist_ok=True)
        paths = cls(root=root, state=state, instance=_instance(root / "instance"))
        for folder in (paths.pods, paths.shims, paths.bundles, paths.relays, paths.sockets):
            folder.mkdir(mode=0o711, exist_ok=True)
        return paths

    @property
    def database(self) -> Path:
        return self.root / "state.db"

    @property
    def containers(self) -> Path:
        return self.root / "containers"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def netns(self) -> Path:
        return self.state / "netns"

    @property
    def pods(self) -> Path:
        return self.state / "pods"

    @property
    def shims(self) -> Path:
        return self.state / "shims"

    @property
    def bundles(self) -> Path:
        return self.state / "bundles"

    @property
    def relays(self) -> Path:
        return self.state / "relays"

    def oci(self, namespace: str) -> Path:
        """Where the OCI runtime keeps what it knows of the containers of a containerd namespace."""
        return self.state / "oci" if namespace == NAMESPACE else self.state / "oci.d" / namespace

    @property
    def sockets(self) -> Path:
        return self.state / "s"


def _instance(mark: Path) -> str:
    """The ID in the file, which is made with a new one where it is not there."""
    try:
        instance = mark.read_bytes().strip()
    except FileNotFoundError:
        instance = secrets.token_hex(4).encode()
        with replacing(mark) as file:
            file.write(instance + b"\n")
    if re.fullmatch(rb"[0-9a-f]{8}", instance) is None:
        raise errors.FailedPrecondition(
            f"{mark}: is not the eight hex digits that mark what is this daemon's; put them back (they are in the "
            "names of its cgroups and links), or remove the file where nothing of it is left"
        )
    return instance.decode()
