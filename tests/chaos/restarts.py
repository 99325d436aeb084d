"""A daemon's start over what an earlier one left of everything: the life whose blows fall while it recovers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.chaos.hosted import HostedLife
from tests.chaos.life import LostError, PodLife

CUT_SHORT_AT = "run/commit"
"""Where the earlier daemon is killed."""


@dataclass(slots=True)
class RestartLife(PodLife):
    """A pod with containers that run, do not yet, and have ended; a sandbox of a client; half a pod."""

    ABOUT: ClassVar[str] = "a daemon's start after SIGKILL over all that"
    CAUSES: ClassVar[tuple[str, ...]] = ()
    AGAIN: ClassVar[tuple[str, ...]] = ("release/sandbox", "release/pod-files", "release/cgroup*")

    made: str = ""
    over: str = ""
    hosted: HostedLife | None = None
    calls: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def before(self, hold: Callable[[str], None]) -> None:
        """Make all that an earlier daemon is to leave. `hold` returns when the daemon stands still at a point."""
        cri = self.cri
        self.pod = cri.run_pod(self.config())
        self.over = cri.script(self.pod, "exit 3", name="over")
        self.container = cri.run(self.pod, *self.container_config().command, name="main")
        self.made = cri.create(self.pod, cri.container_config("/bin/sleep", "1000", name="made"))
        cri.wait(self.over)
        self.hosted = HostedLife(cri, self.world, f"{self.name}-hosted")
        self.hosted.api.run(self.hosted.id)
        self.calls = [threading.Thread(target=self._run_half, daemon=True)]
        self.calls[0].start()
        hold(CUT_SHORT_AT)

    def _run_half(self) -> None:
        try:
            self.cri.run_pod(self.cri.pod_config(f"{self.name}-half"))
        except grpc.RpcError as error:
            self.failures.append(f"half a pod: {error.code().name}")

    def lead(self) -> None:
        """What the next daemon makes of it; what was lost with its shim or the machine is known as lost."""
        self.calls[0].join()
        assert self.failures, "a call was answered by a daemon that was killed under it"
        names = [pod.metadata.name for pod in self.tried(self.cri.list_pods)]
        assert names.count(self.name) == 1, f"pods: {names}"
        assert f"{self.name}-half" not in names, "half a pod is served"
        self.tried(self._ended_one)
        if self.tried(lambda: self.cri.pod_status(self.pod).state) == pb.SANDBOX_READY:
            with contextlib.suppress(LostError):  # with its shim, after the answer; its exit code says so
                self.use()
                self.tried(self._made_one)
        self.tried(self._stop)
        assert self.hosted is not None
        assert self.tried(lambda: self.hosted.api.status(self.hosted.id).state if self.hosted else "")
        self.tried(self.hosted.stop)
        self.hosted.remove()
        self.remove()

    def _ended_one(self) -> None:
        status = self.cri.status(self.over)
        assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 3), status

    def _made_one(self) -> None:
        self.require_pod()
        state = self.cri.status(self.made).state
        if state == pb.CONTAINER_CREATED:
            self.cri.start(self.made)
        assert self.cri.status(self.made).state in (pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED)
