"""What the commands do, once their arguments are read."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from atoll import errors
from atoll.cli import show, terminal
from atoll.cli.outcome import FOUND, say
from atoll.cli.pulling import pull_shown
from atoll.cli.registry import archive_of
from atoll.cli.run import KIND
from atoll.client import Client, Container, ContainerState, ContainerStatus, Pod, PodState, PodStatus
from atoll.concurrency import wait_all

PARALLEL = 32
"""Calls at one time."""


async def overview(client: Client) -> list[tuple[PodStatus, tuple[ContainerStatus, ...]]]:
    """Every pod with its containers, the newest first; what goes away meanwhile is left out."""
    gate = asyncio.Semaphore(PARALLEL)

    async def look(pod_id: str, name: str) -> tuple[PodStatus, tuple[ContainerStatus, ...]] | None:
        async with gate:
            try:
                return await client.pod_by_id(pod_id, name).details()
            except errors.NotFound:
                return None

    found = await wait_all([look(pod.id, pod.name) for pod in await client.pods()])
    return [one for one in found if one is not None]


async def ps(client: Client, *, every: bool, as_json: bool, quiet: bool) -> int:
    pods = await overview(client)
    if as_json:
        shown = [(pod, inside) for pod, inside in pods if every or pod.state is PodState.READY]
        show.dump([{**as_object(pod), "containers": [as_object(one) for one in inside]} for pod, inside in shown])
        return 0
    rows = show.ps_rows(pods, every=every)
    if quiet:
        for row in rows:
            print(row[0])
        return 0
    show.table(("ID", "NAME", "IMAGE", "STATUS", "POD", "IP", "PORTS"), rows)
    return 0


def as_object(value: PodStatus | ContainerStatus) -> dict[str, object]:
    """A status as JSON has it, the runtime's texts parsed, left out where there are none."""
    made = show.plain(value)
    assert isinstance(made, dict)
    found: dict[str, object] = {str(key): one for key, one in made.items() if key != "info"}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # a dict that `plain` made
    if value.info:
        found["info"] = show.info(value.info)
    return found


async def inspect(client: Client, names: Sequence[str], *, timings: bool) -> int:
    """Everything about pods, containers and images, as JSON; a name that is several is the pod, then the container."""
    found: list[object] = []
    for name in names:
        pod = await pod_or_none(client, name)
        if pod is None:
            try:
                container = await container_of(client, name)
            except errors.NotFound:
                image = await _image(client, name)
                if image is None:
                    raise
                found.append(image)
                continue
            found.append(as_object(await container.status(verbose=True)))
            continue
        status, inside = await pod.details(verbose=True)
        told = {**as_object(status), "containers": [as_object(one) for one in inside]}
        if timings:
            told["phases"] = show.plain(await pod.phases())
        found.append(told)
    show.dump(found)
    return 0


async def _image(client: Client, name: str) -> dict[str, object] | None:
    with contextlib.suppress(errors.InvalidArgument):  # a name that no image can have
        return await client.registries.details(name)
    return None


async def pod_or_none(client: Client, name: str) -> Pod | None:
    with contextlib.suppress(errors.NotFound):
        return await client.pod(name)
    return None


async def container_of(client: Client, name: str) -> Container:
    """The container that is meant where no pod is; raises `NotFound` for a name that is neither's."""
    try:
        return await client.container(name)
    except errors.NotFound:
        if "/" in name:
            raise
        raise errors.NotFound(f"pod or container {name!r}: there is none; `atoll ps -a` shows what there is") from None


async def logs(
    client: Client,
    name: str,
    *,
    follow: bool,
    tail: int | None,
    since_ns: int | None,
    until_ns: int | None,
    times: bool,
) -> int:
    container = await client.container(name)
    reading = contextlib.aclosing(container.logs(follow=follow, tail=tail, since=since_ns))
    async with terminal.while_read(), reading as lines:
        whole = True
        async for line in lines:
            if until_ns is not None and line.time_ns > until_ns:
                break
            stamp = f"{line.time:%Y-%m-%dT%H:%M:%S.%fZ} ".encode() if times and whole and line.time else b""
            out = sys.stderr if line.stream == "stderr" else sys.stdout
            terminal.write(out.fileno(), stamp + (line.content if line.partial else line.content + b"\n"))
            whole = not line.partial
    return 0


# --- stop and remove ---


async def stop(client: Client, names: Sequence[str], timeout_s: float) -> int:
    """Stop containers, or pods with all in them, each politely; the names are told as they are done."""
    return await each(names, lambda name: _stop(client, name, timeout_s))


async def _stop(client: Client, name: str, timeout_s: float) -> None:
    pod = await _pod_of(client, name)
    if pod is None:
        await (await container_of(client, name)).stop(timeout_s)
        return
    await _stop_politely(client, pod, timeout_s)


async def _stop_politely(client: Client, pod: Pod, timeout_s: float) -> None:
    running = [one for one in await pod.containers() if one.state is not ContainerState.EXITED]
    await wait_all([client.container_by_id(one).stop(timeout_s) for one in running])
    await pod.stop()


async def _pod_of(client: Client, name: str) -> Pod | None:
    """The pod that is meant: named itself, or made by `atoll run` for the container named."""
    pod = await pod_or_none(client, name)
    if pod is not None:
        return pod
    container = await container_of(client, name)
    owner = next((one for one in await client.pods(labels={KIND: "true"}) if one.id == container.pod_id), None)
    return client.pod_by_id(owner.id, owner.name) if owner is not None else None


