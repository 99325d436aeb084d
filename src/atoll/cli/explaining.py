"""`atoll why`: what a pod does, and what it waits on now."""

from __future__ import annotations

import contextlib

from atoll import errors
from atoll.blocker import Blocker
from atoll.cli import show
from atoll.client import Client
from atoll.client.why import Step, Why


async def why(client: Client, name: str, *, as_json: bool) -> int:
    """Tell of a pod, or of the pod of a container; also of a pod that is being made, or is gone."""
    wanted = name
    with contextlib.suppress(errors.NotFound):
        wanted = (await client.pod(name)).id
    if wanted == name:
        with contextlib.suppress(errors.NotFound):
            wanted = (await client.container(name)).pod_id
    found = await client.why(wanted)
    if as_json:
        show.dump({**_plain(found), "waiting": show.plain(found.waiting)})
        return 0
    show.prose(f"pod {found.name or name} ({show.short(found.pod_id)}): {found.state}{_because(found.reason)}")
    rows = [
        (one.operation, show.short(one.subject), one.name, _took(one), one.waits_on, one.error) for one in found.steps
    ]
    if rows:
        print()
        show.table(("OPERATION", "OF", "PHASE", "TOOK", "WAITS ON", "ERROR"), rows, right=("TOOK",))
    _tell(found)
    return 0


def _plain(found: Why) -> dict[str, object]:
    made = show.plain(found)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # a dict that `plain` made


def _because(reason: str) -> str:
    return f", {reason}" if reason else ""


def _took(step: Step) -> str:
    return f"{show.seconds(step.since_s)} so far" if step.duration_s is None else show.seconds(step.duration_s)


def _tell(found: Why) -> None:
    if not found.waiting:
        _paragraph("nothing is under way")
    for step in found.waiting:
        _paragraph(f"{step.operation} is in {step.name!r} for {show.seconds(step.since_s)}{_on(step.waits_on)}")
        for frame in reversed(step.frames[-4:]):
            show.prose(f"daemon: {frame}", "  ")
    for one in found.processes:
        _paragraph(f"{one.role} {one.pid}{_condition(one)}, for {show.seconds(one.age_s)}, child of {one.parent}")
        show.prose(one.command, "  ")
    for debt in found.debts:
        _paragraph(f"still to be freed, and tried again: {debt}")


def _paragraph(text: str) -> None:
    print()
    show.prose(text)


def _on(waits_on: str) -> str:
    return f"; it waits on {waits_on}" if waits_on else ""


def _condition(one: Blocker) -> str:
    return f" {one.state}{f' in {one.wait_channel}' if one.wait_channel else ''}"
