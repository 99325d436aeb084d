"""Running the pod of a manifest: `client.run_manifest`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import wire
from atoll.client.container import Container
from atoll.client.images import Images
from atoll.client.making import made_or_undone
from atoll.client.manifest import Manifest
from atoll.client.manifest_containers import ContainerPlan
from atoll.client.pod import CREATE_TIMEOUT_S, Pod
from atoll.concurrency import run_to_completion

RUN_TIMEOUT_S = 240.0
REMOVE_WITHIN_S = 240.0
SAID_LINES = 5

Pull = Callable[[str], Awaitable[object]]
Told = Callable[[str], None]


async def run(connection: wire.Wire, manifest: Manifest, *, pull: Pull | None = None, tell: Told | None = None) -> Pod:
    """Run a manifest's pod: images, pod, init containers to their ends, then the others; they run when this returns.

    Where anything fails, or the caller is cancelled, nothing is left. Raises `FailedPrecondition` for an init container
    that fails, with the end of what it said.
    """
    images = Images(connection)
    for plan in (*manifest.init, *manifest.containers):
        await _have(images, plan, pull or images.pull)
    asked = cri.RunPodSandboxRequest(config=manifest.pod, runtime_handler=manifest.runtime)

    async def make() -> Pod:
        answer = await connection.call(wire.RUN_POD, asked, timeout_s=RUN_TIMEOUT_S)
        return Pod(connection, answer.pod_sandbox_id, manifest.name, manifest.pod)

    pod = await made_or_undone(make(), Pod.remove, within=RUN_TIMEOUT_S + 5)
    try:
        for plan in manifest.init:
            if tell is not None:
                tell(f"init container {plan.config.metadata.name}")
            await _run_to_its_end(await _create(connection, pod, manifest, plan))
        made = [await _create(connection, pod, manifest, plan) for plan in manifest.containers]
        for container in made:
            await container.start()
    except BaseException:
        await run_to_completion(pod.remove(), within=REMOVE_WITHIN_S)
        raise
    return pod


async def _have(images: Images, plan: ContainerPlan, pull: Pull) -> None:
    reference = plan.config.image.image
    if plan.pull == "always" and not reference.startswith("atoll/"):
        await pull(reference)
    elif not await images.has(reference):
        if plan.pull == "never":
            raise errors.NotFound(f"image {reference!r}: is not here, and imagePullPolicy is Never")
        await pull(reference)
    if plan.must_not_be_root and await images.runs_as_root(reference):
        name = plan.config.metadata.name
        raise errors.FailedPrecondition(
            f"container {name}: runAsNonRoot, but image {reference} runs as root; name a runAsUser"
        )


async def _create(connection: wire.Wire, pod: Pod, manifest: Manifest, plan: ContainerPlan) -> Container:
    asked = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=plan.config, sandbox_config=manifest.pod)
    answer = await connection.call(wire.CREATE_CONTAINER, asked, timeout_s=CREATE_TIMEOUT_S)
    return Container(connection, answer.container_id, plan.config.metadata.name, pod.id)


async def _run_to_its_end(container: Container) -> None:
    await container.start()
    end = await container.wait()
    if end.code:
        said = [line.text async for line in container.logs(tail=SAID_LINES)]
        raise errors.FailedPrecondition(
            f"init container {container.name}: ended with {end.code}{': ' if said else ''}{' / '.join(said)}"
        )
