"""How long pods live: `atoll lease`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.options import AsJson, Name, Socket, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.client import Client, LeaseStatus

app = typer.Typer()
lease = typer.Typer(help="How long pods live: an absolute time, and one without use.", no_args_is_help=True)
app.add_typer(lease, name="lease")

Ttl = Annotated[float | None, typer.Option("--ttl", metavar="SECONDS", help="From now on; 0 for none.")]
IdleTime = Annotated[float | None, typer.Option("--idle", metavar="SECONDS", help="Without use; 0 for none.")]


@lease.command("ls")
def ls(as_json: AsJson = False, socket: Socket = None) -> None:
    """List the leases, those that ran out last too."""

    async def work(client: Client) -> int:
        from atoll.cli import show

        found = await client.leases()
        if as_json:
            show.dump(found)
        else:
            show.table(("POD", "NAME", "TTL", "IDLE", "LEFT", "STATE"), rows(found), right=("TTL", "IDLE", "LEFT"))
        return 0

    ask(socket, work)


@lease.command("renew")
def renew(name: Name, ttl: Ttl = None, idle: IdleTime = None, as_json: AsJson = False, socket: Socket = None) -> None:
    """Begin a pod's times anew, or give it a lease."""

    async def work(client: Client) -> int:
        from atoll.cli import show

        status = await (await client.pod(name)).lease.renew(ttl=ttl, idle=idle)
        if as_json:
            show.dump(status)
        else:
            print(f"{status.pod_name}: {status.left_s:.0f} s left")
        return 0

    ask(socket, work)


@lease.command("end")
def end(name: Name, socket: Socket = None) -> None:
    """Take a pod's lease away: it lives until it is removed."""

    async def work(client: Client) -> int:
        await (await client.pod(name)).lease.end()
        print(name)
        return 0

    ask(socket, work)


def rows(found: Sequence[LeaseStatus]) -> list[tuple[str, ...]]:
    """A row of the table for each lease."""
    from atoll.cli import show

    return [
        (
            show.short(one.pod_id),
            one.pod_name or "-",
            f"{one.ttl_s:g}" if one.ttl_s else "-",
            f"{one.idle_s:g}" if one.idle_s else "-",
            f"{one.left_s:.0f}" if not one.reason else "-",
            one.reason or ("in use" if one.in_use else "unused"),
        )
        for one in found
    ]
