"""Errors are one line that names the thing and the way out; nothing is done then."""

from __future__ import annotations

import pytest
import typer.main
import typer.utils
from typer.core import TyperGroup
from typer.models import ArgumentInfo

from atoll import errors
from atoll.cli import main, outcome
from atoll.cli.commands import GROUPS, app_of
from atoll.cli.options import moment_ns
from atoll.client import CommandFailed


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused must be refused before a daemon is asked, and none can be started here."""
    monkeypatch.setenv("ATOLL_SOCKET", "/nonexistent/atoll.sock")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ["missing argument 'IMAGE'", "atoll run --help"]),
        (["nope"], ["no such command 'nope'", "atoll --help"]),
        (["run", "--nope", "x"], ["--nope"]),
        (["logs", "--tail", "x", "a"], ["'--tail'", "atoll logs --help"]),
        (["rm"], ["--all"]),
        (["rm", "-a", "x"], ["--all"]),
        (["exec", "x"], ["missing argument 'COMMAND'"]),
        (["exec", "x", "--"], ["atoll: missing argument 'COMMAND'"]),
        (["run", "--network", "foo", "x"], ["'--network': 'foo' is not one of"]),
        (["stop", "-t", "-1", "x"], ["must be greater than or equal to 0"]),
    ],
)
def test_wrong_command_line(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == outcome.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("atoll: ")
    assert [word for word in words if word not in said.err] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "-p", "99999:1", "x"], ["99999", "1 to 65535"]),
        (["run", "-m", "12q", "x"], ["12q", "64MiB"]),
        (["run", "x", ""], ["command", "first word is empty"]),
        (["run", "-w", "nope", "x"], ["working folder 'nope'", "absolute"]),
        (["run", "--hostname", "a b", "x"], ["hostname 'a b'", "must be"]),
        (["ps", "--socket", "/etc/passwd"], ["/etc/passwd: is no socket", "choose another path", "ATOLL_SOCKET"]),
        (["doctor", "--config", "/nope.toml"], ["/nope.toml", "no such config file"]),
        (["run", "--pids-limit", "0", "x"], ["pids 0", "must be 1 to"]),
        (["run", "-v", "/no/such/thing:/x", "x"], ["/no/such/thing", "make it first"]),
        (["run", "-v", "x", "x"], ["mount 'x'", "must be like"]),
        (["logs", "--since", "yesterday", "x"], ["yesterday", "10m"]),
        (["serve", "--config", "/nope.toml"], ["/nope.toml", "no such config file"]),
        (["serve", "--socket", "/" + "x" * 120], ["longer than 107"]),
        (["serve", "--root", "relx"], ["--root relx: must be an absolute path, as in --root /"]),
        (["doctor", "--state", "relx"], ["--state relx: must be an absolute path"]),
        (["doctor", "--socket", "/" + "x" * 120], ["longer than 107"]),
    ],
)
def test_bad_value(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == outcome.FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert [word for word in words if word not in said.err] == []


def test_socket_in_no_folder_is_told_and_no_daemon_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ps", "--socket", "/nonexistent/atoll.sock"]) == outcome.FAILED
    assert "/nonexistent" in capsys.readouterr().err


def test_every_command_has_help_and_takes_a_socket(capsys: pytest.CaptureFixture[str]) -> None:
    grammar = typer.main.get_command(app_of())
    assert isinstance(grammar, TyperGroup)
    for name, command in grammar.commands.items():
        if isinstance(command, TyperGroup):
            continue
        assert main.run([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert name in text
        assert "--socket" in text


WITHOUT_NAMES = {"command", "file", "path", "ports", "registry", "size", "address", "binary"}
"""Arguments that name nothing that is there."""
NEW = {("create", "name"), ("commit", "reference"), ("tag", "names"), ("push", "target"), ("new", "name")}
"""By command: names of what it makes."""


def test_every_name_is_completed() -> None:
    lacking: list[tuple[str, str]] = []
    asked = [app_of()]
    while asked:
        app = asked.pop()
        asked += [one.typer_instance for one in app.registered_groups if one.typer_instance is not None]
        for command in app.registered_commands:
            assert command.callback is not None
            for parameter in typer.utils.get_params_from_function(command.callback).values():
                is_name = isinstance(parameter.default, ArgumentInfo) and parameter.name not in WITHOUT_NAMES
                if is_name and parameter.default.autocompletion is None:
                    lacking.append((command.name or "", parameter.name))
    assert set(lacking) <= NEW


def test_a_command_is_found_by_the_row_of_its_module() -> None:
    for group in GROUPS:
        made = typer.main.get_command(app_of([group]))
        assert isinstance(made, TyperGroup)
        assert sorted(made.commands) == sorted(group.words.split()), group.module


def test_message_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    outcome.say("a\nb\x1b[31m\tc")
    assert capsys.readouterr().err == "atoll: a b [31m c\n"


def test_exit_codes_of_errors() -> None:
    assert outcome.code_of(errors.NotFound("x")) == 125
    assert outcome.code_of(CommandFailed("x", 127)) == 127


def test_since_is_a_duration_or_a_time() -> None:
    assert moment_ns("1970-01-01T00:00:01Z") == 1_000_000_000
    assert moment_ns("1970-01-01T01:00:00+01:00") == 0
    assert moment_ns("2h") < moment_ns("1h")
