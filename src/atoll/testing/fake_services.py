"""The services of `FakeDaemon`: the calls of CRI and atoll.v1 that the SDK makes."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import atoll
from atoll import errors
from atoll.api import atoll_v1_pb2 as own
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.concurrency import TaskOwner
from atoll.crilog import LogLine
from atoll.image.reference import Reference

if TYPE_CHECKING:
    from atoll.testing.fake_daemon import FakeContainer, FakeDaemon, Streams

KILLED = 137
TERMINATED = 143


class FakeRuntime:
    """runtime.v1.RuntimeService."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def RunPodSandbox(self, request: cri.RunPodSandboxRequest, context: object) -> cri.RunPodSandboxResponse:
        self._daemon.calls.append("RunPodSandbox")
        metadata = request.config.metadata
        if any(pod.status.metadata == metadata for pod in self._daemon.pods.values()):
            raise errors.AlreadyExists(f"pod {metadata.name}: is there; stop and remove it first")
        self._daemon.add_pod(
            cri.PodSandboxStatus(
                id=secrets.token_hex(32),
                metadata=metadata,
                state=cri.SANDBOX_READY,
                created_at=time.time_ns(),
                network=cri.PodSandboxNetworkStatus(ip="10.0.0.2"),
                labels=request.config.labels,
                annotations=request.config.annotations,
                runtime_handler=request.runtime_handler or "atoll",
            ),
            request.config,
        )
        return cri.RunPodSandboxResponse(pod_sandbox_id=next(reversed(self._daemon.pods)))

    async def StopPodSandbox(self, request: cri.StopPodSandboxRequest, context: object) -> cri.StopPodSandboxResponse:
        self._daemon.calls.append("StopPodSandbox")
        pod = self._daemon.pods.get(request.pod_sandbox_id)
        if pod is not None:
            for container in self._inside(request.pod_sandbox_id):
                await self._daemon.stop(container, KILLED)
            pod.status.state = cri.SANDBOX_NOTREADY
            pod.status.ClearField("network")
        return cri.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: cri.RemovePodSandboxRequest, context: object
    ) -> cri.RemovePodSandboxResponse:
        self._daemon.calls.append("RemovePodSandbox")
        if self._daemon.pods.pop(request.pod_sandbox_id, None) is not None:
            for container in self._inside(request.pod_sandbox_id):
                del self._daemon.containers[container.status.id]
        return cri.RemovePodSandboxResponse()

    def _inside(self, pod_id: str) -> list[FakeContainer]:
        return [one for one in self._daemon.containers.values() if one.pod_id == pod_id]

    async def PodSandboxStatus(
        self, request: cri.PodSandboxStatusRequest, context: object
    ) -> cri.PodSandboxStatusResponse:
        self._daemon.calls.append("PodSandboxStatus")
        pod = self._daemon.pod(request.pod_sandbox_id)
        inside = [one.status for one in self._inside(pod.status.id)]
        return cri.PodSandboxStatusResponse(status=pod.status, containers_statuses=inside)

    async def ListPodSandbox(self, request: cri.ListPodSandboxRequest, context: object) -> cri.ListPodSandboxResponse:
        self._daemon.calls.append("ListPodSandbox")
        answer = cri.ListPodSandboxResponse()
        wanted = request.filter
        for pod in self._daemon.pods.values():
            status = pod.status
            if wanted.HasField("state") and status.state != wanted.state.state:
                continue
            if wanted.label_selector.items() <= status.labels.items():
                answer.items.add(
                    id=status.id,
                    metadata=status.metadata,
                    state=status.state,
                    created_at=status.created_at,
                    labels=status.labels,
                    annotations=status.annotations,
                    runtime_handler=status.runtime_handler,
                )
        return answer

    async def CreateContainer(
        self, request: cri.CreateContainerRequest, context: object
    ) -> cri.CreateContainerResponse:
        self._daemon.calls.append("CreateContainer")
        pod = self._daemon.pod(request.pod_sandbox_id)
        image_id = self._daemon.image_id(request.config.image.image)
        status = cri.ContainerStatus(
            id=secrets.token_hex(32),
            metadata=request.config.metadata,
            state=cri.CONTAINER_CREATED,
            created_at=time.time_ns(),
            image=request.config.image,
            image_id=image_id,
            labels=request.config.labels,
        )
        self._daemon.add_container(status, pod.status.id, request.config)
        return cri.CreateContainerResponse(container_id=status.id)

    async def StartContainer(self, request: cri.StartContainerRequest, context: object) -> cri.StartContainerResponse:
        self._daemon.calls.append("StartContainer")
        self._daemon.start(self._daemon.container(request.container_id))
        return cri.StartContainerResponse()

    async def StopContainer(self, request: cri.StopContainerRequest, context: object) -> cri.StopContainerResponse:
        self._daemon.calls.append("StopContainer")
        container = self._daemon.containers.get(request.container_id)
        if container is not None:
            await self._daemon.stop(container, TERMINATED if request.timeout else KILLED)
        return cri.StopContainerResponse()

    async def RemoveContainer(
        self, request: cri.RemoveContainerRequest, context: object
    ) -> cri.RemoveContainerResponse:
        self._daemon.calls.append("RemoveContainer")
        container = self._daemon.containers.pop(request.container_id, None)
        if container is not None:
            await self._daemon.stop(container, KILLED)
        return cri.RemoveContainerResponse()

    async def ListContainers(self, request: cri.ListContainersRequest, context: object) -> cri.ListContainersResponse:
        self._daemon.calls.append("ListContainers")
        answer = cri.ListContainersResponse()
        for container in self._daemon.containers.values():
            if request.filter.pod_sandbox_id in ("", container.pod_id):
                status = container.status
                answer.containers.add(
                    id=status.id,
                    pod_sandbox_id=container.pod_id,
                    metadata=status.metadata,
                    image=status.image,
                    state=status.state,
                    created_at=status.created_at,
                    labels=status.labels,
                )
        return answer

    async def ContainerStatus(
        self, request: cri.ContainerStatusRequest, context: object
    ) -> cri.ContainerStatusResponse:
        self._daemon.calls.append("ContainerStatus")
        return cri.ContainerStatusResponse(status=self._daemon.container(request.container_id).status)


