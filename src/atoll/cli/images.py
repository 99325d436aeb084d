"""What is done with images and registries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.options import AsJson, Quiet, Socket, ask

app = typer.Typer()


@app.command("pull")
def pull(
    reference: Annotated[str, typer.Argument(metavar="IMAGE")],
    username: Annotated[str, typer.Option("--username", "-u")] = "",
    password: Annotated[str, typer.Option("--password", envvar="ATOLL_REGISTRY_PASSWORD")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Fetch an image from its registry."""
    from atoll.cli import work

    ask(
        socket,
        lambda client: work.pull(client, reference, quiet=quiet, username=username, password=password, as_json=as_json),
    )


@app.command("images")
def images(as_json: AsJson = False, quiet: Quiet = False, socket: Socket = None) -> None:
    """List images."""
    from atoll.cli import work

    ask(socket, lambda client: work.images(client, as_json=as_json, quiet=quiet))


@app.command("load")
def load(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A docker or OCI archive, or an OCI layout.")],
    name: Annotated[str, typer.Option("--name", help="For an image that has no name in it.")] = "",
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Import images from a file."""
    from atoll.cli import work

    ask(socket, lambda client: work.load(client, path, name, as_json=as_json))


@app.command("rmi")
def rmi(
    names: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Names or IDs.")], socket: Socket = None
) -> None:
    """Remove images."""
    from atoll.cli import work

    ask(socket, lambda client: work.remove_images(client, names))
