"""What the documentation's site is made of beside docs/: a hook of mkdocs, see mkdocs.yml.

    reference/sdk.md, reference/sandbox.md    names that a package exports, for mkdocstrings
    reference/services.md                     Atoll's own gRPC services, from their .proto files and what these say
    reference/commands.md                     every command with its options, from the command line itself

Links from docs/ to files of the repository that are no pages become the names of those files.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer.main
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from atoll.cli.commands import app_of

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "src"
API = SOURCE / "atoll" / "api"
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that no section names into a last one."""
    docs = Path(config.docs_dir)
    nav: list[object] = list(config.nav or [])
    named = set(re.findall(r"[\w./-]+\.md", repr(nav)))
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    decisions: list[object] = [page for page in pages if page.startswith("decisions/")]
    others: list[object] = [page for page in pages if page not in named and page not in decisions]
    config.nav = [*nav, *([{"More": others}] if others else []), {"Decisions": decisions}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference."""
    pages = {
        "sdk": _exported("The SDK", "client"),
        "sandbox": _exported("The sandbox package", "sandbox"),
        "services": _services(),
        "commands": _commands(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name what lies outside of docs/ instead of linking to it."""
    if page.file.generated_by is not None:
        return markdown
    folder = Path(page.file.src_uri).parent

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        place = (Path(config.docs_dir) / folder / target).resolve()
        if "://" in target or place.is_relative_to(config.docs_dir):
            if place.is_dir():
                return text
            return found[0]
        return text if text.startswith("`") else f"{text} (`{place.relative_to(REPOSITORY)}`)"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


# --- packages ---


def _exported(title: str, package: str) -> str:
    """A directive for each name that `atoll.<package>` exports, where it is defined."""
    module = SOURCE / "atoll" / package / "__init__.py"
    tree = ast.parse(module.read_text())
    docstring = ast.get_docstring(tree) or ""
    first, _, rest = docstring.partition("\n\n")
    found = {
        (alias.asname or alias.name): f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"atoll.{package}.")
        for alias in node.names
    }
    public = [f"::: {path}" for name, path in sorted(found.items()) if not name.startswith("_")]
    return "\n\n".join((f"# {title}", first, f"```text\n{rest}\n```", *public, ""))


# --- services ---


def _services() -> str:
    """Every service of Atoll's own with its messages."""
    lines = ["# Services", "gRPC services on the daemon's socket that are Atoll's own, each with its messages.", ""]
    for file in _descriptors().file:
        if file.package.startswith("atoll.") and file.service:
            lines += _file(file)
    return "\n".join(lines)


def _descriptors() -> FileDescriptorSet:
    sources = sorted(path.relative_to(SOURCE).as_posix() for path in API.glob("atoll_*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "set"
        options = ["--include_imports", "--include_source_info", f"--descriptor_set_out={output}", f"-I{SOURCE}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *sources], check=True)
        return FileDescriptorSet.FromString(output.read_bytes())


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(one.path): (one.leading_comments or one.trailing_comments).strip()
        for one in file.source_code_info.location
    }
    for number, service in enumerate(file.service):
        yield f"\n## {file.package}.{service.name}\n"
        yield comments.get((6, number), "") + "\n"
        yield "| method | takes | gives | |\n|---|---|---|---|"
        for index, method in enumerate(service.method):
            takes = ("stream " if method.client_streaming else "") + _short(method.input_type)
            gives = ("stream " if method.server_streaming else "") + _short(method.output_type)
            yield f"| `{method.name}` | {takes} | {gives} | {_cell(comments.get((6, number, 2, index), ''))} |"
    for number, message in enumerate(file.message_type):
        yield from _message(message, message.name, (4, number), comments)
    for number, enum in enumerate(file.enum_type):
        yield from _enum(enum, enum.name, (5, number), comments)


def _message(
    message: DescriptorProto, name: str, path: tuple[int, ...], comments: dict[tuple[int, ...], str]
) -> Iterator[str]:
    yield f"\n### {name}\n"
    yield comments.get(path, "") + "\n"
    if message.field:
        yield "| field | type | |\n|---|---|---|"
    for number, field in enumerate(message.field):
        yield f"| `{field.name}` | {_type(field)} | {_cell(comments.get((*path, 2, number), ''))} |"
    for number, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from _message(inner, f"{name}.{inner.name}", (*path, 3, number), comments)
    for number, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.{enum.name}", (*path, 4, number), comments)


def _enum(
    enum: EnumDescriptorProto, name: str, path: tuple[int, ...], comments: dict[tuple[int, ...], str]
) -> Iterator[str]:
    yield f"\n### {name}\n\n{comments.get(path, '')}\n\n| value | number | |\n|---|---|---|"
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {_cell(comments.get((*path, 2, number), ''))} |"


def _type(field: FieldDescriptorProto) -> str:
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    named = _short(field.type_name) if field.type_name else kind
    return f"repeated {named}" if field.label == FieldDescriptorProto.LABEL_REPEATED else named


def _short(name: str) -> str:
    return name.removeprefix(".").rpartition(".")[2]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# --- commands ---


def _commands() -> str:
    group = typer.main.get_command(app_of())
    assert isinstance(group, TyperGroup)
    return "\n".join(("# Commands", "", *_group("atoll", group)))


def _group(name: str, group: TyperGroup) -> Iterator[str]:
    for word, command in sorted(group.commands.items()):
        if isinstance(command, TyperGroup):
            yield from _group(f"{name} {word}", command)
        elif isinstance(command, TyperCommand) and not command.hidden:
            yield from _command(f"{name} {word}", command)


def _command(name: str, command: TyperCommand) -> Iterator[str]:
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    usage = " ".join((name, *((one.metavar or one.name or "").upper() for one in arguments)))
    yield f"## {name}\n\n```text\n{usage}\n```\n\n{_prose(command.help or '')}\n"
    options = [one for one in command.params if isinstance(one, TyperOption) and not one.hidden]
    if options:
        yield "| option | |\n|---|---|"
    for option in options:
        words = ", ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))
        yield f"| {words} | {_cell(_prose(option.help or ''))} |"
    yield ""


def _prose(text: str) -> str:
    """Help without the marks of its terminal form."""
    return re.sub(r"\[/?(?:bold|dim|cyan|green|red|yellow|italic)[^\]]*\]", "", text).replace("\b", "").strip()
