"""Pulls and pushes with their progress: a bar a layer on a terminal, nothing in a pipe; and with whom to be there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator

from atoll.client import Client, LayerProgress, credentials
from atoll.client.registries import NOBODY, Credentials, Pushed
from atoll.image.reference import Reference

Show = Callable[[tuple[LayerProgress, ...]], None]
ENDED = ("done", "present")


async def pull_shown(
    client: Client, reference: str, *, quiet: bool = False, username: str = "", password: str = ""
) -> str:
    """Pull an image; its ID. The progress goes to standard error; without a user name docker's credentials are used."""
    if not username:
        known = credentials_for(reference)
        username, password = known.username, known.password
        if known.identity_token:
            username, password = credentials.TOKEN_USER, known.identity_token
    with _bars(quiet) as show:
        return await client.pull(reference, show, username=username, password=password)


async def push_shown(client: Client, image: str, target: str, *, quiet: bool, given: Credentials) -> Pushed:
    """Push an image; its progress goes to standard error."""
    chosen = given if given is not NOBODY else credentials_for(target or image)
    with _bars(quiet) as show:
        return await client.registries.push(image, target, show, credentials=chosen)


def credentials_for(reference: str) -> Credentials:
    """Whom to be at the registry of an image."""
    return credentials.find(Reference.parse(reference).domain)


@contextlib.contextmanager
def _bars(quiet: bool) -> Generator[Show | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def show(layers: tuple[LayerProgress, ...]) -> None:
            for layer in layers:
                bar = bars.get(layer.digest)
                if bar is None:
                    bar = bars[layer.digest] = progress.add_task("", total=None)
                total = layer.total_bytes or None
                done = layer.total_bytes if layer.phase in ENDED else layer.current_bytes
                name = layer.digest.removeprefix("sha256:")[:12]
                progress.update(bar, description=f"{name} {layer.phase:<11}", total=total, completed=done)

        yield show
