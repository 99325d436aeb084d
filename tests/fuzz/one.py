"""One target below libFuzzer: `python -m tests.fuzz.one NAME CORPUS [libFuzzer's options]`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # built for some machines only, and without types

with atheris.instrument_imports(include=["atoll"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fill the corpus with the seeds and hand over; libFuzzer ends the process."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    target = next(target for target in TARGETS if target.name == name)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[3:]], target.decode)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
