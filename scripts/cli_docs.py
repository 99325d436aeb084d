#!/usr/bin/env python3
"""Write docs/cli.md from the grammar of the command line; `--check` says whether it is what the grammar gives."""

from __future__ import annotations

import pathlib
import re
import sys
from enum import Enum

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from atoll.cli.commands import GROUPS, app_of

TARGET = pathlib.Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# The command line

Every command with its arguments and options, written by `scripts/cli_docs.py` from the commands themselves;
`atoll COMMAND --help` says the same.

* A container is named by its name, its ID or a unique beginning of it, as `pod/container`, or by its pod where it is
  the only one in it; a pod by its name or ID; an image by its reference or ID.
* Where no daemon runs, a private one is started, which ends when idle. `--socket PATH` or the variable `ATOLL_SOCKET`
  names another.
* `--json` prints JSON for programs. Tables fit the terminal, and are never cut in a pipe; `NO_COLOR` turns colours off.
* `atoll --install-completion` makes bash, zsh and fish complete commands, options, and the names of what is there:
  pods, containers, images, snapshots, pools and processes.
* Errors are one line on standard error that begins with `atoll:`.

| exit code | when |
|---|---|
| 0 | done |
| of the command | `run`, `exec`, `attach`: what ran there ended with it; 128 + n for signal n |
| 1 | `fsck`, `doctor` or `conformance` found something; the answer to `prune` was no |
| 2 | the command line is wrong |
| 125 | Atoll failed |
| 126, 127 | the command cannot be executed, is not there |
| 130, 141 | Ctrl-C; nobody reads the output any more |

In a terminal (`-it`) Ctrl-P Ctrl-Q leaves `run`, `attach` and `exec` without ending what runs; `attach` comes back to a
container, `process attach` to an exec. `--detach-keys` names other keys. Whatever else ends an `exec` ends
what it runs.
"""


def main() -> None:
    """Write the page, or with --check only compare; then the status is 1 where it is stale."""
    text = page()
    if sys.argv[1:] != ["--check"]:
        TARGET.write_text(text)
    elif TARGET.read_text() != text:
        raise SystemExit("docs/cli.md is stale: run scripts/cli_docs.py")


def page() -> str:
    """The whole page."""
    grammar = typer.main.get_command(app_of())
    assert isinstance(grammar, TyperGroup)
    parts = [HEAD]
    title = ""
    for group in GROUPS:
        if group.title != title:
            title = group.title
            parts.append(f"## {title}\n")
        for word in group.words.split():
            found = grammar.commands[word]
            if isinstance(found, TyperGroup):
                parts += [_command(f"{word} {name}", one) for name, one in found.commands.items() if _is_shown(one)]
            elif isinstance(found, TyperCommand):
                parts.append(_command(word, found))
    return "\n".join(parts)


def _is_shown(command: object) -> bool:
    return isinstance(command, TyperCommand) and not command.hidden


def _command(words: str, command: object) -> str:
    assert isinstance(command, TyperCommand)
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    options = [one for one in command.params if isinstance(one, TyperOption) and not one.hidden and one.name != "help"]
    usage = " ".join(["atoll", words, *(["[OPTIONS]"] if options else []), *map(_usage, arguments)])
    rows = [(f"`{one.metavar or one.name}`", one.help or "") for one in arguments if one.help]
    rows += [(_names(one), _told(one)) for one in options]
    table = "".join(f"| {name} | {_cell(text)} |\n" for name, text in rows)
    return f"### {words}\n\n{command.help}\n\n    {usage}\n\n| | |\n|---|---|\n{table}"


def _usage(argument: TyperArgument) -> str:
    name = (argument.metavar or argument.name or "") + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: TyperOption) -> str:
    value = "" if option.is_flag else f" {option.metavar or _kind(option)}"
    return ", ".join(
        f"`{name}{value if name.startswith('--') else ''}`" for name in (*option.opts, *option.secondary_opts)
    )


def _kind(option: TyperOption) -> str:
    annotation = option.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "{" + ",".join(str(one.value) for one in annotation) + "}"
    return "NUMBER" if annotation in (int, float) else "TEXT"


def _told(option: TyperOption) -> str:
    default = option.default
    shown = (
        ""
        if option.is_flag or default in (None, "", ()) or callable(default)
        else str(getattr(default, "value", default))
    )
    known = f" [default: {shown}]" if shown and "[default" not in (option.help or "") else ""
    variable = f" [variable: {option.envvar}]" if option.envvar else ""
    return f"{option.help or ''}{known}{variable}"


def _cell(text: str) -> str:
    plain = re.sub(r"\\(\[)", r"\1", text).replace("|", "\\|").strip()
    return re.sub(r"\[((?:default|variable): [^\]]*)\]", r"(\1)", plain)


if __name__ == "__main__":
    main()
