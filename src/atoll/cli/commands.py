"""Which commands there are, and where each is written: one row of `GROUPS` a module.

A module has an `app`, a `typer.Typer` with its commands, and is imported only where one of its words is asked for:
start-up time is felt. Its commands take their options from `atoll.cli.options` and import what they work with inside.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from atoll.cli import outcome
from atoll.cli.options import Socket


@dataclass(frozen=True, slots=True)
class Group:
    """The commands of one module, by their words, under one heading of the help."""

    title: str
    module: str
    words: str


GROUPS = (
    Group("Run", "atoll.cli.running", "run exec attach"),
    Group("Containers and pods", "atoll.cli.containers", "ps inspect logs phases why stop rm"),
    Group("Containers and pods", "atoll.cli.manifests", "pod"),
    Group(
        "Running containers",
        "atoll.cli.control",
        "kill restart pause resume update wait top stats events port-forward cp prune",
    ),
    Group("Running containers", "atoll.cli.processes", "process"),
    Group("Time to live", "atoll.cli.leases", "lease"),
    Group("Pools", "atoll.cli.pools", "pool"),
    Group("Branches of files", "atoll.cli.branches", "snapshot fork rollback diff commit"),
    Group("Images", "atoll.cli.images", "login logout pull push images save load tag rmi"),
    Group("The daemon and the host", "atoll.cli.daemon", "serve fsck reload doctor sandboxer version"),
    Group("Conformance", "atoll.cli.conformance", "conformance"),
)


def app_of(groups: Sequence[Group] = GROUPS) -> typer.Typer:
    """The grammar of these groups; of all by default."""
    made = typer.Typer(
        name="atoll",
        help="Pods and containers on this machine.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(shared)
    for group in groups:
        app: typer.Typer = importlib.import_module(group.module).app
        for command in app.registered_commands:
            command.rich_help_panel = group.title
        for sub in app.registered_groups:
            sub.rich_help_panel = group.title
        made.add_typer(app, rich_help_panel=group.title)
    return made


def shared(socket: Socket = None) -> None:
    """`--socket` may stand before the command too."""
    if socket is not None:
        os.environ["ATOLL_SOCKET"] = str(socket)


def groups_for(arguments: Sequence[str]) -> Sequence[Group]:
    """The group of the command that is asked for; all where none is, or another: help, a mistake, completion."""
    if "_ATOLL_COMPLETE" in os.environ:
        arguments = _completed_words()
    words = iter(arguments)
    for word in words:
        if word == "--socket":
            next(words, None)
        elif not word.startswith("--socket="):
            return [group for group in GROUPS if word in group.words.split()] or GROUPS
    return GROUPS


def _completed_words() -> list[str]:
    """The whole words of the line that a shell completes; none while the command's own name is not whole."""
    words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    return words[1:] if len(words) > 2 or os.environ.get("COMP_CWORD", "") not in ("", "1") else []


def run_app(arguments: list[str]) -> int:
    """Run one command line; its exit code. Raises `AtollError` and `outcome.Ended`."""
    command = typer.main.get_command(app_of(groups_for(arguments)))
    try:
        code = command.main(arguments, prog_name="atoll", standalone_mode=False)
    except typer.Abort:
        return outcome.INTERRUPTED
    except typer.TyperException as error:
        return usage(error)
    return code if isinstance(code, int) else 0


def usage(error: typer.TyperException) -> int:
    """Tell what is wrong with a command line, on one line with the way to its help."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "atoll"
    message = str(getattr(error, "format_message", lambda: error)())
    with contextlib.suppress(AttributeError):
        message = message[0].lower() + message[1:] if message else "nothing to do"
    message = (
        message.removeprefix("invalid value: ").replace(": Value error, ", ": ").replace(": Input should", ": must")
    )
    outcome.say(f"{message.rstrip('.')}; see `{path} --help`")
    return outcome.USAGE
