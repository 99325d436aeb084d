"""The daemons under test: Debian's containerd and `atoll serve`, private, started and ended by the run.

A daemon is a context: at its end every pod is removed through the API first, then it is stopped; whatever of its
own processes is still there then is said, and killed by pidfd.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import msgspec

from atoll.image import builtin
from atoll.image.model import digest_of
from bench import host
from bench.cri import Cri
from bench.places import PATH, PLUGIN_FOLDERS, Places, wait_until

READY_WITHIN_S = 30.0
STOPPED_WITHIN_S = 20.0
PAUSE_IMAGE = "docker.io/bench/pause:latest"
PAUSE_COMMAND = ["/bin/busybox", "sleep", "2147483647"]
"""What keeps containerd's pods: one small static process, as its own pause image has."""


class Daemon(ABC):
    """One daemon in its places."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._process: subprocess.Popen[bytes] | None = None
        self.cri: Cri
        self.networked = 0
        """Pods with a network that a measurement has running now."""

    @abstractmethod
    def command(self) -> list[str]:
        """What to execute; its configuration is written by then."""

    @abstractmethod
    def prepare(self) -> None:
        """Write the configuration."""

    @abstractmethod
    def equip(self) -> None:
        """Give it the images, once it answers."""

    @property
    def path(self) -> str:
        """Where it finds programs."""
        return PATH

    @property
    def pid(self) -> int:
        assert self._process is not None, "the daemon was not started"
        return self._process.pid

    @property
    def processes(self) -> host.Processes:
        return host.processes_of(self.pid, self.places.mark)

    def __enter__(self) -> Self:
        self.places.prepare()
        self.prepare()
        self.cri = Cri(self.places.socket)
        try:
            self.start()
            self.equip()
            if not self.cri.has_image():
                raise RuntimeError(f"{self.places.name}: has no image to run")
        except BaseException:
            self._end()
            raise
        return self

    def start(self) -> None:
        """Execute it, and wait until it says that it is ready."""
        self.launch()
        if not wait_until(lambda: self._ended() or self.cri.is_ready(), within=READY_WITHIN_S, every=0.05):
            raise RuntimeError(f"{self.places.name}: does not become ready; its log ends:\n{self.log_tail()}")
        if self._ended():
            raise RuntimeError(f"{self.places.name}: has ended; its log ends:\n{self.log_tail()}")

    def launch(self) -> None:
        """Execute it, and wait for nothing."""
        with self.places.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={**os.environ, "PATH": self.path, host.MARKER: self.places.mark},
            )

    def crash(self) -> None:
        """End it with SIGKILL; `start` starts it again."""
        assert self._process is not None, "the daemon was not started"
        self._process.kill()
        self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.cri.remove_all()
        except grpc.RpcError as failure:
            print(f"bench: {self.places.name}: its pods cannot be removed: {failure}", file=sys.stderr)
        finally:
            self._end()

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _end(self) -> None:
        self.cri.__exit__(None, None, None)
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            print(f"bench: {self.places.name}: did not stop within {STOPPED_WITHIN_S:g} s", file=sys.stderr)
        own = lambda: host.processes_of(0, self.places.mark)  # noqa: E731
        wait_until(lambda: not own().marked, within=2.0, every=0.05)
        for pid in (*own().marked, *own().below):
            print(f"bench: {self.places.name}: left process {pid}: {host.command(pid)}", file=sys.stderr)
            kill(pid)

    def log_tail(self) -> str:
        return "\n".join(self.places.log.read_text(errors="replace").splitlines()[-20:])


def kill(pid: int) -> None:
    """SIGKILL one process, held by a pidfd while it is signalled."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


