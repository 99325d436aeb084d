"""The lives of sandboxes that a client of the sandbox API has made, as a containerd does."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from tests.chaos.life import Life, LostError
from tests.integration.sandbox_client import READY, SandboxAPI, new_id

CODE = grpc.StatusCode
NAMESPACE = "k8s.io"
METADATA = AnyMessage(type_url="github.com/containerd/cri/pkg/store/sandbox/Metadata", value=b"{}")
"""What the CRI of a containerd writes into the record of a pod: it gets links to the pod's files."""


@dataclass(slots=True)
class HostedLife(Life):
    """One sandbox of Atoll's own shim."""

    ABOUT: ClassVar[str] = "a sandbox of the sandbox API: shim"
    CAUSES: ClassVar[tuple[str, ...]] = ("hosted create/commit", "hosted start/commit")
    CODES: ClassVar[tuple[int, ...]] = (0, 137)
    SANDBOXER: ClassVar[str] = "atoll"

    id: str = field(default_factory=new_id)

    @property
    def api(self) -> SandboxAPI:
        return SandboxAPI(channel=self.cri.runtime.channel, namespace=NAMESPACE, sandboxer=self.SANDBOXER)

    def lead_once(self) -> None:
        self.id = new_id()
        self.tried(self._start)
        self.tried(self._update)
        self.tried(self.stop)
        self.remove()

    def _create(self) -> None:
        record = self.api.record(self.id)
        record.extensions["metadata"].CopyFrom(METADATA)
        try:
            self.api.create(self.id, sandbox=record)
        except grpc.RpcError as error:
            if error.code() is not CODE.ALREADY_EXISTS:
                raise

    def _state(self) -> str:
        """Its state; empty where there is none."""
        try:
            return self.api.status(self.id).state
        except grpc.RpcError as error:
            if error.code() is not CODE.NOT_FOUND:
                raise
            return ""

    def _start(self) -> None:
        """Created, and started; a start that failed has freed it, so both are done again."""
        if self._state() == READY:
            return
        self._create()
        try:
            self.api.start(self.id)
        except grpc.RpcError as error:
            if error.code() is not CODE.FAILED_PRECONDITION:
                raise
            if self._state() != READY:
                raise LostError from error

    def _require(self) -> None:
        state = self._state()
        assert state, f"{self.name}: a sandbox whose start was answered is gone"
        if state == "SANDBOX_NOTREADY":
            raise LostError

    def _update(self) -> None:
        self._require()
        record = self.api.record(self.id, labels={"chaos": self.name})
        try:
            self.api.update(record, "labels")
        except grpc.RpcError as error:
            if error.code() is CODE.FAILED_PRECONDITION:
                self._require()
            raise

    def stop(self) -> None:
        self.api.stop(self.id)
        if not self._state():
            raise AssertionError(f"{self.name}: is gone although only stopped")
        self.exit_codes.append(self.api.wait(self.id).exit_status)

    def remove(self) -> None:
        self.tried(lambda: self.api.shutdown(self.id))
        assert not self.tried(self._state), f"{self.name}: is there after its shutdown"


@dataclass(slots=True)
class HostedPauseLife(HostedLife):
    """One that a pause container holds, shut down while it is paused."""

    ABOUT: ClassVar[str] = "a sandbox of the sandbox API: podsandbox"
    SANDBOXER: ClassVar[str] = "pod"
    AGAIN: ClassVar[tuple[str, ...]] = ("hosted *", "podsandbox *")
    CAUSES: ClassVar[tuple[str, ...]] = ("hosted start/commit", "hosted shutdown/stop")

    def stop(self) -> None:
        """Its caller pauses it, and forgets it: the shutdown ends it."""
        self._require()
        self.api.own_call("Pause", self.id)


@dataclass(slots=True)
class HostedKilledLife(HostedPauseLife):
    """One whose shim is killed while it is paused: its clean-up must let go of what stands still."""

    ABOUT: ClassVar[str] = "a sandbox of the sandbox API: podsandbox, its shim killed while it is paused"
    AGAIN: ClassVar[tuple[str, ...]] = ()
    CAUSES: ClassVar[tuple[str, ...]] = ()

    def stop(self) -> None:
        self._require()
        self.api.own_call("Pause", self.id)
        holder = self.api.status(self.id).pid
        try:
            parent = int(Path(f"/proc/{holder}/stat").read_text().rpartition(")")[2].split()[1])
            found = Path(f"/proc/{parent}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            raise LostError from None
        if found != "atoll-shim":  # killed already, by a blow
            raise LostError
        os.kill(parent, signal.SIGKILL)


@dataclass(slots=True)
class HostedFarLife(HostedLife):
    """One of a sandboxer that is another process."""

    ABOUT: ClassVar[str] = "a sandbox of the sandbox API: remote"
    SANDBOXER: ClassVar[str] = "far"
    AGAIN: ClassVar[tuple[str, ...]] = ("hosted *", "remote/*")
    CAUSES: ClassVar[tuple[str, ...]] = ("hosted start/commit",)

    def _update(self) -> None:
        self._require()
