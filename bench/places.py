"""Where a run keeps its things: private folders, bridges, subnets and cgroups, all named after one prefix.

/var/tmp/<prefix>/<daemon>/root, net.d, ipam, config.toml, daemon.log
/run/<prefix>/<daemon>/                state and socket
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atoll.network.default import bridge_name
from bench import host

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PLUGIN_FOLDERS = ("/opt/cni/bin", "/usr/lib/cni")
SETTLE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The places of one daemon; nothing is made by naming them."""

    prefix: str
    name: str
    number: int

    @property
    def base(self) -> Path:
        return Path("/var/tmp", self.prefix, self.name)

    @property
    def state(self) -> Path:
        return Path("/run", self.prefix, self.name)

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def socket(self) -> Path:
        return self.state / "d.sock"

    @property
    def conf_dir(self) -> Path:
        return self.base / "net.d"

    @property
    def ipam(self) -> Path:
        return self.base / "ipam"

    @property
    def logs(self) -> Path:
        return self.base / "logs"

    @property
    def log(self) -> Path:
        return self.base / "daemon.log"

    @property
    def bridge(self) -> str:
        return f"{self.prefix}b{self.number}"

    @property
    def network(self) -> str:
        return f"{self.prefix}n{self.number}"

    @property
    def subnet(self) -> str:
        """A /22 of the daemon's own, in a /16 that the prefix chooses."""
        return f"10.{192 + int(self.prefix[-2:], 16) % 64}.{self.number * 4}.0/22"

    @property
    def cgroup(self) -> str:
        """The parent that pods are given, as a kubelet does."""
        return f"/{self.prefix}/{self.name}"

    @property
    def mark(self) -> str:
        return f"{self.prefix}-{self.name}"

    def prepare(self) -> None:
        """Make the folders, the network's configuration and the parent cgroup."""
        for folder in (self.root, self.state, self.conf_dir, self.ipam, self.logs):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        (self.conf_dir / "10-bench.conflist").write_text(json.dumps(self._conflist(), indent=2))
        for root in host.hierarchies():
            Path(f"{root}{self.cgroup}").mkdir(parents=True, exist_ok=True)

    def _conflist(self) -> dict[str, object]:
        ipam = {
            "type": "host-local",
            "dataDir": str(self.ipam),
            "ranges": [[{"subnet": self.subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": ipam,
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "1.0.0", "name": self.network, "plugins": [bridge, portmap]}

    def held(self) -> str:
        """The same in words."""
        return f"{host.leases(self.ipam)} addresses, {host.bridge_ports(self.bridge)} links"

    def attached(self) -> int:
        """Networks that are held: addresses given away or links on the bridge, whichever are more."""
        return max(host.leases(self.ipam), host.bridge_ports(self.bridge))


@contextlib.contextmanager
def prefix() -> Iterator[str]:
    """A prefix for one run; at the end what carries it is taken away, and said where it should not have been there."""
    chosen = f"ab{secrets.token_hex(2)}"
    try:
        yield chosen
    finally:
        for line in left(chosen):
            print(f"bench: was left, is taken away now: {line}")
        take_away(chosen)


def left(name: str) -> list[str]:
    """What a run has left that its daemons should have taken away: mounts, and cgroups of pods."""
    expected = {f"/{name}", f"/{name}/containerd", f"/{name}/atoll", f"/{name}/pool", f"/{name}/soak"}
    own = [path for path in host.cgroups_with(name) if not any(str(path).endswith(one) for one in expected)]
    pins = re.compile(rf"/run/{name}/\w+/netns")  # stays with the daemon's state, as /run/netns does
    mounted = [point for point in host.mounts_with(name) if not pins.fullmatch(point)]
    return [*(f"mount {point}" for point in mounted), *(f"cgroup {path}" for path in own)]


def take_away(name: str) -> None:
    """Remove what a run made outside its processes; idempotent."""
    for point in host.mounts_with(name):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    for path in Path("/sys/class/net").iterdir():
        if path.name.startswith(name):
            subprocess.run(["ip", "link", "delete", path.name], check=False, capture_output=True)
    _remove_masquerading(name)
    for path in host.cgroups_with(name):
        with contextlib.suppress(OSError):
            path.rmdir()
    for folder in (Path("/var/tmp", name), Path("/run", name)):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_masquerading(name: str) -> None:
    """Atoll's rule for a configured network outlives its daemon; its label derives from the root folder."""
    nft = shutil.which("nft", path=PATH)
    roots = list(Path("/var/tmp", name).glob("*/root"))
    if nft is None or not roots:
        return
    listed = subprocess.run([nft, "list", "tables", "ip"], check=False, capture_output=True, text=True).stdout
    for root in roots:
        label = re.sub(r"[^A-Za-z0-9]", "_", bridge_name(root))
        for table in re.findall(rf"^table ip ({label}_[0-9a-f]{{8}})$", listed, re.MULTILINE):
            subprocess.run([nft, "delete", "table", "ip", table], check=False, capture_output=True)


def wait_until(done: Callable[[], bool], *, within: float = SETTLE_S, every: float = 0.0005) -> bool:
    """Ask `done` until it says yes, for at most `within` seconds; its last answer."""
    deadline = time.monotonic() + within
    while not (answer := done()) and time.monotonic() < deadline:
        time.sleep(every)
    return answer
