"""Which program a runtime type stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll import errors
from atoll.runtime.binary import resolve


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one folder with two shims in it."""
    for name in ("containerd-shim-runc-v2", "containerd-shim-my_shim-v1-beta"):
        (tmp_path / name).touch(mode=0o755)
    (tmp_path / "containerd-shim-data-v1").touch(mode=0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("runtime", "program"),
    [
        ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
        ("runc.v2", "containerd-shim-runc-v2"),
        ("a.b.c.runc.v2", "containerd-shim-runc-v2"),
        ("io.example.my_shim.v1-beta", "containerd-shim-my_shim-v1-beta"),
    ],
)
def test_the_last_two_parts_name_the_program(programs: Path, runtime: str, program: str) -> None:
    assert resolve(runtime) == programs / program


def test_a_full_path_is_the_program(programs: Path) -> None:
    path = programs / "containerd-shim-runc-v2"
    assert resolve(str(path)) == path


def test_a_program_beside_the_daemon_is_found_last(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    beside = tmp_path_factory.mktemp("beside")
    for name in ("containerd-shim-atoll-v1", "containerd-shim-runc-v2"):
        (beside / name).touch(mode=0o755)
    assert resolve("io.containerd.atoll.v1", beside) == beside / "containerd-shim-atoll-v1"
    assert resolve("io.containerd.runc.v2", beside) == programs / "containerd-shim-runc-v2"


@pytest.mark.parametrize("runtime", ["io.containerd.kata.v2", "io.containerd.data.v1", "/no/such/shim", "/", "/a\0b"])
def test_what_is_not_there_is_not_found(programs: Path, runtime: str) -> None:
    with pytest.raises(errors.NotFound):
        resolve(runtime)


@pytest.mark.parametrize(
    "runtime", ["", "runc", ".", "..", ".v2", "runc.", "io..v2", "a/b.v2", "./runc.v2", "io.run c.v2", "io.runc.v2\n"]
)
def test_what_is_no_runtime_type_is_refused(programs: Path, runtime: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        resolve(runtime)
