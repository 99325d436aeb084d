"""The engine's own connection to the shim of a pod: made, and made again where it broke and the shim lives."""

from __future__ import annotations

from atoll import errors
from atoll.engine.paths import NAMESPACE
from atoll.engine.pod import Pod
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.shim import Shim
from atoll.runtime.task import TaskClient


async def connect(pod: Pod) -> None:
    """Connect to where the pod's instance says that its Task API answers; nothing where it names no address.

    Raises `Unavailable` where nobody listens there.
    """
    instance = pod.instance
    if instance is None or not instance.address:
        return
    bootstrap = Bootstrap.from_endpoint(instance.address, instance.version)
    pod.shim = await Shim.connect(id=pod.id, namespace=NAMESPACE, bootstrap=bootstrap, bundle=pod.bundle)


async def shim_of(pod: Pod) -> Shim:
    """The connected shim of a pod; connects again where the connection broke. Raises `Unavailable` where it is gone."""
    if pod.shim is not None and not pod.shim.client.is_closed:
        return pod.shim
    async with pod.connecting:
        if pod.shim is None or pod.shim.client.is_closed:
            pod.shim = None
            try:
                await connect(pod)
            except errors.Unavailable as error:
                raise errors.Unavailable(f"pod {pod.id[:13]}: its shim is gone: {error}") from error
        if pod.shim is None:
            if pod.instance is not None and not pod.instance.address and not pod.ended.is_set:
                raise errors.FailedPrecondition(
                    f"pod {pod.id[:13]}: its sandboxer serves no task API, so that no container can run in it"
                )
            raise errors.Unavailable(f"pod {pod.id[:13]}: its shim is gone")
        return pod.shim


async def tasks_of(pod: Pod) -> TaskClient:
    """The Task API of a pod's shim; as `shim_of`."""
    return (await shim_of(pod)).tasks


async def is_gone(pod: Pod) -> bool:
    """Whether nobody serves the pod any more: certain, and for good. False where it cannot be asked now."""
    if pod.is_unasked and not pod.ended.is_set:
        return False
    try:
        await shim_of(pod)
    except errors.Unavailable:
        return True
    except errors.AtollError:
        return False
    return False


async def hang_up(pod: Pod) -> None:
    """Let go of the connection for good; the shim lives on. Idempotent."""
    pod.instance = None
    if pod.shim is not None:
        await pod.shim.aclose()
        pod.shim = None
