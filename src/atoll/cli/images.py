"""What is done with images and registries."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import completing
from atoll.cli.options import AsJson, Quiet, Socket, ask

app = typer.Typer()


Image = Annotated[
    str,
    typer.Argument(metavar="IMAGE", help="A name, an ID or its unique beginning.", autocompletion=completing.images),
]
Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE", help="Names, IDs or unique beginnings of IDs.", autocompletion=completing.images),
]
Username = Annotated[
    str, typer.Option("--username", "-u", help="In place of what `login` keeps, with --password or its variable.")
]
Password = Annotated[str, typer.Option("--password", envvar="ATOLL_REGISTRY_PASSWORD")]
Registry = Annotated[str, typer.Argument(metavar="REGISTRY", help="As in registry.example:5000.")]
DOCKER_HUB = "docker.io"


class ArchiveForm(StrEnum):
    oci = "oci"
    docker = "docker"


@app.command("login")
def login(
    registry: Registry = DOCKER_HUB,
    username: Annotated[str, typer.Option("--username", "-u", help="Asked for where it is not given.")] = "",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="The password is on standard input.")
    ] = False,
    socket: Socket = None,
) -> None:
    """Keep credentials for a registry where docker keeps them, once the registry has taken them."""
    from atoll.cli import registry as work

    given = work.credentials_asked(registry, username, from_stdin=password_stdin)
    ask(socket, lambda client: work.login(client, registry, given))


@app.command("logout")
def logout(registry: Registry = DOCKER_HUB, socket: Socket = None) -> None:
    """Forget the credentials for a registry."""
    from atoll.cli import registry as work

    raise typer.Exit(work.logout(registry))


@app.command("pull")
def pull(
    reference: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=completing.images)],
    username: Username = "",
    password: Password = "",
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


@app.command("push")
def push(
    image: Image,
    target: Annotated[str, typer.Argument(metavar="NAME", help="The name to push it by, where that is another.")] = "",
    username: Username = "",
    password: Password = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Send an image to its registry; what is there already is not sent."""
    from atoll.cli import registry as work

    ask(
        socket,
        lambda client: work.push(
            client, image, target, quiet=quiet, username=username, password=password, as_json=as_json
        ),
    )


@app.command("images")
def images(as_json: AsJson = False, quiet: Quiet = False, socket: Socket = None) -> None:
    """List images."""
    from atoll.cli import work

    ask(socket, lambda client: work.images(client, as_json=as_json, quiet=quiet))


@app.command("load")
def load(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A docker or OCI archive, an OCI layout, or -.")
    ] = None,
    given: Annotated[Path | None, typer.Option("--input", "-i", metavar="FILE", help="The same, as docker's.")] = None,
    name: Annotated[str, typer.Option("--name", help="For an image that has no name in it.")] = "",
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Import images from a file."""
    from atoll.cli import work

    if (path is None) == (given is None):
        raise typer.BadParameter("name one FILE, or - for standard input")
    file = path or given or Path("-")
    ask(socket, lambda client: work.load(client, file, name, as_json=as_json))


@app.command("save")
def save(
    images: Images,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="\\[default: stdout]")] = None,
    form: Annotated[
        ArchiveForm, typer.Option("--format", help="OCI's, which docker 25 reads too, or docker's of before.")
    ] = ArchiveForm.oci,
    socket: Socket = None,
) -> None:
    """Write images to an archive, for `load` here or elsewhere."""
    from atoll.cli import registry as work

    ask(socket, lambda client: work.save(client, images, output, form.value))


@app.command("tag")
def tag(
    image: Image,
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="As in registry.example:5000/app:1.")],
    socket: Socket = None,
) -> None:
    """Give an image more names."""
    from atoll.cli import registry as work

    ask(socket, lambda client: work.tag(client, image, names))


@app.command("rmi")
def rmi(names: Images, socket: Socket = None) -> None:
    """Take names from images; one with no name left is removed, as is one that is told by its ID."""
    from atoll.cli import work

    ask(socket, lambda client: work.remove_images(client, names))
