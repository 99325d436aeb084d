"""`make chaos`: every cell of the kill matrix, with a table at the end. As root.

python -m tests.chaos.run                          all of it
python -m tests.chaos.run --cell 'hosted: *'       the cells whose names match, such as one that failed
python -m tests.chaos.run --list                   the names of all cells
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import queue
import random
import secrets
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from pathlib import Path

from tests.chaos.arena import Outcome, alone, arena_in
from tests.chaos.cells import Blow, Cell, Notes, cells, sample
from tests.chaos.kinds import LIVES, possible
from tests.chaos.outside import Outside, outside
from tests.chaos.points import sites, unseen

Told = str | list[Notes] | Outcome | None
"""What a worker says: an error of its own, the points it saw, how a cell ended, that it has ended."""
ENDED_WITHIN_S = 60.0
SPAWN = multiprocessing.get_context("spawn")


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("chaos: needs root: it runs daemons and pods (sudo make chaos)", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _end)
    begun = time.monotonic()
    folder = Path("/var/tmp", f"chaos-outside-{secrets.token_hex(4)}")
    folder.mkdir(mode=0o700)
    try:
        with outside(folder) as out:
            outcomes, missed, faults = _play(out, options)
    finally:
        shutil.rmtree(folder)
    print(table(outcomes, time.monotonic() - begun))
    for name in missed:
        print(f"no life reaches {name!r}: add to the lives what reaches it")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if missed or faults or any(one.fault for one in outcomes) else 0


def _play(out: Outside, options: argparse.Namespace) -> tuple[list[Outcome], list[str], list[str]]:
    asked: Queue[Cell | None] = SPAWN.Queue()
    told: Queue[Told] = SPAWN.Queue()
    workers = [_begun(asked, told, out, options, looks=number == 0) for number in range(options.jobs)]
    try:
        return _heard(asked, told, workers, options)
    finally:
        asked.cancel_join_thread()  # what nobody has taken is not waited for
        for worker in workers:
            worker.terminate()  # one that has not ended has been given up, and clears its arena away
        for worker in workers:
            worker.join(ENDED_WITHIN_S)
            worker.kill()


def _heard(
    asked: Queue[Cell | None], told: Queue[Told], workers: Sequence[SpawnProcess], options: argparse.Namespace
) -> tuple[list[Outcome], list[str], list[str]]:
    outcomes: list[Outcome] = []
    faults: list[str] = []
    missed: list[str] = []
    waits = len(workers)
    while waits:
        try:
            one = told.get(timeout=1.0)
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers):
                faults.append("a worker ended without a word")
                break
            continue
        match one:
            case None:
                waits -= 1
            case str():
                faults.append(one)
            case list():
                missed = [] if options.life else unseen([line for notes in one for line in notes.lines])
                _ask(asked, cells(one), options)
            case Outcome():
                outcomes.append(one)
                _tell(one, len(outcomes))
    return outcomes, missed, faults


def _begun(
    asked: Queue[Cell | None], told: Queue[Told], out: Outside, options: argparse.Namespace, *, looks: bool
) -> SpawnProcess:
    """The one that `looks` says which points there are."""
    worker = SPAWN.Process(target=work, args=(asked, told, out, options, looks))
    worker.start()
    return worker


ALWAYS = (
    Cell("pod", "release/sandbox", Blow.ERROR),
    Cell("pod", "run/network", Blow.UNDO),
    Cell("pod", "start/create task", Blow.DAEMON),
    Cell("images", "image/undo", Blow.ERROR, "image/record"),
    Cell("images", "remove image/record:done", Blow.DAEMON),
    Cell("hosted", "hosted start/commit", Blow.DAEMON),
    Cell("restart", "free/unfinished", Blow.DAEMON),
    Cell("restart", "recover/pod", Blow.ERROR),
)
"""Of every sample: those that found something once, or that cross most of the code."""


def _ask(asked: Queue[Cell | None], matrix: Sequence[Cell], options: argparse.Namespace) -> None:
    wanted = [
        cell
        for cell in matrix
        if any(fnmatch.fnmatchcase(str(cell), f"*{pattern}*") for pattern in options.cell)
        and (not options.blow or cell.blow in options.blow)
    ]
    if options.sample:
        wanted = list(dict.fromkeys((*(cell for cell in ALWAYS if cell in wanted), *sample(wanted, options.sample))))
    print(f"{len(wanted)} of {len(matrix)} cells", flush=True)
    if not options.list:
        random.Random(len(wanted)).shuffle(wanted)  # what is wrong in one kind of life is seen soon
    for cell in wanted:
        if options.list:
            print(cell)
        else:
            asked.put(cell)
    for _ in range(options.jobs):
        asked.put(None)


def _end(number: int, frame: object) -> None:
    """Take the arenas away on the way out."""
    sys.exit(128 + number)


def _tell(one: Outcome, number: int) -> None:
    told = "ok" if not one.fault else f"FAILED: {one.fault}"
    print(f"{number:5} {one.seconds:6.2f} s  {one.cell}: {told}{'' if one.struck else ' (not reached)'}", flush=True)


def work(asked: Queue[Cell | None], told: Queue[Told], out: Outside, options: argparse.Namespace, looks: bool) -> None:
    """One arena, in a process of its own: says what points there are, where it `looks`, then plays what it is given."""
    signal.signal(signal.SIGTERM, _end)
    alone()
    try:
        with (
            arena_in(out, told.put, config=options.config, keep=options.keep) as arena,
            arena.open(options.life, looks=looks) as notes,
        ):
            if looks:
                told.put(notes)
            while (cell := asked.get()) is not None:
                told.put(arena.play(cell))
    except BaseException:
        told.put(f"a worker failed:\n{traceback.format_exc()}")
        raise
    finally:
        told.put(None)


def table(outcomes: Sequence[Outcome], seconds: float) -> str:
    """A row a kind of life, a column a blow: the cells that passed of those that were played; then the sums."""
    blows = [blow for blow in Blow if any(one.cell.blow is blow for one in outcomes)]
    lines = [f"| life | points | {' | '.join(blows)} | all |", f"|---|---|{'---|' * len(blows)}---|"]
    by_life = {life: [one for one in outcomes if one.cell.life == life] for life in LIVES}
    lines += [_row(life, found, blows) for life, found in by_life.items() if found]
    lines.append(_row("all", outcomes, blows))
    passed = sum(not one.fault for one in outcomes)
    unstruck = sum(not one.struck for one in outcomes)
    lines += [f"| {one.cell} | FAILED: {one.fault} |" for one in outcomes if one.fault]
    left_out = sorted(set(LIVES) - set(possible()))
    lines.append(
        f"\n{passed} of {len(outcomes)} cells passed, {unstruck} not reached, in {seconds / 60:.1f} min; "
        f"{len(sites())} places in the code name a point."
        + (f" Not on this machine: {', '.join(left_out)}." if left_out else "")
    )
    return "\n".join(lines)


def _row(name: str, outcomes: Sequence[Outcome], blows: Sequence[Blow]) -> str:
    played = Counter(one.cell.blow for one in outcomes)
    passed = Counter(one.cell.blow for one in outcomes if not one.fault)
    points = {(one.cell.point, one.cell.cause) for one in outcomes}
    numbers = [f"{passed[blow]}/{played[blow]}" if played[blow] else "" for blow in blows]
    return f"| {name} | {len(points)} | {' | '.join(numbers)} | {passed.total()}/{played.total()} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Strike at every fault point, in every way.")
    parser.add_argument("--cell", nargs="*", default=["*"], metavar="PATTERN", help="cells whose names match")
    parser.add_argument("--life", nargs="*", default=[], choices=list(LIVES), help="these kinds of lives (default all)")
    parser.add_argument("--blow", type=Blow, nargs="*", choices=list(Blow), help="these blows (default all)")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="N of the cells, spread over all of them")
    parser.add_argument("--jobs", type=int, default=3, help="daemons side by side (default %(default)s)")
    parser.add_argument("--config", default="", metavar="TOML", help="put before the tables of the daemon's config")
    parser.add_argument("--list", action="store_true", help="name the cells, and play none")
    parser.add_argument("--keep", action="store_true", help="leave the folders and the daemons' logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