async def remove(client: Client, names: Sequence[str], *, force: bool, every: bool) -> int:
    """Remove containers or pods; what runs only with `force`. `every` is each pod that has ended, with force all."""
    if every:
        pods = await overview(client)
        names = [pod.id for pod, inside in pods if force or not _runs(inside)]
    return await each(names, lambda name: _remove(client, name, force=force))


def _runs(containers: Sequence[ContainerStatus]) -> bool:
    return any(one.state is ContainerState.RUNNING for one in containers)


async def _remove(client: Client, name: str, *, force: bool) -> None:
    pod = await _pod_of(client, name)
    if pod is not None:
        if not force and _runs(await pod.containers()):
            raise errors.FailedPrecondition(f"pod {pod.name}: a container runs in it; stop it first, or use -f")
        await pod.remove()
        return
    container = await client.container(name)
    if not force and (await container.status()).state is ContainerState.RUNNING:
        raise errors.FailedPrecondition(f"container {container.name}: is running; stop it first, or use -f")
    await container.remove()


async def each(names: Sequence[str], work: Callable[[str], Awaitable[None]]) -> int:
    """Do it to each name, which is told as it is done; one that fails is told too, and holds up no other."""
    code = 0
    for name in names:
        try:
            await work(name)
            print(name)
        except errors.AtollError as error:
            say(str(error))
            code = 125
    return code


# --- images ---


async def images(client: Client, *, as_json: bool, quiet: bool) -> int:
    found = await client.images()
    if as_json:
        show.dump(found)
        return 0
    rows = [
        (name, show.short(image.id), show.size(image.size_bytes))
        for image in found
        for name in (image.tags or image.digests or ("<none>",))
    ]
    if quiet:
        for image in found:
            print(show.short(image.id))
        return 0
    show.table(("IMAGE", "ID", "SIZE"), sorted(rows), right=("SIZE",))
    return 0


async def pull(client: Client, reference: str, *, quiet: bool, username: str, password: str, as_json: bool) -> int:
    image_id = await pull_shown(client, reference, quiet=quiet, username=username, password=password)
    if as_json:
        show.dump({"reference": reference, "id": image_id})
    else:
        print(image_id)
    return 0


async def load(client: Client, path: Path, reference: str, *, as_json: bool) -> int:
    if str(path) != "-" and not path.exists():  # noqa: ASYNC240 - one stat, before anything else is done
        raise errors.NotFound(f"{path}: there is no such file")
    async with archive_of(path) as archive:
        found = await client.load(archive, reference)
    if as_json:
        show.dump(found)
        return 0
    for image in found:
        print(", ".join(image.references) or image.id)
    return 0


async def remove_images(client: Client, names: Sequence[str]) -> int:
    async def remove(name: str) -> None:
        with contextlib.suppress(errors.Unimplemented):  # another CRI runtime, which knows whole images only
            await client.registries.remove(name)
            return
        if name not in {image.id for image in await client.images()}:
            try:
                await client.image(name)
            except errors.NotFound:  # the SDK's removal is idempotent; who types a name wants to know
                raise errors.NotFound(f"image {name!r}: is not here; `atoll images` shows what is") from None
        await client.remove_image(name)

    return await each(names, remove)


# --- the daemon ---


async def fsck(client: Client, *, repair: bool, abandon: Sequence[str] = (), as_json: bool) -> int:
    """1 where something was found, or with `repair` where something of it is left; `abandon` is done first."""
    for name in abandon:
        pod = await pod_or_none(client, name)
        await client.abandon(pod.id if pod is not None else name)
    report = await client.fsck(repair=repair)
    left = [one for one in report.findings if not one.repaired]
    if as_json:
        show.dump(report)
    elif report.clean:
        print(f"clean: {report.checked} resources compared" if report.checked else "clean: nothing is held")
    else:
        rows = [
            (one.kind, one.key, one.owner or "-", one.problem, "repaired" if one.repaired else one.error or one.remedy)
            for one in report.findings
        ]
        show.table(("KIND", "KEY", "OWNER", "PROBLEM", "REMEDY"), rows)
        if left and not repair:
            say(f"{len(left)} found; `atoll fsck --repair` puts right what it can")
    return FOUND if left else 0


async def reload(client: Client, *, as_json: bool) -> int:
    done = await client.reload()
    if as_json:
        show.dump(done)
        return 0
    rows = [
        (table, keys, when)
        for found, when in ((done.applied, "now"), (done.waiting, "at the next start"))
        for table, keys in by_table(found)
    ]
    if rows:
        show.table(("TABLE", "CHANGED", "IN FORCE"), rows)
    else:
        print(f"{done.file or 'no configuration file'}: nothing new")
    return 0


def by_table(keys: Sequence[str]) -> list[tuple[str, str]]:
    """Keys of the configuration file as one row a table, as `[network]` and `mtu, ready_pool`."""
    found: dict[str, list[str]] = {}
    for key in keys:
        table, _, name = key.rpartition(" ")
        found.setdefault(table or "-", []).append(name)
    return [(table, ", ".join(names)) for table, names in found.items()]


async def phases(client: Client, name: str, *, as_json: bool) -> int:
    pod = await pod_or_none(client, name)
    if pod is None:
        container = await container_of(client, name)
        pod = client.pod_by_id(container.pod_id, "")
    found = await pod.phases()
    if as_json:
        show.dump(found)
        return 0
    show.phases(found)
    return 0
