"""Real containers for the tests of the spec builder and the runtime driver: bundles with a busybox root."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atoll.linux.host import HostFacts, read_host_facts
from atoll.oci import spec
from atoll.oci.builder import ContainerSpecRequest, ImageDefaults, PodContext
from atoll.oci.config import LinuxContainerSecurityContext, NamespaceMode, NamespaceOption
from atoll.oci.features import RuntimeFeatures
from atoll.oci.runtime import OCIRuntime, Stdio

ENDS_WITHIN_S = 10.0
OWN_PID = NamespaceOption(pid=NamespaceMode.CONTAINER)


@dataclass(slots=True)
class Holder:
    """A process that keeps the namespaces of a pod."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls) -> Holder:
        process = subprocess.Popen(
            ["unshare", "--net", "--ipc", "--uts", "sh", "-c", "echo ready; exec sleep 600"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return cls(process)

    def namespace(self, kind: str) -> Path:
        return Path(f"/proc/{self.process.pid}/ns/{kind}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(slots=True, kw_only=True)
class Workshop:
    """Makes bundles below `base` and runs them; cgroups are below `/<prefix>`."""

    base: Path
    prefix: str
    runtime: OCIRuntime
    features: RuntimeFeatures
    holder: Holder
    host: HostFacts = field(default_factory=read_host_facts)

    def make_rootfs(self) -> Path:
        rootfs = self.base / "rootfs"
        for folder in ("bin", "etc", "proc", "dev", "sys", "tmp", "run"):
            (rootfs / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/busybox", rootfs / "bin/busybox")
        for name in ("sh", "id", "cat", "sleep", "grep", "mount", "env", "pwd", "ls", "true", "mknod", "unshare", "wc"):
            (rootfs / "bin" / name).symlink_to("busybox")
        (rootfs / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n")
        (rootfs / "etc/group").write_text("root:x:0:\nweb:x:33:\nlogs:x:44:web\n")
        return rootfs

    @property
    def pod(self) -> PodContext:
        return PodContext(
            hostname="pod-1",
            network_namespace=self.holder.namespace("net"),
            ipc_namespace=self.holder.namespace("ipc"),
            uts_namespace=self.holder.namespace("uts"),
        )

    def request(self, *argv: str, **changes: object) -> ContainerSpecRequest:
        name = f"{self.prefix}-{secrets.token_hex(3)}"
        values: dict[str, object] = {
            "id": name,
            "image": ImageDefaults(),
            "pod": self.pod,
            "host": self.host,
            "runtime": self.features,
            "rootfs_layers": (self.base / "rootfs",),
            "rootfs": str(self.base / "rootfs"),
            "cgroups_path": f"/{self.prefix}/{name}",
            "command": argv,
            "security": LinuxContainerSecurityContext(namespace_options=OWN_PID),
        }
        return ContainerSpecRequest(**{**values, **changes})  # pyright: ignore[reportArgumentType]

    def bundle(self, name: str, built: spec.Spec) -> Path:
        bundle = self.base / name
        bundle.mkdir()
        (bundle / "config.json").write_bytes(spec.encode(built))
        return bundle

    def reap_strays(self, keep: int = 0) -> None:
        """Wait for every child but the holder and `keep`: what failing or killed runtimes left to this subreaper."""
        for pid in children():
            if pid not in (keep, self.holder.process.pid):
                reap(pid)

    async def create(self, name: str, built: spec.Spec, stdio: Stdio | None = None) -> int:
        bundle = self.bundle(name, built)
        return await self.runtime.create(name, bundle, pid_file=bundle / "pid", stdio=stdio or Stdio())

    async def run(self, name: str, built: spec.Spec) -> tuple[int, str]:
        """Run a container to its end; its exit status as a shell shows it, and all it wrote."""
        with (self.base / f"{name}.out").open("w+b") as output:
            pid = await self.create(name, built, Stdio(stdout=output.fileno(), stderr=output.fileno()))
            await self.runtime.start(name)
            status = reap(pid)
            await self.runtime.delete(name)
            output.seek(0)
            return status, output.read().decode()


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def reap(pid: int) -> int:
    """Wait for a process that was orphaned to this one; 128 and the signal where one ended it."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} did not end within {ENDS_WITHIN_S:g} s")


def lines(output: str) -> Mapping[str, str]:
    """`key: value` lines, as /proc writes them."""
    return {
        key.strip(): value.strip()
        for key, found, value in (line.partition(":") for line in output.splitlines())
        if found
    }
