"""`Front.find`: from a containerd namespace and a sandboxer's name to a controller, for the faces of the sandbox API.

Besides the hosted sandboxes it shows the pods of this daemon's own CRI, in the namespace `k8s.io`, by the name of their
runtime handler or the kind of their sandboxer: they can be asked about and waited for, and are ended by CRI alone.
"""

from __future__ import annotations

import dataclasses

from atoll import errors
from atoll.engine.hosted import Hosted, NoEnd, Phase
from atoll.engine.hosts import KINDS, unknown
from atoll.engine.parts import Parts
from atoll.engine.paths import NAMESPACE
from atoll.engine.pod import Pod
from atoll.engine.pods import Pods
from atoll.engine.sandboxes import Sandboxes
from atoll.sandbox.controller import (
    Controller,
    ControllerInstance,
    ControllerStatus,
    CreateOptions,
    ExitStatus,
    Metric,
    Platform,
    Sandbox,
    State,
)
from atoll.sandbox.store import require_namespace


class Front:
    """Finds the controller of a call."""

    def __init__(self, parts: Parts, sandboxes: Sandboxes, pods: Pods) -> None:
        self._parts = parts
        self._sandboxes = sandboxes
        self._pods = pods

    def find(self, namespace: str, sandboxer: str) -> FrontController:
        """Raises `FailedPrecondition` without a namespace, `InvalidArgument` for a bad one and for an empty name,
        `NotFound` for a name that stands for nobody.
        """
        require_namespace(namespace)
        if not sandboxer:
            raise errors.InvalidArgument("sandboxer: is empty; name a runtime handler of this daemon")
        config = self._parts.config
        kinds = {*KINDS, *(handler.sandboxer for handler in config.runtimes.values())}
        if sandboxer not in config.runtimes and sandboxer not in kinds | self._sandboxes.names():
            raise unknown(config, sandboxer)
        return FrontController(self._sandboxes, self._pods, namespace, sandboxer)