class Containerd(Daemon):
    """Debian's containerd with its CRI plugin, `runc` and its shim, or another of a `folder` with its own shim."""

    def __init__(self, places: Places, *, folder: Path | None = None) -> None:
        super().__init__(places)
        self._folder = folder

    @property
    def path(self) -> str:
        return f"{self._folder}:{PATH}" if self._folder is not None else PATH

    def prepare(self) -> None:
        places = self.places
        folder = next(folder for folder in PLUGIN_FOLDERS if Path(folder, "bridge").is_file())
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        (places.base / "config.toml").write_text(
            f"""version = 2
root = "{places.root}"
state = "{places.state}/state"
[grpc]
  address = "{places.socket}"
[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[{cri}.cni]
  bin_dir = "{folder}"
  conf_dir = "{places.conf_dir}"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""
        )

    def command(self) -> list[str]:
        program = str(self._folder / "containerd") if self._folder is not None else "containerd"
        return [program, "--config", str(self.places.base / "config.toml"), "--log-level", "warn"]

    def equip(self) -> None:
        archive = self.places.base / "images.tar"
        write_archive(archive)
        ctr = ["ctr", "--address", str(self.places.socket), "--namespace", "k8s.io", "images", "import", str(archive)]
        subprocess.run(ctr, check=True, capture_output=True, timeout=60)
        if not wait_until(lambda: self.cri.has_image() and self.cri.has_image(PAUSE_IMAGE), every=0.05):
            raise RuntimeError("containerd: does not see the imported images")


class Atoll(Daemon):
    """`atoll serve`; its handlers are `runc` and, where it is installed, `crun`."""

    def __init__(self, places: Places, *, runtimes: tuple[str, ...] = ("runc",), pool_size: int = 0) -> None:
        super().__init__(places)
        self.runtimes = runtimes
        self.pool_size = pool_size

    def prepare(self) -> None:
        places = self.places
        handlers = "".join(f'\n[runtimes.{name}]\noci_runtime = "{name}"\n' for name in self.runtimes)
        (places.base / "config.toml").write_text(
            f"""log_level = "warning"
default_runtime = "{self.runtimes[0]}"
cgroup_parent = "{places.cgroup}"
{handlers}
[network]
conf_dir = "{places.conf_dir}"
bin_dirs = {json.dumps(PLUGIN_FOLDERS)}
pool_size = {self.pool_size}
pool_networks = ["{places.network}"]
"""
        )

    def equip(self) -> None:
        """Nothing to do: the image is built in."""

    def command(self) -> list[str]:
        places = self.places
        options = {
            "root": places.root,
            "state": places.state,
            "socket": places.socket,
            "config": places.base / "config.toml",
        }
        words = [word for name, path in options.items() for word in (f"--{name}", str(path))]
        return [str(Path(sys.executable).parent / "atoll"), "serve", *words]


def write_archive(path: Path) -> None:
    """Atoll's built-in image, byte for byte, and a pause image of the same layer, as one OCI archive."""
    busybox = next(one for one in builtin.build(builtin.find_busybox()) if one.name == builtin.BUSYBOX)
    blobs = {digest_of(data): data for data in (busybox.config, busybox.manifest, busybox.layer)}
    config = msgspec.json.decode(busybox.config)
    config["config"]["Entrypoint"], config["config"]["Cmd"] = PAUSE_COMMAND, None
    pause_config = msgspec.json.encode(config)
    manifest = msgspec.json.decode(busybox.manifest)
    manifest["config"] |= {"digest": digest_of(pause_config), "size": len(pause_config)}
    pause_manifest = msgspec.json.encode(manifest)
    blobs |= {digest_of(data): data for data in (pause_config, pause_manifest)}
    entries = [
        {
            "mediaType": manifest["mediaType"],
            "digest": digest_of(data),
            "size": len(data),
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest"},
        }
        for name, data in ((builtin.BUSYBOX, busybox.manifest), (PAUSE_IMAGE, pause_manifest))
    ]
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": entries}))
        for digest, data in blobs.items():
            _add(archive, f"blobs/sha256/{digest.removeprefix('sha256:')}", data)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