class FakeImages:
    """runtime.v1.ImageService."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def ListImages(self, request: cri.ListImagesRequest, context: object) -> cri.ListImagesResponse:
        return cri.ListImagesResponse(
            images=[cri.Image(id=key, repo_tags=[name], size=4096) for name, key in self._daemon.images.items()]
        )

    async def ImageStatus(self, request: cri.ImageStatusRequest, context: object) -> cri.ImageStatusResponse:
        self._daemon.calls.append("ImageStatus")
        try:
            image_id = self._daemon.image_id(request.image.image)
        except errors.NotFound:
            return cri.ImageStatusResponse()
        tags = [name for name, key in self._daemon.images.items() if key == image_id]
        return cri.ImageStatusResponse(image=cri.Image(id=image_id, repo_tags=tags, size=4096))

    async def RemoveImage(self, request: cri.RemoveImageRequest, context: object) -> cri.RemoveImageResponse:
        self._daemon.images.pop(str(Reference.parse(request.image.image)), None)
        return cri.RemoveImageResponse()


class FakeExtras:
    """atoll.v1.Runtime."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def Info(self, request: own.InfoRequest, context: object) -> own.InfoResponse:
        return own.InfoResponse(
            version=atoll.__version__,
            pid=os.getpid(),
            pods=len(self._daemon.pods),
            containers=len(self._daemon.containers),
            runtime_handlers=["atoll"],
        )

    async def Exec(self, requests: AsyncIterator[own.ExecRequest], context: object) -> AsyncIterator[own.ExecResponse]:
        start = (await anext(aiter(requests))).start
        container = self._daemon.container(start.container_id)
        if container.status.state != cri.CONTAINER_RUNNING:
            raise errors.FailedPrecondition(f"container {start.container_id[:13]}: is not running")
        program = self._daemon.program(tuple(start.command), "exec")
        env = {key: value for key, _, value in (pair.partition("=") for pair in start.env)}
        streams = self._daemon.streams(tuple(start.command[1:]), env)
        async with TaskOwner("exec") as owner:
            running = owner.spawn(self._daemon.run_program(program, streams), name="exec/program")
            owner.spawn(_feed(requests, streams, running), name="exec/input")
            owner.spawn(_limit(running, streams, start.timeout_s), name="exec/limit")
            yield own.ExecResponse(started=own.ExecStarted(pid=os.getpid()))
            while (answer := await streams.output.get()) is not None:
                yield answer
            await asyncio.wait({running})
            yield own.ExecResponse(exit=_exit(running, streams.ended_by))

    async def Logs(self, request: own.LogsRequest, context: object) -> AsyncIterator[own.LogsResponse]:
        container = self._daemon.container(request.container_id)
        at = max(0, len(container.log) - request.tail) if request.tail > 0 else 0
        while True:
            lines = [line for line in container.log[at:] if line.time_ns >= request.since]
            if lines:
                yield own.LogsResponse(block=b"".join(map(_logged, lines)))
            at = len(container.log)
            if not request.follow or (container.ended.is_set and at == len(container.log)):
                return
            async with container.logged:
                await container.logged.wait()

    async def Wait(self, request: own.WaitRequest, context: object) -> own.WaitResponse:
        return own.WaitResponse(exit=await self._daemon.container(request.container_id).ended.wait())

    async def Pull(self, request: own.PullRequest, context: object) -> AsyncIterator[own.PullResponse]:
        self._daemon.calls.append("Pull")
        name = str(Reference.parse(request.reference))
        if name not in self._daemon.registry:
            raise errors.NotFound(f"{name}: the registry has no such image")
        digest = f"sha256:{secrets.token_hex(32)}"
        for phase, done in (("pulling", 50), ("done", 100)):
            layer = own.LayerProgress(digest=digest, current_bytes=done, total_bytes=100, phase=phase)
            yield own.PullResponse(layers=[layer])
        self._daemon.images[name] = digest
        yield own.PullResponse(image_id=digest)

    async def Import(self, request: own.ImportRequest, context: object) -> own.ImportResponse:
        name = str(Reference.parse(request.reference or os.path.basename(request.path)))
        self._daemon.images[name] = digest = f"sha256:{secrets.token_hex(32)}"
        return own.ImportResponse(images=[own.ImportResponse.Imported(image_id=digest, references=[name])])

    async def Phases(self, request: own.PhasesRequest, context: object) -> own.PhasesResponse:
        pod = self._daemon.pod(request.pod_id)
        phase = own.Phase(operation="run", subject=pod.status.id, name="record", started_at=1, duration=1_500_000)
        return own.PhasesResponse(phases=[phase])

    async def Fsck(self, request: own.FsckRequest, context: object) -> own.FsckResponse:
        for finding in self._daemon.findings:
            finding.repaired = request.repair
        return own.FsckResponse(findings=self._daemon.findings, checked=7)

    async def Reload(self, request: own.ReloadRequest, context: object) -> own.ReloadResponse:
        return own.ReloadResponse(file="/etc/atoll/config.toml", applied=["log_level"], waiting=["[network] pool_size"])


