"""What the documents say is so: links, files, commands, options, configuration, SQL, examples."""

from __future__ import annotations

import re
import sqlite3
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import typer.main
from typer.core import TyperCommand, TyperGroup

from atoll import config
from atoll.cli.commands import app_of
from atoll.daemon.compose import SCHEMAS
from atoll.database import Database
from atoll.ledger.fsck import Problem

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "atoll"
DOCS = REPOSITORY / "docs"
EXAMPLES = REPOSITORY / "examples"
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")])

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
SPAN = re.compile(r"`([^`\n]+)`")
INDENTED = re.compile(r"^    (?:\$ )?(?:sudo )?(.*)$", re.MULTILINE)
SECTIONS = {
    "the daemon": config.Config,
    "[runtimes.name]": config.RuntimeHandler,
    "[sandboxes]": config.SandboxSection,
    "[streaming]": config.StreamingSection,
    "[metrics]": config.MetricsSection,
    "[telemetry]": config.TelemetrySection,
    "[cdi]": config.CdiSection,
    "[nri]": config.NriSection,
    "[network]": config.NetworkSection,
    "[images]": config.ImageSection,
    '[images.registries."host:port"]': config.Registry,
}
TABLES = {"runtimes", "sandboxes", "streaming", "metrics", "telemetry", "cdi", "nri", "network", "images", "registries"}
"""Keys that are tables of their own in the file."""

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())


def prose(path: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def code(path: Path) -> list[str]:
    """What is set as code: the spans between backticks and the lines of indented blocks."""
    text = prose(path)
    return [*SPAN.findall(text), *INDENTED.findall(text)]


def commands() -> dict[str, TyperCommand]:
    """Every command by its words, such as `run` and `sandboxer new`."""
    group = typer.main.get_command(app_of())
    assert isinstance(group, TyperGroup)
    found: dict[str, TyperCommand] = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= {f"{name} {sub}": one for sub, one in command.commands.items() if isinstance(one, TyperCommand)}
        elif isinstance(command, TyperCommand):
            found[name] = command
    return found


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    targets = [target for target in LINK.findall(path.read_text()) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@each_document
def test_modules_named_exist(path: Path) -> None:
    files = {found for one in code(path) for found in re.findall(r"[\w.]+(?:/[\w.]+)+\.py\b|^\w+\.py$", one)}
    roots = (REPOSITORY, PACKAGE, path.parent)
    assert {file for file in files if not any((root / file).exists() for root in roots)} == set()


@each_document
def test_commands_and_options_exist(path: Path) -> None:
    known = commands()
    for one in code(path):
        for line in re.findall(r"(?:^|\| |&& )atoll ((?:[a-z]|--)[^|#]*)", one):
            words = line.split()
            if words[0].startswith("-"):
                continue
            name = words[0] if words[0] in known else " ".join(words[:2])
            if len(words) == 1 and any(one.startswith(f"{name} ") for one in known):
                continue  # a group of commands, by its name
            assert name in known, f"atoll {line}"
            options = {option for parameter in known[name].params for option in parameter.opts} | {"--help"}
            own = words[1:] if words[0] not in ("exec", "run") else up_to_command(words[1:])
            assert {word for word in own if word.startswith("--")} <= options, f"atoll {line}"


def up_to_command(words: list[str]) -> list[str]:
    """The options of `run` and `exec`, which end at the image or the container."""
    ends = next((at for at, word in enumerate(words) if not word.startswith("-")), len(words))
    return words[:ends]


def test_readme_has_every_command() -> None:
    spans = " ".join(SPAN.findall((REPOSITORY / "README.md").read_text()))
    assert {name for name in commands() if f"atoll {name}" not in spans} == set()


@each_document
def test_no_document_names_a_machine(path: Path) -> None:
    assert not re.search(r"/work/|/home/|/root/", path.read_text())


# --- examples ---


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_readme_shows_the_examples_as_they_are() -> None:
    shown = {file.name for file in EXAMPLES.glob("*.py") if file.read_text() in blocks()}
    assert len(blocks()) == len(shown)
    assert {"hello.py", "sandboxer.py"} <= shown


# --- configuration ---


def told() -> Iterator[tuple[str, str, object]]:
    """Section, key and default of each row of docs/config.md."""
    section = ""
    for line in (DOCS / "config.md").read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].strip("`").lower()
        elif row := re.match(r"\| `(\w+)` \| `([^`]*)` \|", line):
            yield section, row[1], tomllib.loads(f"x = {row[2]}")["x"]


def test_every_key_of_the_configuration_is_described_with_its_default() -> None:
    found: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for section, key, default in told():
        found[section][key] = default
    for section, kind in SECTIONS.items():
        defaults = msgspec.json.decode(msgspec.json.encode(kind()))  # tuples as lists, as TOML has them
        assert found[section] == {key: value for key, value in defaults.items() if key not in TABLES}, section


def test_the_example_of_the_configuration_has_every_key_with_its_default() -> None:
    path = REPOSITORY / "packaging" / "config.toml"
    assert config.load(path) == config.Config()
    commented = re.sub(r"^# (?=\[images|\w+ = )", "", path.read_text(), flags=re.MULTILINE)
    tables = tomllib.loads(commented)
    assert set(tables) == set(config.Config.__struct_fields__)
    assert set(tables["runtimes"]["atoll"]) == set(config.RuntimeHandler.__struct_fields__)
    assert set(tables["streaming"]) == set(config.StreamingSection.__struct_fields__)
    assert set(tables["metrics"]) == set(config.MetricsSection.__struct_fields__)
    assert set(tables["telemetry"]) == set(config.TelemetrySection.__struct_fields__)
    assert set(tables["cdi"]) == set(config.CdiSection.__struct_fields__)
    assert set(tables["nri"]) == set(config.NriSection.__struct_fields__)
    assert set(tables["network"]) == set(config.NetworkSection.__struct_fields__)
    assert set(tables["images"]) == set(config.ImageSection.__struct_fields__)
    (registry,) = tables["images"]["registries"].values()
    assert msgspec.convert(registry, config.Registry) == config.Registry()
    assert set(registry) == set(config.Registry.__struct_fields__)


# --- architecture, decisions, debugging ---


def test_the_map_has_every_package() -> None:
    text = (DOCS / "architecture.md").read_text()
    drawing = text[text.index("## The map") : text.index("Imports point one way")]
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b(\w+)/(?=\s)", drawing)) - {"atoll"} == packages
    assert set(re.findall(r"\b\w+\.py\b", drawing)) - {"controller.py"} == modules


def test_every_decision_is_listed_and_whole() -> None:
    listed = set(LINK.findall((DOCS / "README.md").read_text()))
    for path in sorted((DOCS / "decisions").glob("*.md")):
        assert f"decisions/{path.name}" in listed
        title = path.read_text().splitlines()[0]
        assert title.startswith(f"# {path.name[:4]}: ")
        headings = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Cost", "What would change our mind"], path.name


async def test_sql_and_columns_are_those_of_the_database(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "state.db", SCHEMAS)
    await database.close()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        statements = re.findall(r"'(SELECT [^']*)'", (DOCS / "debugging.md").read_text())
        assert len(statements) >= 2
        for statement in statements:
            connection.execute(statement)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(ledger)")]
    connection.close()
    drawn = re.search(r"^    ledger: (.*)$", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert drawn is not None
    assert drawn[1].split(", ") == columns


def test_every_problem_of_fsck_is_explained() -> None:
    explained = re.findall(r"^\| (\w+) \|", (DOCS / "debugging.md").read_text(), re.MULTILINE)
    assert set(Problem) <= set(explained)
