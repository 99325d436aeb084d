"""A stock containerd 2.x whose CRI has four kinds of handlers: its own sandboxer, ours, and our shim under its own.

    runc        io.containerd.runc.v2, podsandbox: as it comes
    atoll       sandboxer = "atoll": the proxy plugin that is an Atoll daemon
    atoll-shim  io.containerd.atoll.v1, podsandbox: our shim alone
    atoll-pod   io.containerd.atoll.v1, sandboxer = "shim": our shim alone, its pods too

Its binaries are the caller's: this repository neither has them nor builds them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench import containerd_images
from bench.cri_subject import Tools
from bench.daemons import PAUSE_IMAGE, Atoll, Containerd
from bench.places import PLUGIN_FOLDERS, Places, wait_until

SHIM = Path(sys.executable).parent / "containerd-shim-atoll-v1"
HANDLER, PODSANDBOX, OUR_SHIM, OUR_POD = "atoll", "runc", "atoll-shim", "atoll-pod"
RUNC, OURS = "io.containerd.runc.v2", "io.containerd.atoll.v1"
VERSIONS = (2, 3, 4)
UNSTARTED_S = 20.0
"""After which Atoll frees a sandbox that was created and not started; the default would take a check too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries(Tools):
    """Where a containerd 2.x and its tools are."""

    containerd: Path
    ctr: Path
    shim: Path

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
        self.images = containerd_images.Images.of(containerd_images.stand_ins())
        self._registry = containerd_images.Registry(self.images)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._registry)
            super().__enter__()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._registry.__exit__()

    def command(self) -> list[str]:
        config = str(self.places.base / "config.toml")
        return [str(self.binaries.containerd), "--config", config, "--log-level", self.log_level]

    @property
    def tools(self) -> Tools:
        return self.binaries

    @property
    def containerd_state(self) -> Path:
        return state_of(self.places)

    @property
    def path(self) -> str:
        """Both shims in front: a containerd that starts gives tasks up whose runtime type has no program."""
        return f"{self.places.base / 'bin'}:{super().path}"

    def prepare(self) -> None:
        (self.places.base / "config.toml").write_text(configuration(self))
        folder = self.places.base / "bin"
        folder.mkdir(exist_ok=True)
        for shim in (SHIM, self.binaries.shim.resolve()):
            (folder / shim.name).unlink(missing_ok=True)
            (folder / shim.name).symlink_to(shim)
        hosts = self.places.base / "certs.d" / "_default"
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "hosts.toml").write_text(f"server = '{self._registry.url}'\n")

    def equip(self) -> None:
        archive = self.places.base / "images.tar"
        self.images.write_archive(archive)
        self.ctr("images", "import", "--local", str(archive))
        if not wait_until(lambda: all(map(self.cri.has_image, self.images.imported)), every=0.05):
            raise RuntimeError(f"{self.places.name}: does not see the imported images")

    def ctr(self, *arguments: str, namespace: str = "k8s.io", check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(self.binaries.ctr), "--address", str(self.places.socket), "--namespace", namespace, *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120)


def configuration(peer: ContainerdPeer) -> str:
    """The whole configuration file, in the words of `peer.version`: 2, 3 or 4."""
    places = peer.places
    cri = "plugins.'io.containerd.grpc.v1.cri'"
    is_old = peer.version == 2
    runtime = cri if is_old else "plugins.'io.containerd.cri.v1.runtime'"
    images = cri if is_old else "plugins.'io.containerd.cri.v1.images'"
    server = "plugins.'io.containerd.server.v1"
    tables: dict[str, dict[str, object]] = {
        "proxy_plugins.atoll": {"type": "sandbox", "address": str(peer.sandboxer)},
        cri: {"stream_server_address": "127.0.0.1", "stream_server_port": "0"},
        f"{images}.registry": {"config_path": str(places.base / "certs.d")},
        f"{runtime}.containerd": {"default_runtime_name": PODSANDBOX},
        f"{runtime}.containerd.runtimes.{PODSANDBOX}": {"runtime_type": RUNC},
        f"{runtime}.containerd.runtimes.{HANDLER}": {
            # Its program says what it can (-info), and takes away tasks whose shim is gone (delete).
            "runtime_type": OURS,
            "sandboxer": "atoll",
        },
        f"{runtime}.containerd.runtimes.{HANDLER}.options": {"BinaryName": "runc"},
        f"{runtime}.containerd.runtimes.{OUR_SHIM}": {
            "runtime_type": OURS,
        },
        f"{runtime}.containerd.runtimes.{OUR_POD}": {"runtime_type": OURS, "sandboxer": "shim"},
        f"{runtime}.cni": {
            "bin_dirs": [folder for folder in PLUGIN_FOLDERS if Path(folder, "bridge").is_file()],
            "conf_dir": str(places.conf_dir),
        },
    }
    tables.setdefault(runtime, {}).update({"restrict_oom_score_adj": True, "netns_mounts_under_state_dir": True})
    if is_old:
        tables[cri]["sandbox_image"] = PAUSE_IMAGE
    else:
        tables[f"{images}.pinned_images"] = {"sandbox": PAUSE_IMAGE}
    if peer.version >= 4:
        tables[f"{server}.grpc'"] = {"address": str(places.socket)}
        tables[f"{server}.ttrpc'"] = {"address": f"{places.socket}.ttrpc"}
    else:
        tables["grpc"] = {"address": str(places.socket)}
    top = {
        "version": peer.version,
        "root": str(places.root),
        "state": str(peer.containerd_state),
        "disabled_plugins": ["io.containerd.snapshotter.v1.devmapper", "io.containerd.nri.v1.nri"],
    }
    return "\n".join([_lines(top), *(f"[{name}]\n{_lines(table)}" for name, table in tables.items())])


def _lines(table: dict[str, object]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


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
