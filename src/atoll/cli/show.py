"""Tables for people and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from atoll.client.model import ContainerState, ContainerStatus, Phase, PodState, PodStatus
from atoll.client.request import PORTS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ID_LENGTH = 13
LEAST_WIDTH, LEAST_COLUMNS = 8, 2
PAUSED = "Paused"
"""The reason by which a container that runs is told to be paused."""
PIPE_WIDTH = 4096
"""Columns of a table that is not shown on a terminal: nothing is cut."""


def short(identifier: str) -> str:
    """An ID as tables show it; `sha256:` of an image is left out."""
    return identifier.removeprefix("sha256:")[:ID_LENGTH]


def console() -> Console:
    """For standard output: as wide as the terminal, in a pipe so wide that nothing is cut."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPE_WIDTH)


def made_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """Rows under a heading, as wide as standard output.

    Where there is no room cells are shortened, to no less than `LEAST_WIDTH`; then columns on the right are left out.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    rows = [tuple(row) for row in rows]
    least = [
        min(LEAST_WIDTH, max(map(cell_len, (name, *(row[at] for row in rows))))) for at, name in enumerate(columns)
    ]
    width, shown = console().width, len(columns)
    while shown > LEAST_COLUMNS and sum(least[:shown]) + 2 * (shown - 1) > width:
        shown -= 1
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for at, name in enumerate(columns[:shown]):
        side = "right" if name in right else "left"
        made.add_column(name, justify=side, no_wrap=True, overflow="ellipsis", min_width=least[at])
    for row in rows:
        made.add_row(*(Text(cell) for cell in row[:shown]))
    return made


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows under a heading; cells are shortened to a terminal's width, and never in a pipe."""
    made, out = made_table(columns, rows, right=right), console()
    if sys.stdout.isatty():
        out.print(made)
        return
    with out.capture() as captured:
        out.print(made)
    for line in captured.get().splitlines():
        print(line.rstrip())


def prose(text: str, indent: str = "") -> None:
    """Print a sentence, on a terminal in lines of its width that begin with `indent`; in a pipe it is one line."""
    if sys.stdout.isatty():
        print(textwrap.fill(text, console().width, initial_indent=indent, subsequent_indent=indent))
    else:
        print(indent + text)


def dump(value: object) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(plain(value), indent=2))


def plain(value: object) -> object:
    """A value as JSON has it: dataclasses as objects, times as RFC 3339."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # a mapping of anything
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # a list of anything
    return value


def info(texts: Mapping[str, str]) -> dict[str, object]:
    """The runtime's verbose texts, each of which is JSON or just a text."""
    found: dict[str, object] = {}
    for key, text in texts.items():
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in its largest unit; empty for what has not happened."""
    if moment is None:
        return ""
    seconds = max(0, int(((now or datetime.now(UTC)) - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def size(count: int) -> str:
    """Bytes in the unit that suits them, powers of 1024."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def seconds(duration_s: float | None) -> str:
    if duration_s is None:
        return "running"
    return f"{duration_s * 1000:.1f} ms" if duration_s < 10 else f"{duration_s:.1f} s"


def condition(container: ContainerStatus) -> str:
    """A container's state in words: `up 5m`, `exited (137, OOMKilled) 3s ago`."""
    match container.state:
        case ContainerState.RUNNING:
            paused = " (paused)" if container.reason == PAUSED else ""
            return f"up {age(container.started_at)}".rstrip() + paused
        case ContainerState.EXITED:
            why = f", {container.reason}" if container.reason not in ("", "Completed", "Error") else ""
            return f"exited ({container.exit_code}{why}) {age(container.finished_at)} ago"
        case ContainerState.CREATED:
            return "created"
        case ContainerState.UNKNOWN:
            return f"unknown: {container.reason or 'nobody can tell'}"


def ps_rows(pods: Iterable[tuple[PodStatus, tuple[ContainerStatus, ...]]], *, every: bool) -> list[list[str]]:
    """A row a container, and one for a pod that has none; what is over only where `every` is true."""
    rows: list[list[str]] = []
    for pod, containers in pods:
        ports = pod.annotations.get(PORTS, "")
        shown = [one for one in containers if every or one.state in (ContainerState.RUNNING, ContainerState.CREATED)]
        rows += [[short(one.id), one.name, one.image, condition(one), pod.name, pod.ip, ports] for one in shown]
        if not shown and (every or pod.state is PodState.READY):
            rows.append([short(pod.id), "-", "-", f"pod {pod.state.value}", pod.name, pod.ip, ports])
    return rows


def phases(found: Iterable[Phase]) -> None:
    """The table of `atoll phases` and `--timings`."""
    rows = [
        (one.operation, short(one.subject), one.name, seconds(one.duration_s), one.waits_on, one.error) for one in found
    ]
    table(("OPERATION", "OF", "PHASE", "TOOK", "WAITS ON", "ERROR"), rows, right=("TOOK",))
