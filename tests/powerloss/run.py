"""Record the workloads, lose the power everywhere, start again: `python -m tests.powerloss.run [--most N] [NAME...]`.

Needs root and strace. Of each workload all disks that differ, or `N` of them, drawn the same way every time.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from atoll.daemon.compose import SCHEMAS
from atoll.database import Schema
from tests.powerloss.disk import Loss, Recording, State, expected, groups, losses
from tests.powerloss.startup import NEWER, look
from tests.powerloss.trace import record

WORKLOADS = ("records", "containers", "images", "upgrade")
AFTERWARDS = {"upgrade": NEWER}
"""What starts after a loss of power, where that is not this Atoll: the newer one, again."""
MEMORY = Path("/dev/shm")
"""Where the disks are made, where it is there: what is measured is not this machine's disk."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Of one workload: how many disks there are, how many that differ were started from, what was wrong."""

    workload: str
    changes: int
    moments: int
    disks: int
    tried: int = 0
    wrong: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        return (
            f"{self.workload}: {self.changes} changes, {self.moments} moments, {self.disks} disks, "
            f"{self.tried} that differ started from, {len(self.wrong)} wrong"
        )


@contextmanager
def scratch(where: Path | None = None) -> Iterator[Path]:
    """A folder of our own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="atoll-powerloss-", dir=where) as folder:
        yield Path(folder)


def recorded(workload: str) -> Recording:
    """What the workload does to its folder."""
    with scratch(Path("/var/tmp")) as folder:
        root = folder / "root"
        root.mkdir()
        argv = ["tests.powerloss.workload", workload, str(root), str(folder / "facts")]
        return record(argv, root, folder / "facts", folder / "log")


def lose_power(workload: str, most: int | None, seed: int = 0) -> Outcome:
    """Start from every disk that the workload may leave, or from `most` that differ."""
    recording = recorded(workload)
    found = list(losses(recording, seed))
    outcome = Outcome(
        workload=workload, changes=len(recording.changes), moments=len(set(recording.moments)), disks=len(found)
    )
    with scratch(MEMORY if MEMORY.is_dir() else None) as folder:
        for same in _different(recording, found, most, seed):
            outcome.tried += 1
            outcome.wrong += judge(recording, same, folder / "disk", AFTERWARDS.get(workload, SCHEMAS))
    return outcome


def _different(recording: Recording, found: list[Loss], most: int | None, seed: int) -> list[list[Loss]]:
    """The losses by the disk that they leave: those that leave the same are looked at together."""
    if most is not None:
        found = random.Random(seed).sample(found, len(found))
    different: dict[str, list[Loss]] = {}
    for loss in found:
        different.setdefault(State(recording.nodes, loss.changes).digest(), []).append(loss)
        if len(different) == most:
            break
    return list(different.values())


def judge(recording: Recording, same: list[Loss], folder: Path, schemas: tuple[Schema, ...]) -> list[str]:
    """Start from one disk, and compare what is there with what each of the losses that lead to it allows."""
    root = folder / "root"
    root.mkdir(parents=True)
    try:
        State(recording.nodes, same[0].changes).write(root)
        facts, problems = asyncio.run(look(root, schemas=schemas))
    except Exception as error:  # noqa: BLE001 - whatever stops a start is what is looked for
        problems, facts = [f"the start fails: {type(error).__name__}: {error}"], None
    finally:
        shutil.rmtree(folder)
    wrong = [f"{_where(same[0])}: {problem}" for problem in problems]
    for loss in same if facts is not None else ():
        wrong += [f"{_where(loss)}: {problem}" for problem in _missed(recording, loss, facts or {})]
    return wrong


def _missed(recording: Recording, loss: Loss, facts: Mapping[str, str]) -> Iterable[str]:
    allowed = expected(recording, loss.at)
    for key in sorted({*allowed, *facts}):
        may = allowed.get(key, (None,))
        if key != "instance" and facts.get(key) not in may:
            yield f"{key} is {facts.get(key)}, may be {' or '.join(map(str, may))}"
        elif key == "instance" and key in allowed and facts.get(key) not in may:
            yield f"the instance is {facts.get(key)!r}, was told to be {may}"
    for group in groups(recording, loss.at):
        there = {facts.get(key) == value for key, value in group.items()}
        if len(there) > 1:
            yield f"half of one transaction is there: {group} of { ({key: facts.get(key) for key in group}) }"


def _where(loss: Loss) -> str:
    return f"power lost at {loss.at}, {loss.how}"


def main() -> int:
    """Print what became of each workload; 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=None, help="disks of each workload to start from (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("workloads", nargs="*", default=WORKLOADS)
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # what a start finds lost, some hundred times
    bad = 0
    for workload in options.workloads:
        outcome = lose_power(workload, options.most, options.seed)
        print(outcome, flush=True)
        for line in outcome.wrong[:40]:
            print(f"  {line}")
        bad += len(outcome.wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
