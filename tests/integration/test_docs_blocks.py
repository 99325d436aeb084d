"""Every fenced block of code in the documentation works.

python          runs as a program against a daemon; a fragment gets `client`, `pod` and `container`
console         its commands run one after the other in a shell, and each must end with status 0
toml json yaml ini    is parsed, where it takes another program (a kubelet, a containerd, a Prometheus) to use it
text            no code: output, drawings
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import Daemon
from tests.integration.daemons import BIN

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FETCHED = re.compile(
    r'<(?:script|img|iframe)[^>]+src="https?://[^"]*"|<link[^>]+rel="stylesheet"[^>]+href="https?://[^"]*"'
)
WITHIN_S = 100.0

FRAGMENT = """
import asyncio, atoll
async def main():
    async with atoll.connect() as session:
        client = session
        async with await session.run_pod(network="none") as pod:
            container = await pod.run("atoll/busybox", ["sleep", "100000"])
{body}
        for left in await session.pods():
            await session.pod_by_id(left.id).remove()
        for snapshot in await session.snapshots():
            await (await session.snapshot(snapshot.name)).remove()
        for image in await session.images():
            for name in image.tags:
                if name.startswith("localhost/"):
                    await session.remove_image(name)
asyncio.run(main())
"""
RUN_ELSEWHERE = {"sdk.md": "tests/integration/test_sdk_docs.py"}
"""Pages whose Python is run by another test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    page: str
    line: int
    kind: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*kinds: str) -> list[Block]:
    """Those of the pages in docs/; the README shows the files of examples/, which other tests run."""
    return [
        Block(
            page=path.relative_to(DOCS).as_posix(), line=text.count("\n", 0, one.start()) + 1, kind=one[1], code=one[2]
        )
        for path in sorted(DOCS.rglob("*.md"))
        for text in (path.read_text(),)
        for one in FENCE.finditer(text)
        if not kinds or one[1] in kinds
    ]


def each(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(*kinds), ids=str)


def program(code: str) -> str:
    """A block as a program; one without an import is a fragment of one."""
    tree = compile(code, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    assert isinstance(tree, ast.Module)
    is_whole = any(isinstance(one, ast.Import) for one in tree.body)
    return code if is_whole else FRAGMENT.format(body=textwrap.indent(code, " " * 12))


def run(daemon: Daemon, command: list[str], folder: Path) -> None:
    environment = {**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket), "NO_COLOR": "1"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    finished = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=WITHIN_S, env=environment, cwd=folder
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.shared_daemon
@each("python")
def test_python_runs(block: Block, daemon: Daemon, tmp_path: Path) -> None:
    if elsewhere := RUN_ELSEWHERE.get(block.page):
        assert (REPOSITORY / elsewhere).exists()
        program(block.code)
    else:
        run(daemon, [sys.executable, "-c", program(block.code)], tmp_path)


@pytest.mark.shared_daemon
@pytest.mark.parametrize("page", sorted({one.page for one in blocks("console")}))
def test_commands_of_a_page_run_in_order(page: str, daemon: Daemon, tmp_path: Path) -> None:
    lines = [line for one in blocks("console") if one.page == page for line in one.code.splitlines()]
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    run(daemon, ["sh", "-ec", "\n".join(commands)], tmp_path)


def ini(text: str) -> None:
    configparser.ConfigParser(strict=False, interpolation=None).read_string(text)


PARSERS: dict[str, Callable[[str], object]] = {
    "toml": tomllib.loads,
    "json": json.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
    "ini": ini,
}


@each(*PARSERS)
def test_what_another_program_reads_is_well_formed(block: Block) -> None:
    PARSERS[block.kind](block.code)


def test_every_block_says_what_it_is() -> None:
    assert [str(one) for one in blocks() if one.kind not in {"python", "console", "text", *PARSERS}] == []


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [str(BIN / "mkdocs"), "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
    assert built.returncode == 0, built.stderr
    for page, said in {
        "tutorial.html": "Five minutes",
        "reference/sdk.html": "run_pod",
        "reference/services.html": "atoll.leases.v1",
        "reference/commands.html": "atoll fsck",
        "how-it-works.html": "struck off",
    }.items():
        text = (tmp_path / "site" / page).read_text()
        assert said in text, page
        assert not FETCHED.findall(text), f"{page}: a site is read without the internet too"
