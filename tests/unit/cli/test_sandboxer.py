"""`atoll sandboxer new`: what is written, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from atoll import errors
from atoll.cli.main import run
from atoll.cli.sandboxer import new

REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_project_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sandboxer", "new", "my-box2", "--in", str(tmp_path / "made")]) == 0
    project = tmp_path / "made" / "my-box2"
    assert {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()} == {
        ".gitignore",
        "README.md",
        "my-box2.service",
        "pyproject.toml",
        "src/my_box2/__init__.py",
        "src/my_box2/__main__.py",
        "src/my_box2/controller.py",
        "tests/test_contract.py",
    }
    assert "class MyBox2Controller" in (project / "src/my_box2/controller.py").read_text()
    settings = tomllib.loads((project / "pyproject.toml").read_text())
    assert settings["project"]["scripts"] == {"my-box2": "my_box2.__main__:main"}
    assert not [path for path in project.rglob("*") if path.is_file() and "$" in path.read_text()]
    assert settings["project"]["optional-dependencies"]["dev"]
    printed = capsys.readouterr().out
    assert str(project) in printed
    assert "python -m pip install -e '.[dev]'" in printed  # an extra: any pip knows it, Debian 12's too


def test_what_is_written_is_formatted_and_clean(tmp_path: Path) -> None:
    new("my-box", tmp_path)
    for check in (["check", "--isolated", "--select", "E,F,I,B,UP,RUF"], ["format", "--isolated", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--line-length", "120"],
            cwd=tmp_path / "my-box",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "mine").write_text("precious")
    assert run(["sandboxer", "new", "box", "--in", str(tmp_path)]) != 0
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "box").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Box",
        "1box",
        "-box",
        "box-",
        "a--b",
        "a_b",
        "a/b",
        "..",
        "a b",
        "é",
        "x" * 41,
        "class",
        "json",
        "atoll",
        "tests",
    ],
)
def test_bad_names_are_told_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="name"):
        new(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.AtollError, match="file"):
        new("box", tmp_path / "file")
