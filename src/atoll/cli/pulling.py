"""A pull with its progress: a bar a layer on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys

from atoll.client import Client, LayerProgress


async def pull_shown(
    client: Client, reference: str, *, quiet: bool = False, username: str = "", password: str = ""
) -> str:
    """Pull an image; its ID. The progress goes to standard error."""
    if quiet or not sys.stderr.isatty():
        return await client.pull(reference, username=username, password=password)
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
                done = layer.total_bytes if layer.phase == "done" else layer.current_bytes
                name = layer.digest.removeprefix("sha256:")[:12]
                progress.update(bar, description=f"{name} {layer.phase:<9}", total=total, completed=done)

        return await client.pull(reference, show, username=username, password=password)