class FrontController(Controller):
    """The sandboxes of one sandboxer in one namespace; holds nothing, so that it may be made for each call."""

    def __init__(self, sandboxes: Sandboxes, pods: Pods, namespace: str, sandboxer: str) -> None:
        self._sandboxes = sandboxes
        self._pods = pods
        self._namespace = namespace
        self._sandboxer = sandboxer

    def _hosted(self, sandbox_id: str) -> Hosted:
        hosted = self._sandboxes.find(self._namespace, sandbox_id)
        if hosted.record.sandbox.sandboxer != self._sandboxer:
            raise errors.NotFound(
                f"sandbox {sandbox_id}: is of sandboxer {hosted.record.sandbox.sandboxer!r}, not {self._sandboxer!r}"
            )
        self._sandboxes.expiry.hear_of(hosted)
        return hosted

    def _pod(self, sandbox_id: str) -> Pod | None:
        """The pod of our own CRI with this ID."""
        if self._namespace != NAMESPACE:
            return None
        pod = self._pods.find(sandbox_id)
        return pod if pod is not None and self._sandboxer in (pod.handler_name, pod.handler.sandboxer) else None

    def _refuse_pod(self, sandbox_id: str, what: str, instead: str) -> None:
        if self._pod(sandbox_id) is not None:
            raise errors.FailedPrecondition(
                f"sandbox {sandbox_id}: is a pod of this daemon's CRI, which alone may {what} it; use {instead}"
            )

    # --- its life ---

    async def create(self, sandbox: Sandbox, options: CreateOptions) -> None:
        await self._sandboxes.create(self._namespace, self._sandboxer, sandbox, options)

    async def start(self, sandbox_id: str) -> ControllerInstance:
        self._refuse_pod(sandbox_id, "start", "RunPodSandbox")
        self._hosted(sandbox_id)
        return await self._sandboxes.start(self._namespace, sandbox_id)

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        self._refuse_pod(sandbox_id, "stop", "StopPodSandbox (crictl stopp)")
        if self._is_hosted(sandbox_id):
            await self._sandboxes.stop(self._namespace, sandbox_id, timeout_s)

    async def shutdown(self, sandbox_id: str) -> None:
        self._refuse_pod(sandbox_id, "remove", "RemovePodSandbox (crictl rmp, atoll rm)")
        if self._is_hosted(sandbox_id):
            await self._sandboxes.shutdown(self._namespace, sandbox_id)

    def _is_hosted(self, sandbox_id: str) -> bool:
        try:
            self._hosted(sandbox_id)
        except errors.NotFound:
            return False
        return True

    # --- questions ---

    async def wait(self, sandbox_id: str) -> ExitStatus:
        pod = self._pod(sandbox_id)
        if pod is not None:
            return await pod.ended.wait()
        end = await self._hosted(sandbox_id).end.wait()
        match end:
            case NoEnd.GONE:
                raise errors.NotFound(f"sandbox {sandbox_id}: {end}")
            case NoEnd.CLOSING:
                raise errors.Unavailable(f"sandbox {sandbox_id}: {end}")
            case ExitStatus():
                return end

    async def status(self, sandbox_id: str, verbose: bool = False) -> ControllerStatus:
        pod = self._pod(sandbox_id)
        if pod is not None:
            return await self._pod_status(pod, verbose=verbose)
        hosted = self._hosted(sandbox_id)
        known = _known(hosted)
        if not verbose or hosted.is_gone:
            return known
        try:
            with hosted.named():
                told = await self._sandboxes.controller(hosted).status(hosted.inner_id, verbose=True)
        except errors.AtollError as error:
            # Of one that ended before this daemon began its controller was told nothing.
            is_old = isinstance(error, errors.NotFound) and hosted.state.ended is not None
            why = "it ended before the daemon was started" if is_old else str(error)
            return known if known.reason else dataclasses.replace(known, reason=f"no info: {why}")
        return dataclasses.replace(_known(hosted), info=told.info, extra=told.extra)

    async def _pod_status(self, pod: Pod, *, verbose: bool) -> ControllerStatus:
        instance, ended = pod.instance, pod.ended.value
        known = ControllerStatus(
            sandbox_id=pod.id,
            state=pod.state,
            pid=instance.pid if instance is not None and pod.state is State.READY else 0,
            created_at=instance.created_at if instance is not None else pod.sandbox.created_at,
            exited_at=ended.exited_at if ended is not None else None,
            exit_status=ended.exit_status if ended is not None else None,
            address=instance.address if instance is not None else "",
            version=instance.version if instance is not None else 0,
            reason=pod.reason,
        )
        if not verbose:
            return known
        try:
            told = await self._pods.controller(pod).status(pod.id, verbose=True)
        except errors.AtollError:
            return known
        return dataclasses.replace(known, info=told.info, extra=told.extra)

    async def platform(self, sandbox_id: str) -> Platform:
        pod = self._pod(sandbox_id)
        if pod is not None:
            return await self._pods.controller(pod).platform(pod.id)
        return await self._sandboxes.platform(self._hosted(sandbox_id))

    async def metrics(self, sandbox_id: str) -> Metric:
        pod = self._pod(sandbox_id)
        if pod is not None:
            return await self._pods.controller(pod).metrics(pod.id)
        hosted = self._running(sandbox_id)
        with hosted.named():
            metric = await self._sandboxes.controller(hosted).metrics(hosted.inner_id)
        return dataclasses.replace(metric, id=sandbox_id)

    async def ping(self, sandbox_id: str) -> None:
        pod = self._pod(sandbox_id)
        if pod is not None:
            await self._pods.controller(pod).ping(pod.id)
            return
        hosted = self._running(sandbox_id)
        with hosted.named():
            await self._sandboxes.controller(hosted).ping(hosted.inner_id)

    # --- changes ---

    async def update(self, sandbox_id: str, sandbox: Sandbox, fields: tuple[str, ...] = ()) -> None:
        self._refuse_pod(sandbox_id, "update", "UpdatePodSandboxResources")
        await self._sandboxes.update(self._hosted(sandbox_id), sandbox, fields)

    async def pause(self, sandbox_id: str) -> None:
        self._refuse_pod(sandbox_id, "pause", "a sandbox of this API: CRI has no call for it")
        hosted = self._running(sandbox_id)
        with hosted.named():
            await self._sandboxes.controller(hosted).pause(hosted.inner_id)

    async def resume(self, sandbox_id: str) -> None:
        self._refuse_pod(sandbox_id, "resume", "a sandbox of this API: CRI has no call for it")
        hosted = self._running(sandbox_id)
        with hosted.named():
            await self._sandboxes.controller(hosted).resume(hosted.inner_id)

    def _running(self, sandbox_id: str) -> Hosted:
        hosted = self._hosted(sandbox_id)
        self._sandboxes.require_there(hosted)
        if not hosted.is_ready:
            raise errors.FailedPrecondition(f"sandbox {sandbox_id}: is not running")
        if hosted.reason:
            raise errors.Unavailable(f"sandbox {sandbox_id}: cannot be asked now: {hosted.reason}")
        return hosted


def _known(hosted: Hosted) -> ControllerStatus:
    """The status from memory: the watch keeps it true."""
    state, instance, ended = hosted.state, hosted.state.instance, hosted.state.ended
    is_running = state.phase is Phase.STARTED and ended is None
    told = State.UNKNOWN if hosted.reason else State.READY if is_running else State.NOTREADY
    return ControllerStatus(
        sandbox_id=hosted.record.id,
        state=told,
        pid=instance.pid if instance is not None and is_running else 0,
        created_at=instance.created_at if instance is not None else None,
        exited_at=ended.exited_at if ended is not None else None,
        exit_status=ended.exit_status if ended is not None else None,
        address=instance.address if instance is not None else "",
        version=instance.version if instance is not None else 0,
        reason=hosted.reason,
    )
