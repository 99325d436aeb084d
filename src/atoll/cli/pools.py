"""Pools of ready pods: `atoll pool`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import completing
from atoll.cli.options import COMMAND_LINE, AsJson, NetworkChoice, PullChoice, Quiet, Socket, Variables, ask

if TYPE_CHECKING:
    from atoll.client import Client, PoolStatus

app = typer.Typer()
pool = typer.Typer(help="Pools of ready pods, each with its container running.", no_args_is_help=True)
app.add_typer(pool, name="pool")

PoolName = Annotated[str, typer.Argument(metavar="NAME", help="Of the pool.", autocompletion=completing.pools)]
PoolNames = Annotated[list[str], typer.Argument(metavar="NAME", help="Of pools.", autocompletion=completing.pools)]


@pool.command("create", context_settings=COMMAND_LINE)
def create(
    name: PoolName,
    image: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=completing.images)],
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND", help="In place of the image's own.")] = None,
    size: Annotated[int, typer.Option("--size", "-n", min=0, max=1024, help="How many to keep ready.")] = 1,
    env: Variables = None,
    network: Annotated[NetworkChoice, typer.Option("--network")] = NetworkChoice.default,
    cpus: Annotated[float | None, typer.Option("--cpus", help="Limit, in CPUs.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", "-m", metavar="SIZE", help="Limit, as in 64MiB.")] = None,
    runtime: Annotated[str, typer.Option("--runtime", metavar="HANDLER", help="A runtime handler.")] = "",
    pull: Annotated[PullChoice, typer.Option("--pull")] = PullChoice.missing,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Make a pool, or change one: members of another spec are replaced."""

    async def work(client: Client) -> int:
        from atoll.cli import show
        from atoll.client import ContainerOptions, PodOptions

        options = ContainerOptions(
            image=image, command=command or (), env=_variables(env or []), cpus=cpus, memory=memory
        )
        made = await client.pool(
            name, options, size=size, pod=PodOptions(network=network.value), runtime=runtime, pull=pull.value
        )
        if as_json:
            show.dump(_object(await made.status()))
        else:
            print(name)
        return 0

    ask(socket, work)


@pool.command("ls")
def ls(as_json: AsJson = False, quiet: Quiet = False, socket: Socket = None) -> None:
    """List the pools: members, hits and misses, and why members could not be made."""

    async def work(client: Client) -> int:
        from atoll.cli import show

        found = await client.pools()
        if as_json:
            show.dump([_object(one) for one in found])
        elif quiet:
            for one in found:
                print(one.name)
        else:
            columns = ("NAME", "IMAGE", "READY", "BOOTING", "HITS", "MISSES", "HIT RATE", "ERROR")
            show.table(columns, [_row(one) for one in found], right=columns[2:7])
        return 0

    ask(socket, work)


@pool.command("acquire")
def acquire(
    name: PoolName,
    ttl: Annotated[float, typer.Option("--ttl", metavar="SECONDS", min=0, help="Removed after so long.")] = 0.0,
    idle: Annotated[
        float, typer.Option("--idle", metavar="SECONDS", min=0, help="Removed after so long without use.")
    ] = 0.0,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Take a running pod out of a pool and print its container's ID; unused for ten minutes it is removed."""

    async def work(client: Client) -> int:
        from atoll.cli import show

        pod = await (await client.pool(name)).take(ttl=ttl, idle=idle)
        if as_json:
            told = {"pod": pod.id, "name": pod.name, "container": pod.container.id}
            show.dump({**told, "start": show.plain(pod.start)})
        else:
            print(pod.container.id)
        return 0

    ask(socket, work)


@pool.command("resize")
def resize(
    name: PoolName,
    size: Annotated[int, typer.Argument(metavar="SIZE", min=0, max=1024)],
    socket: Socket = None,
) -> None:
    """Keep so many ready from now on."""

    async def work(client: Client) -> int:
        await (await client.pool(name)).resize(size)
        print(name)
        return 0

    ask(socket, work)


@pool.command("drain")
def drain(name: PoolName, socket: Socket = None) -> None:
    """Remove the members and make none until the pool is resized."""

    async def work(client: Client) -> int:
        await (await client.pool(name)).drain()
        print(name)
        return 0

    ask(socket, work)


@pool.command("rm")
def rm(names: PoolNames, socket: Socket = None) -> None:
    """Remove pools with their members; what was handed out lives on."""

    async def remove(client: Client) -> int:
        from atoll.cli.work import each

        async def one(name: str) -> None:
            await (await client.pool(name)).delete()

        return await each(names, one)

    ask(socket, remove)


def _variables(given: list[str]) -> dict[str, str]:
    """`KEY=value` of the command line; raises `InvalidArgument` for a name alone."""
    from atoll import errors

    if wrong := [one for one in given if "=" not in one]:
        raise errors.InvalidArgument(f"env {wrong[0]!r}: must be like KEY=value")
    return dict(one.split("=", 1) for one in given)


def _object(status: PoolStatus) -> dict[str, object]:
    from atoll.cli import show

    made = show.plain(status)
    assert isinstance(made, dict)
    return {**{str(key): one for key, one in made.items()}, "hit_rate": status.hit_rate}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # a dict that `plain` made


def _row(status: PoolStatus) -> tuple[str, ...]:
    rate = status.hit_rate
    return (
        status.name,
        status.image,
        f"{status.ready}/{status.size}",
        str(status.booting),
        str(status.hits),
        str(status.misses),
        "-" if rate is None else f"{rate:.0%}",
        status.error,
    )
