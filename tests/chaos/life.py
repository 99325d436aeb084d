"""A pod's life as a kubelet leads it: what fails is looked at and tried again."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import grpc

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.cri_client import CRI
from tests.integration.daemons import Roots
from tests.integration.leaks import wait_until

T = TypeVar("T")

WITHIN_S = 45.0
"""For one step with all of its retries, the daemon's restart included."""
PAUSE_S = 0.1
STOP_WITHIN_S = 5
EXIT_CODE = 7
KILLED = 137
SCRIPT = f"trap 'exit {EXIT_CODE}' TERM; echo begun; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; echo begun; while :; do sleep 0.05; done"
READY_AGAIN_WITHIN_S = 10.0
"""How long a pod that nobody could be asked about, UNKNOWN, has to become what it is."""


class LostError(Exception):
    """What the life is about has ended by itself, so its caller makes another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a life finds outside its daemon."""

    roots: Roots
    reference: str
    """An image of the registry."""
    archive: Path
    """An archive of an image that shares a layer with it, under the name `archived`."""
    archived: str
    marks: tuple[tuple[str, bytes], ...]
    """Files of the two images, each with its content."""


@dataclass(slots=True)
class Life(ABC):
    """Something that is made, used and taken away by a client that tries again; `name` is unique."""

    ABOUT: ClassVar[str] = ""
    AGAIN: ClassVar[tuple[str, ...]] = ()
    """Patterns of the points that are struck in this life although an earlier kind of life reaches them too."""
    CAUSES: ClassVar[tuple[str, ...]] = ()
    """Points whose errors bring this life to points that it does not come by otherwise: to undoing."""
    CODES: ClassVar[tuple[int, ...]] = (EXIT_CODE,)
    """How its containers end where nothing is killed."""

    cri: CRI
    world: World
    name: str
    attempts: int = 3
    attempt: int = 0
    steps: int = 0
    """Calls that were answered as they should be."""
    exit_codes: list[int] = field(default_factory=list[int])
    """Of what was seen to have ended."""
    failures: list[str] = field(default_factory=list[str])
    """What the calls that failed said."""

    def lead(self) -> None:
        """All of it; what is lost on the way is removed and made again."""
        for attempt in range(self.attempts):
            self.attempt = attempt
            try:
                self.lead_once()
            except LostError:
                self.remove()
            else:
                return
        raise AssertionError(f"{self.name}: one after another was lost: {self.failures}")

    @abstractmethod
    def lead_once(self) -> None:
        """One attempt at the whole life."""

    @abstractmethod
    def remove(self) -> None:
        """Take away what this attempt has made, as far as it came."""

    def tried(self, step: Callable[[], T]) -> T:
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                done = step()
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self.name}: not within {WITHIN_S:g} s: {self.failures[-1]}") from error
                time.sleep(PAUSE_S)
            else:
                self.steps += 1
                return done


@dataclass(slots=True)
class PodLife(Life):
    """One pod with one container, on a network."""

    ABOUT: ClassVar[str] = "a pod on a network with a container and an exec"
    CAUSES: ClassVar[tuple[str, ...]] = (
        *("run/commit", "create/bundle", "create/record:done", "start/start task", "start/checkpoint"),
        *("shim pod/holder:done", "shim create/runtime:done", "exec/add:done", "exec/start", "exec/delete"),
    )
    HANDLER: ClassVar[str] = ""

    pod: str = ""
    container: str = ""

    def lead_once(self) -> None:
        self.pod = self.tried(self._run)
        self.container = self.tried(self._create)
        self.tried(self._start)
        self.tried(self._begin)
        self.use()
        self.tried(self._stop)
        self.tried(self._remove_container)
        self.tried(lambda: self.cri.stop_pod(self.pod))
        self.remove()

    # what kinds of pods differ in

    def config(self) -> pb.PodSandboxConfig:
        return self.cri.pod_config(self.name, network=True)

    def container_config(self) -> pb.ContainerConfig:
        return self.cri.container_config("/bin/sh", "-c", SCRIPT, name="main")

    def use(self) -> None:
        self.tried(self._exec)

    def stop_within_s(self) -> int:
        return STOP_WITHIN_S

    # the steps

    def _run(self) -> str:
        for found in self.cri.list_pods():
            if found.metadata.name == self.name and found.metadata.attempt == self.attempt:
                if found.state == pb.SANDBOX_READY:
                    return found.id
                self.cri.remove_pod(found.id)
        config = self.config()
        config.metadata.attempt = self.attempt
        return self.cri.run_pod(config, self.HANDLER)

    def require_pod(self) -> None:
        try:
            status = self.cri.pod_status(self.pod)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise AssertionError(f"{self.name}: a pod that was answered is gone") from error
            raise
        if status.state != pb.SANDBOX_READY:
            raise LostError

    def _create(self) -> str:
        self.require_pod()
        for found in self.cri.list(pod_sandbox_id=self.pod):
            if found.state == pb.CONTAINER_CREATED:
                return found.id
            self.cri.remove(found.id)
        return self.cri.create(self.pod, self.container_config())

    def _start(self) -> None:
        self.require_pod()
        state = self.cri.status(self.container).state
        if state == pb.CONTAINER_RUNNING:
            return
        if state != pb.CONTAINER_CREATED:  # its start failed: a kubelet makes another
            self.cri.remove(self.container)
            self.container = self._create()
        self.cri.start(self.container)

    def _begin(self) -> None:
        """Wait until its script has begun: then its signals are caught."""
        self.require_container()
        assert wait_until(
            lambda: self.cri.output(self.container).startswith(b"begun\n") or self._has_ended(), within=WITHIN_S
        ), f"{self.name}: its container does not begin"
        self.require_container()

    def _has_ended(self) -> bool:
        return self.cri.status(self.container).state == pb.CONTAINER_EXITED

    def require_container(self) -> None:
        self.require_pod()
        if self.cri.status(self.container).state == pb.CONTAINER_EXITED:
            raise LostError

    def _exec(self) -> None:
        self.require_container()
        outcome = self.cri.exec(self.container, "/bin/echo", "seen")
        assert outcome.code == 0
        assert outcome.stdout == b"seen\n"

    def _stop(self) -> None:
        self.cri.stop(self.container, timeout=self.stop_within_s())
        status = self.cri.status(self.container)
        assert status.state == pb.CONTAINER_EXITED
        assert status.finished_at
        self.exit_codes.append(status.exit_code)
        assert self.cri.output(self.container).startswith(b"begun\n")

    def _remove_container(self) -> None:
        self.cri.remove(self.container)
        assert not self.cri.list(id=self.container)

    def remove(self) -> None:
        self.tried(lambda: self.cri.stop_pod(self.pod))
        self.tried(lambda: self.cri.remove_pod(self.pod))
        assert self.pod not in [pod.id for pod in self.tried(self.cri.list_pods)]
