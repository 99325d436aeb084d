"""Programs whose owner is gone are found; others are nobody's business."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from atoll.linux.leftover import VARIABLE, is_lost, lost, marked_by
from atoll.linux.process import identify


@contextmanager
def started(environment: dict[str, str]) -> Iterator[int]:
    """A program that waits for the end of its input."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as program:
        yield program.pid


def test_only_a_program_whose_owner_is_gone_is_lost(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with started(dict(os.environ)) as ended:
        owner = identify(ended)
    assert owner is not None
    gone = f"{ended}:{owner.start_ticks}"
    recycled = f"{os.getpid()}:1"
    with ExitStack() as stack:
        found = {
            name: stack.enter_context(started({"PATH": os.environ["PATH"], **more}))
            for name, more in {
                "lost": {VARIABLE: f"{ours}/deep/:{gone}"},
                "recycled": {VARIABLE: f"{ours}/:{recycled}"},
                "owned": marked_by(ours),
                "another's": {VARIABLE: f"{theirs}/:{gone}"},
                "beside": {VARIABLE: f"{ours}-too/:{gone}"},
                "nonsense": {VARIABLE: f"{ours}/:x:y"},
                "plain": {},
            }.items()
        }
        assert {who.pid for who in lost([ours])} == {found["lost"], found["recycled"]}
        for name, pid in found.items():
            who = identify(pid)
            assert who is not None
            assert is_lost(who, [ours]) == (name in ("lost", "recycled")), name
    assert lost([ours]) == []
