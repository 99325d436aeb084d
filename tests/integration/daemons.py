"""The private places of a test, and `atoll serve` in them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.leaks import wait_until

BIN = Path(sys.executable).parent
READY_WITHIN_S = 15.0
STOPPED_WITHIN_S = 15.0
COMMAND_WITHIN_S = 60.0
LOG_TAIL_LINES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """The private places of one test; `prefix` is what every name outside them begins with."""

    prefix: str
    base: Path
    state: Path

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def socket(self) -> Path:
        return self.state / "atoll.sock"

    @property
    def config(self) -> Path:
        return self.base / "config.toml"

    @property
    def log(self) -> Path:
        return self.base / "daemon.log"

    @property
    def conf_dir(self) -> Path:
        return self.base / "net.d"

    @property
    def bridge(self) -> str:
        return f"{self.prefix}br"

    @property
    def subnet(self) -> str:
        """A /24 of this test's own, of the range set aside for benchmarks (RFC 2544)."""
        number = int(self.prefix[-4:], 16) & 0x1FF
        return f"198.{18 + (number >> 8)}.{number & 0xFF}.0/24"

    def make(self) -> None:
        """Make the folders, a bridge network and a config file."""
        self.base.mkdir(mode=0o700)
        self.state.mkdir(mode=0o711)
        self.root.mkdir(mode=0o700)
        self.write_network()
        self.write_config()

    def delete_bridge(self) -> None:
        """No plugin ever does."""
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)

    def write_network(self) -> None:
        """A bridge network with addresses and published ports, named after the prefix."""
        self.conf_dir.mkdir(exist_ok=True)
        ipam = {
            "type": "host-local",
            "dataDir": str(self.base / "ipam"),
            "ranges": [[{"subnet": self.subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": self.bridge, "isGateway": True, "ipMasq": True, "ipam": ipam}
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
        conflist = {"cniVersion": "1.0.0", "name": f"{self.prefix}net", "plugins": plugins}
        (self.conf_dir / "10-test.conflist").write_text(json.dumps(conflist))

    def write_config(self, extra: str = "") -> None:
        """A config file of these roots; `extra` is TOML that is put before its tables."""
        bin_dirs = [str(self.base / "bin"), "/opt/cni/bin", "/usr/lib/cni"]
        self.config.write_text(
            f'cgroup_parent = "/{self.prefix}"\n{extra}\n[network]\nconf_dir = {json.dumps(str(self.conf_dir))}\n'
            f"bin_dirs = {json.dumps(bin_dirs)}\n"
        )


class Daemon:
    """`atoll serve` under the roots of a test; it may be stopped, killed and started again.

    Its methods block: an async test calls them through `asyncio.to_thread`.
    """

    def __init__(self, roots: Roots, *, ready_within_s: float = READY_WITHIN_S) -> None:
        self.roots = roots
        self._ready_within_s = ready_within_s
        self.wrapper: tuple[str, ...] = ()
        """Words of a command that executes the rest of its line."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the daemon was not started"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until its socket answers; fails with the end of its log where it does not."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start it and wait for nothing."""
        assert self._process is None, "the daemon runs already"
        roots = self.roots
        paths = {"root": roots.root, "state": roots.state, "socket": roots.socket, "config": roots.config}
        options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        with roots.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.wrapper, str(BIN / "atoll"), "serve", *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def await_ready(self) -> None:
        """Wait until its socket answers; fails with the end of its log where it does not."""
        assert self._process is not None, "the daemon was not started"
        wait_until(lambda: self._answers() or self._has_ended(), within=self._ready_within_s)
        if not self._answers():
            status = self._process.poll()
            self.kill()
            pytest.fail(f"the daemon is not ready (exit status {status}); its log ends:\n{self.log_tail()}")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(self.roots.socket))
            return True
        return False

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> int:
        """End it as a service manager does; the exit status. One that takes too long is killed and fails the test."""
        assert self._process is not None, "the daemon was not started"
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the daemon did not stop within {STOPPED_WITHIN_S:g} s; its log ends:\n{self.log_tail()}")
        self._process = None
        return status

    def kill(self) -> None:
        """End it with SIGKILL, and return when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line against this daemon; the test judges its exit status."""
        return subprocess.run(
            [str(BIN / "atoll"), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_WITHIN_S,
            env={**os.environ, "ATOLL_SOCKET": str(self.roots.socket), "NO_COLOR": "1"},
        )

    def log_tail(self) -> str:
        return "\n".join(self.roots.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
