"""A pod's life as a kubelet leads it: what fails is looked at and tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import CRI

T = TypeVar("T")

WITHIN_S = 45.0
"""For one step with all of its retries, the daemon's restart included."""
PAUSE_S = 0.1
STOP_WITHIN_S = 5
EXIT_CODE = 7
SCRIPT = f"trap 'exit {EXIT_CODE}' TERM; echo begun; while :; do sleep 0.05; done"


class PodLostError(Exception):
    """The pod has ended by itself, so a kubelet makes another."""


@dataclass(slots=True)
class Life:
    """One pod with one container, from nothing to nothing; `name` is unique."""

    cri: CRI
    name: str
    attempt: int = 0
    pod: str = ""
    container: str = ""
    exit_codes: list[int] = field(default_factory=list[int])
    """Of the containers that were seen to have ended."""
    failures: list[str] = field(default_factory=list[str])
    """What the calls that failed said."""

    def lead(self) -> None:
        """All of it; a pod that is lost on the way is removed and made again, once."""
        for self.attempt in range(3):
            try:
                self._lead()
            except PodLostError:
                self._removed()
            else:
                return
        raise AssertionError(f"{self.name}: pod after pod was lost: {self.failures}")

    def _lead(self) -> None:
        self.pod = self._tried(self._run)
        self.container = self._tried(self._create)
        self._tried(self._start)
        self._tried(self._exec)
        self._tried(self._stop)
        self._tried(self._remove_container)
        self._tried(lambda: self.cri.stop_pod(self.pod))
        self._removed()

    def _tried(self, step: Callable[[], T]) -> T:
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                return step()
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self.name}: not within {WITHIN_S:g} s: {self.failures[-1]}") from error
                time.sleep(PAUSE_S)

    def _config(self) -> pb.PodSandboxConfig:
        config = self.cri.pod_config(self.name, network=True)
        config.metadata.attempt = self.attempt
        return config

    def _run(self) -> str:
        for found in self.cri.list_pods():
            if found.metadata.name == self.name and found.metadata.attempt == self.attempt:
                if found.state == pb.SANDBOX_READY:
                    return found.id
                self.cri.remove_pod(found.id)
        return self.cri.run_pod(self._config())

    def _require_pod(self) -> None:
        try:
            status = self.cri.pod_status(self.pod)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise AssertionError(f"{self.name}: a pod that was answered is gone") from error
            raise
        if status.state != pb.SANDBOX_READY:
            raise PodLostError

    def _create(self) -> str:
        self._require_pod()
        for found in self.cri.list(pod_sandbox_id=self.pod):
            if found.state == pb.CONTAINER_CREATED:
                return found.id
            self.cri.remove(found.id)
        return self.cri.create(self.pod, self.cri.container_config("/bin/sh", "-c", SCRIPT, name="main"))

    def _start(self) -> None:
        self._require_pod()
        state = self.cri.status(self.container).state
        if state == pb.CONTAINER_RUNNING:
            return
        if state != pb.CONTAINER_CREATED:  # its start failed: a kubelet makes another
            self.cri.remove(self.container)
            self.container = self._create()
        self.cri.start(self.container)

    def _exec(self) -> None:
        self._require_pod()
        status = self.cri.status(self.container)
        if status.state == pb.CONTAINER_EXITED:
            raise PodLostError
        outcome = self.cri.exec(self.container, "/bin/echo", "seen")
        assert outcome.code == 0
        assert outcome.stdout == b"seen\n"

    def _stop(self) -> None:
        self.cri.stop(self.container, timeout=STOP_WITHIN_S)
        status = self.cri.status(self.container)
        assert status.state == pb.CONTAINER_EXITED
        assert status.finished_at
        self.exit_codes.append(status.exit_code)
        assert self.cri.output(self.container).startswith(b"begun\n")

    def _remove_container(self) -> None:
        self.cri.remove(self.container)
        assert not self.cri.list(id=self.container)

    def _removed(self) -> None:
        self._tried(lambda: self.cri.stop_pod(self.pod))
        self._tried(lambda: self.cri.remove_pod(self.pod))
        assert self.pod not in [pod.id for pod in self._tried(self.cri.list_pods)]
