"""Rules of this repository that no linter knows."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "atoll"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.endswith("_pb2.py")]

LONGEST_MODULE_LINES = 600
LONGEST_FUNCTION_LINES = 80
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}

PROCESS_WIDE = {"fork", "forkpty", "umask", "chdir", "fchdir", "chroot", "setns", "unshare"}
"""Functions of `os` that change the whole process: deadly in a daemon with threads."""
OWN_PROCESSES = ("shim/", "linux/", "image/", "files/")
"""Packages whose code runs in small processes of its own (or only wraps system calls)."""


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def modules(*, outside: tuple[str, ...] = ()) -> list[Path]:
    return [path for path in MODULES if not named(path).startswith(outside)]


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=named)


@each(MODULES)
def test_module_says_what_it_is(path: Path) -> None:
    assert path.stat().st_size == 0 or ast.get_docstring(tree(path)), f"{named(path)} has no docstring"


@each(MODULES)
def test_module_and_its_functions_are_short(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= LONGEST_MODULE_LINES, f"{named(path)} has {lines} lines"
    functions = (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= LONGEST_FUNCTION_LINES]
    assert not long, f"functions of {LONGEST_FUNCTION_LINES} lines and more: {long}"


def test_names_of_modules_say_something() -> None:
    assert not [named(path) for path in MODULES if {path.stem, path.parent.name} & VAGUE_NAMES]


@each(modules(outside=OWN_PROCESSES))
def test_nothing_changes_the_whole_daemon_process(path: Path) -> None:
    found = [
        f"line {call.lineno}: {ast.unparse(call.func)}"
        for call in calls(path)
        if (
            isinstance(call.func, ast.Attribute)
            and ast.unparse(call.func.value) == "os"
            and call.func.attr in PROCESS_WIDE
        )
        or any(keyword.arg == "preexec_fn" for keyword in call.keywords)
    ]
    assert not found


@each(modules(outside=("concurrency.py",)))
def test_no_task_is_made_on_a_bare_loop(path: Path) -> None:
    found = [
        f"line {call.lineno}"
        for call in calls(path)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == "create_task"
        and "loop" in ast.unparse(call.func.value)
    ]
    assert not found, "use atoll.concurrency.TaskOwner or asyncio.TaskGroup"


@each(MODULES)
def test_an_ignore_names_its_rule(path: Path) -> None:
    bare = re.compile(r"#\s*(pyright|type):\s*ignore(?!\[)|#\s*noqa(?!:)|#\s*pyright:\s*(basic|standard)")
    assert not [number for number, line in enumerate(path.read_text().splitlines(), 1) if bare.search(line)]


@each(MODULES)
def test_what_others_wrote_is_refused_whatever_the_decoder_raises(path: Path) -> None:
    narrow = re.compile(r"except .*msgspec\.(DecodeError|MsgspecError)")
    found = [number for number, line in enumerate(path.read_text().splitlines(), 1) if narrow.search(line)]
    assert not found or named(path) == "unreadable.py", "catch `UNREADABLE`: JSON raises more than the decoder's errors"


def test_generated_code_is_fresh() -> None:
    script = str(REPOSITORY / "scripts" / "proto.py")
    finished = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_pins_every_dependency_by_hash(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert "://" not in text, "a lock file names no index"
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    pinned = {re.split(r"[=\s;\[]", block)[0] for block in blocks if "==" in block and "--hash=sha256:" in block}
    assert len(pinned) == len(blocks)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    if name == "requirements-dev.lock":
        wanted += project["dependency-groups"]["dev"]
    assert {re.split(r"[>=\[]", requirement)[0] for requirement in wanted} <= pinned


def documents() -> list[Path]:
    return sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_make_targets_in_documents_exist(path: Path) -> None:
    command = re.compile(r"^(?:    |\$ )(?:sudo )?make ([a-z-]+)|`(?:sudo )?make ([a-z-]+)`", re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {first or second for first, second in command.findall(path.read_text())} <= targets


def test_ci_runs_the_documented_test_command() -> None:
    assert re.search(r"^exec make test\b", (REPOSITORY / ".ci" / "run").read_text(), re.MULTILINE)


def test_users_get_our_types() -> None:
    assert (REPOSITORY / "src" / "atoll" / "py.typed").is_file()  # PEP 561
