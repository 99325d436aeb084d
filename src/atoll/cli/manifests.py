"""`atoll pod`: pods of Kubernetes manifests, and pods as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import completing
from atoll.cli.options import AsJson, Quiet, Socket, ask

app = typer.Typer()
pod = typer.Typer(help="Pods as a whole, and those of Kubernetes manifests.", no_args_is_help=True)
app.add_typer(pod, name="pod")


@pod.command("run")
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Kubernetes Pod in YAML or JSON, or - for stdin.")],
    timings: Annotated[bool, typer.Option("--timings", help="Then tell how long each step took.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the ID, and no progress.")] = False,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """Run the pod of a manifest; a field that is not supported is refused by its path."""
    from atoll.cli import pod_work as work

    manifest = work.read_manifest(file)
    ask(socket, lambda client: work.run(client, manifest, timings=timings, quiet=quiet, as_json=as_json))


@pod.command("ls")
def ls(as_json: AsJson = False, quiet: Quiet = False, socket: Socket = None) -> None:
    """List pods, also those that have ended."""
    from atoll.cli import pod_work as work

    ask(socket, lambda client: work.ls(client, as_json=as_json, quiet=quiet))


@pod.command("rm")
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Names, IDs or unique beginnings of IDs.", autocompletion=completing.pods),
    ],
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill what runs, without a word to it.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--time", "-t", min=0, help="Seconds until it is killed \\[default: as its manifest says, or 10]."
        ),
    ] = None,
    socket: Socket = None,
) -> None:
    """Stop pods, each politely, and remove them with all in them."""
    from atoll.cli import pod_work as work

    ask(socket, lambda client: work.rm(client, names, force=force, timeout_s=timeout))
