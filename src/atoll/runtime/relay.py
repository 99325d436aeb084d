"""The daemon's end of relays: processes of ours that keep the stdio of a foreign shim's containers.

    <folder>/<pod>/shim.json, bootstrap.json   who relays, and where it answers
                   log                         the relay's own
                   <container>-stdin|...       the fifos that the shim opens

A relay lives until it is told to end: a daemon that dies leaves it, the next one connects to it again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from google.protobuf import empty_pb2

from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.concurrency import Blocking, run_to_completion
from atoll.identifiers import require_identifier
from atoll.runtime import ending
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.bundle import remove_mounted_tree
from atoll.runtime.task import StdioPaths
from atoll.runtime.zygote import ForkedShim, Zygote
from atoll.shim import records
from atoll.shim.request import ShimRequest
from atoll.ttrpc.client import Client

log = logging.getLogger(__name__)

SERVICE = "atoll.relay.v1.Relay"
OWN_SERVICE = "atoll.shim.v1.Shim"
CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 15.0
"""More than a relay itself waits for the last output."""
UNDO_TIMEOUT_S = 10.0
END_TIMEOUT_S = 5.0
"""How long a relay that was told to end may still pass on output."""


class Relay:
    """One connected relay; closing the connection leaves it alive.

    Errors are the relay's; a connection that ended is `Unavailable`.
    """

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder

    async def create(self, container_id: str, targets: StdioPaths) -> None:
        """Open the fifos of a container, which are there, and relay to `targets`; `AlreadyExists`."""
        request = task_pb2.CreateTaskRequest(
            id=container_id,
            bundle=str(self.folder),
            terminal=targets.terminal,
            stdin=targets.stdin,
            stdout=targets.stdout,
            stderr=targets.stderr,
        )
        await self.client.call(SERVICE, "Create", request, task_pb2.CreateTaskResponse, timeout=CALL_TIMEOUT_S)

    async def close_io(self, container_id: str) -> None:
        """Close the relay's end of stdin."""
        request = task_pb2.CloseIORequest(id=container_id, stdin=True)
        await self.client.call(SERVICE, "CloseIO", request, empty_pb2.Empty, timeout=CALL_TIMEOUT_S)

    async def delete(self, container_id: str, within: float = DRAIN_TIMEOUT_S) -> None:
        """Stop relaying once the last output has gone on; idempotent. `DeadlineExceeded` leaves it as it was."""
        request = task_pb2.DeleteRequest(id=container_id)
        await self.client.call(SERVICE, "Delete", request, task_pb2.DeleteResponse, timeout=within)

    async def reopen(self, container_id: str) -> None:
        """Go on in a new log file."""
        request = own_pb2.ReopenLogRequest(container_id=container_id)
        await self.client.call(OWN_SERVICE, "ReopenLog", request, own_pb2.ReopenLogResponse, timeout=CALL_TIMEOUT_S)

    async def info(self) -> own_pb2.InfoResponse:
        """Who it is and what it relays."""
        return await self.client.call(
            OWN_SERVICE, "Info", own_pb2.InfoRequest(), own_pb2.InfoResponse, timeout=CALL_TIMEOUT_S
        )

    async def shutdown(self) -> None:
        """End it whatever it relays; what is in the fifos is passed on first."""
        request = task_pb2.ShutdownRequest(now=True)
        try:
            await self.client.call(SERVICE, "Shutdown", request, empty_pb2.Empty, timeout=CALL_TIMEOUT_S)
        except errors.Unavailable:
            return  # it ended before its answer arrived


class Relays:
    """Starts, finds and ends relays, one a pod, each in a folder of its own below `folder`."""

    def __init__(self, zygote: Zygote, *, folder: Path, sockets: Path, namespace: str, blocking: Blocking) -> None:
        self._zygote = zygote
        self._folder = folder
        self._sockets = sockets
        self._namespace = namespace
        self._blocking = blocking

    def folder(self, pod_id: str) -> Path:
        """Where the relay of a pod lives, and its fifos are."""
        return self._folder / require_identifier(pod_id, "pod id")

    def _socket(self, pod_id: str) -> Path:
        name = hashlib.sha256(f"{self._namespace}/relay/{pod_id}".encode()).hexdigest()[:32]
        return self._sockets / name

    async def start(self, pod_id: str) -> Relay:
        """Fork a pod's relay and connect to it; on an error none is left, only its folder.

        Raises `AlreadyExists` where one listens already.
        """
        folder = self.folder(pod_id)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise errors.Unavailable(f"{folder}: cannot be made: {error.strerror}") from error
        path = self._socket(pod_id)
        forked = await self._zygote.fork(
            ShimRequest(id=pod_id, namespace=self._namespace, bundle=str(folder), socket=str(path)), role="relay"
        )
        try:
            # An answer says that its records are on disk.
            relay = await _answering(Relay(await Client.connect(f"unix://{path}", timeout=CONNECT_TIMEOUT_S), folder))
        except BaseException:
            await run_to_completion(self._undo(pod_id, forked), within=UNDO_TIMEOUT_S)
            raise
        finally:
            os.close(forked.pidfd)
        return relay

    async def _undo(self, pod_id: str, forked: ForkedShim) -> None:
        await ending.kill(forked.pidfd, pod_id)
        self._socket(pod_id).unlink(missing_ok=True)

    async def connect(self, pod_id: str) -> Relay:
        """Connect to a relay that was started before; `NotFound`, `DataLoss`, or `Unavailable` where none answers."""
        folder = self.folder(pod_id)
        bootstrap = Bootstrap.load(folder)
        return await _answering(Relay(await Client.connect(bootstrap.address, timeout=CONNECT_TIMEOUT_S), folder))

    async def end(self, pod_id: str) -> None:
        """End a pod's relay, by SIGKILL where it does not answer, and remove its folder; idempotent."""
        folder, grace_s = self.folder(pod_id), 0.0
        try:
            relay = await self.connect(pod_id)
        except (errors.NotFound, errors.DataLoss, errors.Unavailable, errors.DeadlineExceeded) as error:
            log.debug("relay of pod %s: is ended without its help: %s", pod_id[:13], error)
        else:
            try:
                await relay.shutdown()
                grace_s = END_TIMEOUT_S
            except errors.AtollError as error:
                log.warning("relay of pod %s: does not shut down: %s", pod_id[:13], error)
            finally:
                await relay.client.aclose()
        await ending.kill_recorded(folder / records.SHIM, pod_id, grace_s=grace_s)
        self._socket(pod_id).unlink(missing_ok=True)
        await self._blocking.run(remove_mounted_tree, folder)


async def _answering(relay: Relay) -> Relay:
    """The relay once it has answered: the kernel connects to a process that is being killed, too."""
    try:
        await relay.info()
    except BaseException:
        relay.client.close()
        raise
    return relay
