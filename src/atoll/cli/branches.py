"""Branches of a container's files: `atoll snapshot`, `fork`, `rollback`, `diff`, `commit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import completing
from atoll.cli.options import AsJson, Name, Quiet, Socket, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from atoll.client import Client

app = typer.Typer()
snapshot = typer.Typer(help="Containers' files as they were.", no_args_is_help=True)
app.add_typer(snapshot, name="snapshot")

ContainerName = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER", help="A name, an ID or its unique beginning.", autocompletion=completing.containers
    ),
]
SnapshotName = Annotated[
    str,
    typer.Argument(
        metavar="SNAPSHOT", help="A name, an ID or its unique beginning.", autocompletion=completing.snapshots
    ),
]
SnapshotNames = Annotated[
    list[str],
    typer.Argument(
        metavar="SNAPSHOT", help="Names, IDs or unique beginnings of IDs.", autocompletion=completing.snapshots
    ),
]
Since = Annotated[
    str,
    typer.Option(
        "--since",
        metavar="SNAPSHOT",
        help="Compare with a snapshot that it rests on, not its image.",
        autocompletion=completing.snapshots,
    ),
]


@snapshot.command("create")
def create(
    container: ContainerName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the snapshot; made up where it is left out.")] = "",
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Keep a container's files as they are now; it stands still for a moment."""

    async def work(client: Client) -> int:
        from atoll.cli import show

        taken = await (await client.container(container)).snapshot(name)
        if as_json:
            show.dump({"id": taken.id, "name": taken.name, "cost": show.plain(taken.cost)})
        else:
            print(taken.name)
        return 0

    ask(socket, work)


@snapshot.command("ls")
def ls(as_json: AsJson = False, quiet: Quiet = False, socket: Socket = None) -> None:
    """List the snapshots."""

    async def work(client: Client) -> int:
        from atoll.cli import show

        found = await client.snapshots()
        if as_json:
            show.dump(found)
        elif quiet:
            for one in found:
                print(one.id)
        else:
            rows = [
                (
                    one.id,
                    one.name,
                    one.container_name,
                    one.image,
                    show.size(one.size_bytes),
                    "yes" if one.in_use else "no",
                )
                for one in found
            ]
            show.table(("ID", "NAME", "CONTAINER", "IMAGE", "SIZE", "IN USE"), rows, right=("SIZE",))
        return 0

    ask(socket, work)


@snapshot.command("rm")
def rm(names: SnapshotNames, socket: Socket = None) -> None:
    """Remove snapshots that nothing rests on."""

    async def remove(client: Client) -> int:
        from atoll.cli.work import each

        async def one(name: str) -> None:
            await (await client.snapshot(name)).remove()

        return await each(names, one)

    ask(socket, remove)


@snapshot.command("prune")
def prune(socket: Socket = None) -> None:
    """Remove every snapshot that nothing rests on, and those that only such ones rest on."""

    async def work(client: Client) -> int:
        while unused := [one for one in await client.snapshots() if not one.in_use]:
            for one in unused:
                await (await client.snapshot(one.id)).remove()
                print(one.name)
        return 0

    ask(socket, work)


@app.command("fork")
def fork(
    name: SnapshotName,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=256)] = 1,
    pod: Annotated[str, typer.Option("--pod", metavar="POD", help="In place of the container's own.")] = "",
    no_start: Annotated[bool, typer.Option("--no-start", help="Leave them created.")] = False,
    socket: Socket = None,
) -> None:
    """Run containers upon a snapshot, each with a layer of its own; their IDs."""

    async def work(client: Client) -> int:
        other = await client.pod(pod) if pod else None
        for made in await (await client.snapshot(name)).fork(count, pod=other, start=not no_start):
            print(made.id)
        return 0

    ask(socket, work)


@app.command("rollback")
def rollback(
    container: ContainerName,
    name: SnapshotName,
    timeout: Annotated[
        float, typer.Option("--time", "-t", metavar="SECONDS", min=0, help="Given to its processes to end.")
    ] = 10.0,
    socket: Socket = None,
) -> None:
    """Put a container with the snapshot's files in the place of one; its ID."""

    async def work(client: Client) -> int:
        made = await (await client.container(container)).rollback(await client.snapshot(name), timeout=timeout)
        print(made.id)
        return 0

    ask(socket, work)


@app.command("diff")
def diff(
    name: Name,
    since: Since = "",
    tar: Annotated[
        Path | None, typer.Option("--tar", metavar="FILE", help="Write a layer with whiteouts; - for standard output.")
    ] = None,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """What a container has added (A), changed (C) and deleted (D)."""

    async def work(client: Client) -> int:
        import contextlib

        from atoll.cli import show

        container = await client.container(name)
        if tar is not None:
            async with contextlib.aclosing(container.diff_tar(since)) as chunks:
                await _write(tar, chunks)
            return 0
        found = await container.diff(since)
        if as_json:
            show.dump([{"kind": one.kind.value, "path": shown(one.path)} for one in found])
        else:
            for one in found:
                print(f"{one.kind.value[0].upper()} {shown(one.path)}")
        return 0

    ask(socket, work)


@app.command("commit")
def commit(
    name: Name,
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="A name and a tag; none where left out.")] = "",
    change: Annotated[
        list[str] | None,
        typer.Option("--change", "-c", metavar="INSTRUCTION", help="As in a Dockerfile; may be repeated."),
    ] = None,
    author: Annotated[str, typer.Option("--author", "-a")] = "",
    message: Annotated[str, typer.Option("--message", "-m")] = "",
    no_pause: Annotated[bool, typer.Option("--no-pause", help="Let it run meanwhile.")] = False,
    socket: Socket = None,
) -> None:
    """Make an image of a container; its ID."""

    async def work(client: Client) -> int:
        container = await client.container(name)
        made = await container.commit(
            reference, changes=change or (), author=author, message=message, pause=not no_pause
        )
        print(made)
        return 0

    ask(socket, work)


async def _write(target: Path, chunks: AsyncIterator[bytes]) -> None:
    """To a file, which is overwritten, or to standard output."""
    import sys

    if str(target) == "-":
        async for data in chunks:
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with target.open("wb") as file:
        async for data in chunks:
            file.write(data)


def shown(path: str) -> str:
    """A path as a terminal may have it: whatever a container calls its files, no control character is passed on."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
