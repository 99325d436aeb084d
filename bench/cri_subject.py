"""A CRI runtime under check: its calls, crictl against it, and the verdicts."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from bench.cri import Cri, PodRequest, container_config, pod_request
from bench.places import Places, wait_until

WITHIN_S = 30.0
COMMAND_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Where the tools of CRI are, which are the caller's."""

    crictl: Path | None = None
    critest: Path | None = None


class Runtime(Protocol):
    """A running daemon that serves CRI."""

    cri: Cri
    places: Places

    @property
    def tools(self) -> Tools: ...


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
            self.failed.append(f"{name} ({line})")
            print(f"FAILED  {name}: {told} ({line})", flush=True)
        else:
            self.passed += 1
            print(f"ok      {name} ({time.monotonic() - begun:.1f} s)", flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A CRI runtime under check, and the runtime handler whose pods are run."""

    runtime: Runtime
    handler: str

    @property
    def cri(self) -> Cri:
        return self.runtime.cri

    def request(self, name: str = "pod", *, host_network: bool = True, handler: str = "") -> PodRequest:
        places = self.runtime.places
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
                self.removed(pod)
            raise
        self.removed(pod)

    def removed(self, pod: str) -> None:
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
        binary = self.runtime.tools.crictl
        if binary is None:
            raise RuntimeError("there is no crictl in the folder of binaries")
        endpoint = f"unix://{self.runtime.places.socket}"
        return [str(binary), "--config", "/dev/null", "-r", endpoint, "-i", endpoint, "-t", "30s", *arguments]


def eventually(done: Callable[[], bool], what: str, *, within: float = WITHIN_S) -> None:
    assert wait_until(done, within=within, every=0.05), f"not within {within:g} s: {what}"
