"""`make chaos`: every cell of the kill matrix, with a table at the end. As root; about three seconds a cell.

python -m tests.chaos.run                          all of it, with the default runtime handler
python -m tests.chaos.run --only 'run/*' --config 'default_runtime = "runc"'
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import secrets
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.arena import Arena, Outcome
from tests.chaos.cells import Blow, cells
from tests.chaos.points import unseen
from tests.integration.daemons import Roots
from tests.integration.leaks import MARKER, Footprint, fds_before, settled_leaks


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("chaos: needs root: it runs daemons and pods (sudo make chaos)", file=sys.stderr)
        return 1
    prefix = f"ch{secrets.token_hex(4)}"
    os.environ[MARKER] = prefix
    footprint = Footprint.of(prefix, fds_before())
    base, state = footprint.folders
    roots = Roots(prefix=prefix, base=base, state=state)
    roots.make()
    roots.write_config(options.config)
    try:
        outcomes, missed = _played(roots, options)
        print(_table(outcomes))
        for name in sorted(missed):
            print(f"no life reaches {name!r}: add what reaches it, or say in tests/chaos/points.py what does")
        bad = [one for one in outcomes if one.fault]
        if bad or missed:
            print(f"logs: {roots.log}", file=sys.stderr)
            options.keep = True
        return 1 if bad or missed else 0
    finally:
        roots.delete_bridge()
        leaks = settled_leaks(footprint, None)
        for leak in leaks:
            print(f"left behind: {leak}", file=sys.stderr)
        if not options.keep:
            footprint.remove()


def _played(roots: Roots, options: argparse.Namespace) -> tuple[list[Outcome], set[str]]:
    arena = Arena(roots)
    outcomes: list[Outcome] = []
    with arena.open() as notes:
        for cell in cells(notes):
            if not fnmatch.fnmatchcase(cell.point, options.only) or (options.blow and cell.blow not in options.blow):
                continue
            outcome = arena.play(cell)
            outcomes.append(outcome)
            told = "ok" if not outcome.fault else f"FAILED: {outcome.fault}"
            print(f"{outcome.seconds:6.2f} s  {cell}: {told}{'' if outcome.struck else ' (not reached)'}", flush=True)
    return outcomes, unseen(notes)


def _table(outcomes: Sequence[Outcome]) -> str:
    """A row a point, a column a blow: the cells that passed of those that were played."""
    rows: dict[str, dict[Blow, str]] = defaultdict(dict)
    for one in outcomes:
        rows[one.cell.point][one.cell.blow] = "ok" if not one.fault else "FAILED"
    blows = [blow for blow in Blow if any(blow in row for row in rows.values())]
    lines = [f"| point | {' | '.join(blows)} |", f"|---|{'---|' * len(blows)}"]
    lines += [f"| {point} | {' | '.join(row.get(blow, '') for blow in blows)} |" for point, row in rows.items()]
    passed = sum(not one.fault for one in outcomes)
    lines.append(f"\n{passed} of {len(outcomes)} cells passed, {sum(not one.struck for one in outcomes)} not reached.")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Strike at every fault point, in every way.")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="points whose names match (default all)")
    parser.add_argument("--blow", type=Blow, nargs="*", choices=list(Blow), help="these blows (default all)")
    parser.add_argument("--config", default="", metavar="TOML", help="put before the tables of the daemon's config")
    parser.add_argument("--keep", action="store_true", help="leave the folders and the daemon's log")
    return parser.parse_args()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
