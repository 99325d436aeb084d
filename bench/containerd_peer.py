"""A stock containerd 2.x whose CRI has three kinds of handlers: its own sandboxer, ours, and our shim under its own.

    runc        io.containerd.runc.v2, podsandbox: as it comes
    atoll       sandboxer = "atoll": the proxy plugin that is an Atoll daemon
    atoll-shim  io.containerd.atoll.v1, podsandbox: our shim alone

Its binaries are the caller's: this repository neither has them nor builds them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench import containerd_images
from bench.daemons import PAUSE_IMAGE, Atoll, Containerd
from bench.places import PLUGIN_FOLDERS, Places, wait_until

SHIM = Path(sys.executable).parent / "containerd-shim-atoll-v1"
HANDLER, PODSANDBOX, OUR_SHIM = "atoll", "runc", "atoll-shim"
VERSIONS = (2, 3, 4)
UNSTARTED_S = 20.0
"""After which Atoll frees a sandbox that was created and not started; the default would take a check too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """Where a containerd 2.x and its tools are."""

    containerd: Path
    ctr: Path
    shim: Path
    crictl: Path | None = None
    critest: Path | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Binaries:
        """From `add_options`; `SystemExit` names what is not there."""
        folder: Path = options.binaries
        optional = {name: folder / name if (folder / name).is_file() else None for name in ("crictl", "critest")}
        found = cls(
            containerd=folder / "containerd", ctr=folder / "ctr", shim=folder / "containerd-shim-runc-v2", **optional
        )
        missing = [str(path) for path in (found.containerd, found.ctr, found.shim) if not os.access(path, os.X_OK)]
        if missing:
            raise SystemExit(f"not there, or not executable: {', '.join(missing)}")
        return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "binaries",
        type=Path,
        help="a folder with containerd (2.x), ctr, containerd-shim-runc-v2, and for some uses crictl and critest",
    )


class ContainerdPeer(Containerd):
    """A containerd 2.x, private, with `sandboxer` (the socket of an Atoll daemon) as its proxy plugin."""

    def __init__(
        self, places: Places, binaries: Binaries, sandboxer: Path, *, version: int = 4, log_level: str = "warn"
    ) -> None:
        super().__init__(places)
        self.binaries = binaries
        self.sandboxer = sandboxer
        self.version = version
        self.log_level = log_level

    def command(self) -> list[str]:
        config = str(self.places.base / "config.toml")
        return [str(self.binaries.containerd), "--config", config, "--log-level", self.log_level]

    @property
    def containerd_state(self) -> Path:
        return state_of(self.places)

    def prepare(self) -> None:
        (self.places.base / "config.toml").write_text(configuration(self))

    def equip(self) -> None:
        archive = self.places.base / "images.tar"
        images = containerd_images.stand_ins()
        containerd_images.write_archive(archive, images)
        self.ctr("images", "import", "--local", str(archive))
        names = [name for image in images for name in image.names]
        if not wait_until(lambda: all(self.cri.has_image(name) for name in names), every=0.05):
            raise RuntimeError(f"{self.places.name}: does not see the imported images")

    def ctr(self, *arguments: str, namespace: str = "k8s.io", check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(self.binaries.ctr), "--address", str(self.places.socket), "--namespace", namespace, *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120)


def configuration(peer: ContainerdPeer) -> str:
    """The whole configuration file, in the words of `peer.version`: 2, 3 or 4."""
    places = peer.places
    folders = [folder for folder in PLUGIN_FOLDERS if Path(folder, "bridge").is_file()]
    old = peer.version == 2
    cri = "plugins.'io.containerd.grpc.v1.cri'"
    runtime = cri if old else "plugins.'io.containerd.cri.v1.runtime'"
    images = (
        f"[{cri}]\nsandbox_image = '{PAUSE_IMAGE}'"
        if old
        else (f"[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{PAUSE_IMAGE}'\n[{cri}]")
    )
    server = (
        f"[plugins.'io.containerd.server.v1.grpc']\naddress = '{places.socket}'\n"
        f"[plugins.'io.containerd.server.v1.ttrpc']\naddress = '{places.socket}.ttrpc'"
        if peer.version >= 4
        else f"[grpc]\naddress = '{places.socket}'"
    )
    own = "restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true"
    return f"""version = {peer.version}
root = '{places.root}'
state = '{peer.containerd_state}'
temp = ''
disabled_plugins = ['io.containerd.snapshotter.v1.devmapper', 'io.containerd.nri.v1.nri']
{server}
[proxy_plugins.atoll]
type = 'sandbox'
address = '{peer.sandboxer}'
{images}
stream_server_address = '127.0.0.1'
stream_server_port = '0'
{own if old else f"[{runtime}]{chr(10)}{own}"}
[{runtime}.containerd]
default_runtime_name = '{PODSANDBOX}'
[{runtime}.containerd.runtimes.{PODSANDBOX}]
runtime_type = 'io.containerd.runc.v2'
runtime_path = '{peer.binaries.shim}'
[{runtime}.containerd.runtimes.{HANDLER}]
runtime_type = 'io.containerd.runc.v2'
runtime_path = '{peer.binaries.shim}'
sandboxer = 'atoll'
[{runtime}.containerd.runtimes.{OUR_SHIM}]
runtime_type = 'io.containerd.atoll.v1'
runtime_path = '{SHIM}'
[{runtime}.cni]
bin_dirs = {folders}
conf_dir = '{places.conf_dir}'
"""


class AtollPeer(Atoll):
    """`atoll serve` as a containerd's sandboxer: it is told where that keeps its pods' files."""

    def __init__(self, places: Places, containerd: Places, *, oci_runtime: str = "runc") -> None:
        super().__init__(places)
        self._containerd = containerd
        self._oci_runtime = oci_runtime

    def prepare(self) -> None:
        places = self.places
        (places.base / "config.toml").write_text(
            f"""log_level = "info"
cgroup_parent = "{places.cgroup}"
[runtimes.atoll]
oci_runtime = "{self._oci_runtime}"
[network]
conf_dir = "{places.conf_dir}"
bin_dirs = {json.dumps(PLUGIN_FOLDERS)}
pool_size = 0
[sandboxes]
unstarted_timeout_s = {UNSTARTED_S:.1f}
containerd_root = "{self._containerd.root}"
containerd_state = "{state_of(self._containerd)}"
"""
        )


def state_of(places: Places) -> Path:
    """A containerd's `state`."""
    return places.state / "state"
