"""A containerd 2.x and its Atoll under check: their calls, what they leave, and the verdicts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from bench import host
from bench.containerd_peer import AtollPeer, ContainerdPeer
from bench.cri import Cri, PodRequest, container_config, pod_request
from bench.places import wait_until

WITHIN_S = 30.0
COMMAND_S = 60.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What passed and what failed; a check that raises has failed."""

    only: str = ""
    passed: int = 0
    failed: list[str] = field(default_factory=list[str])

    def check(self, name: str, work: Callable[[], object]) -> None:
        if self.only not in name:
            return
        begun = time.monotonic()
        try:
            work()
        except (AssertionError, grpc.RpcError, subprocess.SubprocessError, RuntimeError, OSError) as error:
            told = error.details() if isinstance(error, grpc.RpcError) else f"{type(error).__name__}: {error}"
            where = traceback.extract_tb(error.__traceback__)
            line = next(
                (f"{Path(one.filename).name}:{one.lineno}" for one in reversed(where) if "bench" in one.filename), ""
            )
            self.failed.append(f"{name}: {told} ({line})")
            print(f"FAILED  {name}: {told} ({line})", flush=True)
        else:
            self.passed += 1
            print(f"ok      {name} ({time.monotonic() - begun:.1f} s)", flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both daemons, and the runtime handler whose pods are run."""

    atoll: AtollPeer
    containerd: ContainerdPeer
    handler: str

    @property
    def cri(self) -> Cri:
        return self.containerd.cri

    def request(self, name: str = "pod", *, host_network: bool = True, handler: str = "") -> PodRequest:
        places = self.containerd.places
        return pod_request(
            name,
            logs=places.logs,
            handler=handler or self.handler,
            host_network=host_network,
            cgroup_parent=places.cgroup,
        )

    @contextmanager
    def pod(self, *, host_network: bool = True) -> Iterator[tuple[str, PodRequest]]:
        """A pod for one check; removed at its end."""
        request = self.request(host_network=host_network)
        pod = self.cri.run_pod(request)
        try:
            yield pod, request
        except BaseException:
            with contextlib.suppress(grpc.RpcError):  # the first error is the one to tell
                self._remove(pod)
            raise
        self._remove(pod)

    def _remove(self, pod: str) -> None:
        self.cri.stop_pod(pod)
        self.cri.remove_pod(pod)

    def run(self, pod: str, request: PodRequest, *script: str) -> str:
        """A started container of the pod with a shell script, by default one that sleeps."""
        command = ["sh", "-c", *script] if script else ["sleep", "3600"]
        config = container_config(command)
        config.metadata.name = config.log_path = f"c{time.monotonic_ns()}"
        container = self.cri.create(pod, request, config)
        self.cri.start(container)
        return container

    def sh(self, container: str, script: str) -> str:
        answer = self.cri.exec_sync(container, ["sh", "-c", script])
        assert answer.exit_code == 0, f"{script!r}: {answer.exit_code} {answer.stderr!r}"
        return answer.stdout.decode().strip()

    def status(self, pod: str, *, verbose: bool = False) -> pb.PodSandboxStatusResponse:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=verbose)
        return self.cri.call("PodSandboxStatus", request, pb.PodSandboxStatusResponse)

    def pid(self, pod: str) -> int:
        """The pid that stands for the pod."""
        return int(json.loads(self.status(pod, verbose=True).info["info"])["pid"])

    def is_ready(self, pod: str) -> bool:
        """As the list says, which kubelet goes by."""
        return any(one.id == pod and one.state == pb.SANDBOX_READY for one in self.cri.pods())

    def is_running(self, container: str) -> bool:
        return self.cri.container_status(container).state == pb.CONTAINER_RUNNING

    def exit_code(self, container: str) -> int:
        """Wait for the end of a container."""
        eventually(lambda: self.cri.container_status(container).state == pb.CONTAINER_EXITED, f"{container} ends")
        return self.cri.container_status(container).exit_code

    def crictl(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.crictl_command(*arguments), input=stdin, capture_output=True, check=check, timeout=COMMAND_S
        )

    def crictl_command(self, *arguments: str) -> list[str]:
        binary = self.containerd.binaries.crictl
        if binary is None:
            raise RuntimeError("there is no crictl in the folder of binaries")
        endpoint = f"unix://{self.containerd.places.socket}"
        return [str(binary), "--config", "/dev/null", "-r", endpoint, "-i", endpoint, "-t", "30s", *arguments]

    def restart(self, *which: str) -> None:
        """SIGKILL to the named daemons (`atoll`, `containerd`); then start them, Atoll first."""
        daemons = {"atoll": self.atoll, "containerd": self.containerd}
        for name in which:
            daemons[name].crash()
        for name in sorted(which):
            daemons[name].start()
        self.reconnected()

    def reconnected(self) -> None:
        """Wait until containerd has its connection to Atoll back; it pauses before it tries again."""

        def answers() -> bool:
            try:
                self._remove(self.cri.run_pod(self.request("probe")))
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return False
                raise
            return True

        eventually(answers, "containerd reaches Atoll again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What the daemons' pods hold on this machine; two of them can be compared."""

    things: frozenset[str]

    @classmethod
    def of(cls, pair: Pair) -> Leftovers:
        prefix = pair.containerd.places.prefix
        # A network namespace that containerd pinned when it was killed stays, whoever its sandboxer is.
        found = {f"mount {point}" for point in host.mounts_with(prefix) if "cri/netns/cni-" not in point}
        # The parents of pods' cgroups, which come late in hierarchies that the run did not make them in, are nobody's.
        parent = re.compile(rf".*/{prefix}(/containerd|/atoll(/[0-9a-f]{{8}})?)?")
        found |= {f"cgroup {path}" for path in host.cgroups_with(prefix) if not parent.fullmatch(str(path))}
        for daemon in (pair.atoll, pair.containerd):
            processes = host.processes_of(daemon.pid, daemon.places.mark)
            shims = [pid for pid in processes.marked if b"shim" in host.read(f"/proc/{pid}/cmdline")]
            found |= {f"process {pid}: {host.command(pid)}" for pid in shims if daemon is pair.containerd}
            found |= {f"process {pid}: {host.command(pid)}" for pid in processes.below if _is_of_a_pod(pid)}
            if daemon.places.attached():
                found.add(f"networks of {daemon.places.name}: {daemon.places.held()}")
        state, root = pair.containerd.containerd_state, pair.containerd.places.root
        for folder in (
            *(pair.atoll.places.state / name for name in ("pods", "shims", "bundles", "netns", "s")),
            *(base / "io.containerd.grpc.v1.cri" / "sandboxes" for base in (state, root)),
            state / "io.containerd.runtime.v2.task" / "k8s.io",
        ):
            found |= {f"file {path}" for path in folder.glob("*")}
        return cls(things=frozenset(found))

    def expect_the_same(self, pair: Pair, *, within: float = 10.0) -> None:
        """Wait until nothing is there that was not there before; `AssertionError` names what stays."""
        new: list[str] = []

        def gone() -> bool:
            new[:] = sorted(Leftovers.of(pair).things - self.things)
            return not new

        assert wait_until(gone, within=within, every=0.1), f"left behind: {'; '.join(new)}"


def _is_of_a_pod(pid: int) -> bool:
    # The zygote's spare shims are nobody's yet.
    return "containerd-shim-atoll" not in host.command(pid)


def eventually(done: Callable[[], bool], what: str, *, within: float = WITHIN_S) -> None:
    assert wait_until(done, within=within, every=0.05), f"not within {within:g} s: {what}"


def is_alive(pid: int) -> bool:
    return os.path.isdir(f"/proc/{pid}")
