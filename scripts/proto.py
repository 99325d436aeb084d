#!/usr/bin/env python3
"""Generate the Python modules of src/atoll/api from its .proto files; `--check` says whether they are fresh."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import sysconfig
import tempfile

SOURCE = pathlib.Path(__file__).resolve().parent.parent / "src"


def generate(target: pathlib.Path) -> None:
    """Write the modules of every .proto file under `target`, laid out as in src."""
    protos = sorted(path.relative_to(SOURCE).as_posix() for path in (SOURCE / "atoll" / "api").glob("*.proto"))
    includes = [f"-I{SOURCE}", f"-I{sysconfig.get_path('purelib')}"]  # the second for google/rpc/status.proto
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, f"--python_out={target}", f"--pyi_out={target}"]
    subprocess.run([*command, *protos], check=True, cwd=SOURCE)


def stale() -> list[str]:
    """The generated files that differ from what the .proto files give now."""
    with tempfile.TemporaryDirectory(prefix="atoll-proto-") as folder:
        target = pathlib.Path(folder)
        generate(target)
        fresh = {path.relative_to(target): path.read_bytes() for path in target.rglob("*_pb2.py*")}
    committed = {path.relative_to(SOURCE): path.read_bytes() for path in SOURCE.glob("atoll/api/*_pb2.py*")}
    return sorted(str(name) for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def main() -> None:
    """Generate, or with --check only compare; then the status is 1 where a file is stale."""
    if sys.argv[1:] != ["--check"]:
        generate(SOURCE)
    elif names := stale():
        raise SystemExit(f"stale, run `make proto`: {', '.join(names)}")


if __name__ == "__main__":
    main()
