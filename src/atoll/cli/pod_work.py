"""The work of `atoll pod`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from atoll import errors
from atoll.cli import show, work
from atoll.cli.outcome import say
from atoll.cli.pulling import pull_shown
from atoll.cli.run import interruptible
from atoll.client import Client, ContainerState, PodStatus
from atoll.client.container import STOP_GRACE_S
from atoll.client.manifest import GRACE, Manifest, parse
from atoll.concurrency import wait_all


def read_manifest(file: Path) -> Manifest:
    """The manifest of a file, or of standard input for `-`; raises `InvalidArgument` and `NotFound`."""
    if str(file) == "-":
        return parse(sys.stdin.buffer.read(), "standard input")
    try:
        return parse(file.read_bytes(), str(file))
    except OSError as error:
        raise errors.NotFound(f"{file}: cannot be read: {error.strerror}") from error


async def run(client: Client, manifest: Manifest, *, timings: bool, quiet: bool, as_json: bool) -> int:
    """Run a manifest's pod; Ctrl-C before it runs leaves nothing."""
    async with interruptible():
        pod = await client.run_manifest(
            manifest,
            pull=lambda reference: pull_shown(client, reference, quiet=quiet),
            tell=None if quiet or not sys.stderr.isatty() else say,
        )
    status, inside = await pod.details()
    if as_json:
        show.dump({**work.as_object(status), "containers": [work.as_object(one) for one in inside]})
    elif quiet:
        print(pod.id)
    else:
        show.table(
            ("ID", "NAME", "IMAGE", "STATUS", "POD", "IP", "PORTS"), show.ps_rows([(status, inside)], every=True)
        )
    if timings:
        show.phases(await pod.phases())
    return 0


async def ls(client: Client, *, as_json: bool, quiet: bool) -> int:
    found = await work.overview(client)
    if as_json:
        show.dump([{**work.as_object(pod), "containers": [one.id for one in inside]} for pod, inside in found])
        return 0
    if quiet:
        for pod, _ in found:
            print(pod.id)
        return 0
    rows = [
        (
            show.short(pod.id),
            pod.name,
            pod.namespace,
            pod.state.value,
            f"{sum(one.state is ContainerState.RUNNING for one in inside)}/{len(inside)}",
            pod.ip,
            show.age(pod.created_at),
            pod.runtime,
        )
        for pod, inside in found
    ]
    show.table(("ID", "NAME", "NAMESPACE", "STATE", "RUN", "IP", "AGE", "RUNTIME"), rows)
    return 0


async def rm(client: Client, names: Sequence[str], *, force: bool, timeout_s: float | None) -> int:
    async def remove(name: str) -> None:
        pod = await client.pod(name)
        if not force:
            status = await pod.status()
            running = [one for one in await pod.containers() if one.state is ContainerState.RUNNING]
            grace = timeout_s if timeout_s is not None else _grace(status)
            await wait_all([client.container_by_id(one).stop(grace) for one in running])
        await pod.remove()

    return await work.each(names, remove)


def _grace(status: PodStatus) -> float:
    with contextlib.suppress(ValueError):
        return float(status.annotations.get(GRACE, STOP_GRACE_S))
    return STOP_GRACE_S
