"""`make fuzz MINUTES=n`: every target in turn, guided by coverage, each in a process of its own.

    python -m tests.fuzz.run [--minutes N] [NAME...]     some targets, or all
    python -m tests.fuzz.run --replay FILE NAME          one input, to see what it does

What is found is a file in `build/fuzz/<target>/`, with the fault on the screen; the exit code is then 1. The corpus
is in a temporary folder and begins with the target's seeds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOUND = REPOSITORY / "build" / "fuzz"
DEFAULT_MINUTES = 10.0
LONGEST_INPUT_BYTES = 4096
INPUT_LIMIT_S = 10
"""One input that takes longer is a finding."""
MEMORY_LIMIT_MB = 2048
GRACE_S = 60


def fuzz(name: str, seconds: int) -> bool:
    """Run one target in a process of its own; whether nothing was found."""
    FOUND.joinpath(name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="atoll-fuzz-", dir="/var/tmp") as corpus:
        command = [
            sys.executable, "-m", "tests.fuzz.one", name, corpus, f"-max_total_time={seconds}",
            f"-artifact_prefix={FOUND / name}/", f"-max_len={LONGEST_INPUT_BYTES}", f"-timeout={INPUT_LIMIT_S}",
            f"-rss_limit_mb={MEMORY_LIMIT_MB}", "-print_final_stats=1", "-verbosity=0",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"}
        done = subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds + GRACE_S,
            check=False,
        )  # fmt: skip
    runs = next((line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line), "?")
    print(f"{name}: {runs} inputs in {seconds} s, {'nothing found' if done.returncode == 0 else 'FOUND'}", flush=True)
    if done.returncode != 0:
        print((done.stdout + done.stderr)[-4000:], flush=True)
    return done.returncode == 0


def main() -> int:
    """Fuzz, or replay."""
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - slow, and not for --help

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="for all targets together")
    parser.add_argument("--replay", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    names = [target.name for target in TARGETS]
    if unknown := set(options.names) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [target for target in TARGETS if not options.names or target.name in options.names]
    if options.replay is not None:
        for target in chosen:
            target.decode(options.replay.read_bytes())
        return 0
    seconds = max(1, round(options.minutes * 60 / len(chosen)))
    good = [fuzz(target.name, seconds) for target in chosen]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
