"""What Atoll's shim serves beyond containerd's services: `atoll.shim.v1.Shim`, and `End` of `HOST_SERVICE`."""

from __future__ import annotations

import os

from google.protobuf.empty_pb2 import Empty

import atoll
from atoll.api import atoll_shim_v1_pb2 as pb
from atoll.shim.shim import Shim
from atoll.shim.task import TaskService
from atoll.ttrpc.service import CallContext


class OwnService:
    """Log rotation and facts about the shim."""

    def __init__(self, shim: Shim, task: TaskService) -> None:
        self._shim = shim
        self._task = task

    async def ReopenLog(self, request: pb.ReopenLogRequest, context: CallContext) -> pb.ReopenLogResponse:
        """Go on in a new log file at the same path; nothing to do for a container whose streams are closed."""
        stdio = self._task.container(request.container_id).init.stdio
        if stdio is not None:
            stdio.reopen()
        return pb.ReopenLogResponse()

    async def Info(self, request: pb.InfoRequest, context: CallContext) -> pb.InfoResponse:
        """Who serves, and what."""
        return pb.InfoResponse(
            version=atoll.__version__,
            pid=os.getpid(),
            sandbox_id=self._shim.request.id if self._task.has_sandbox else "",
            container_ids=sorted(container.id for container in self._task.containers),
        )

    async def End(self, request: Empty, context: CallContext) -> Empty:
        """End this shim as SIGKILL would end a process of its own; other shims of the process go on.

        Nothing of it runs any more once the connection is closed.
        """
        self._shim.kill()
        return Empty()