async def _feed(requests: AsyncIterator[own.ExecRequest], streams: Streams, running: asyncio.Task[int]) -> None:
    async for request in requests:
        match request.WhichOneof("message"):
            case "stdin":
                streams.stdin.put_nowait(request.stdin)
            case "close_stdin":
                streams.stdin.put_nowait(None)
            case "resize":
                streams.out(f"{request.resize.width}x{request.resize.height}\n".encode())
            case "signal":
                streams.ended_by = own.Exit(code=128 + request.signal, cause=own.Exit.SIGNALLED)
                running.cancel()
            case _:
                raise errors.InvalidArgument("exec: `start` comes once")


async def _limit(running: asyncio.Task[int], streams: Streams, timeout_s: float) -> None:
    if timeout_s > 0:
        await asyncio.wait({running}, timeout=timeout_s)
        if not running.done():
            streams.ended_by = own.Exit(code=KILLED, cause=own.Exit.TIMED_OUT)
            running.cancel()


def _exit(running: asyncio.Task[int], ended_by: own.Exit | None) -> own.Exit:
    if running.cancelled():
        return ended_by or own.Exit(code=KILLED, cause=own.Exit.SIGNALLED)
    return own.Exit(code=running.result(), cause=own.Exit.EXITED)


def _logged(line: LogLine) -> bytes:
    """The line as a file has it."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(line.time_ns // 10**9))
    tag = "P" if line.partial else "F"
    return f"{moment}.{line.time_ns % 10**9:09}Z {line.stream} {tag} ".encode() + line.content + b"\n"
