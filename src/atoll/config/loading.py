"""From the file to a `Config`."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path

import msgspec

from atoll import errors
from atoll.config import rules, text
from atoll.config.sections import Config

DEFAULT_PATH = Path("/etc/atoll/config.toml")


def load(path: Path | None) -> Config:
    """Read the file at `path`, or the default file where it is there, or the defaults.

    Raises `InvalidArgument` with the file, the line and what is known there, `NotFound` for a named file that is not
    there.
    """
    source = path if path is not None else DEFAULT_PATH
    try:
        if stat.S_ISFIFO(source.stat().st_mode):  # it would hold up the daemon that reads its file again
            raise errors.InvalidArgument(f"{source}: is a pipe, not a file")
        written = source.read_text()
    except FileNotFoundError:
        if path is None:
            return Config()
        raise errors.NotFound(f"{path}: no such config file") from None
    except OSError as error:
        raise errors.InvalidArgument(f"{source}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise errors.InvalidArgument(f"{source}: cannot be read: {error}") from error
    return parse(written, str(source))


def parse(written: str, source: str) -> Config:
    """The configuration that `written` is; raises `InvalidArgument` naming `source`, the line and the reason."""
    try:
        values = tomllib.loads(written)
    except tomllib.TOMLDecodeError as error:
        raise errors.InvalidArgument(f"{source}: {_not_toml(str(error), written)}") from error
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise errors.InvalidArgument(f"{source}: {text.explain(str(error), values, written)}") from error
    return check(config, source, written)


def _not_toml(said: str, written: str) -> str:
    """tomllib tells the place at the end, and of an end that comes too early no line."""
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", said)
    line = place[1] if place and place[1] else str(len(written.splitlines()) or 1)
    return f"line {line}: is not TOML: {said[: place.start()] if place else said}"


def file_of(path: Path | None) -> str:
    """The file that `load(path)` reads, absolute; empty where there is none."""
    if path is not None:
        return str(path.absolute())
    return str(DEFAULT_PATH) if DEFAULT_PATH.exists() else ""


def check(config: Config, source: str, written: str = "") -> Config:
    """The config itself where every rule holds; else `InvalidArgument` names `source` and the line in `written`."""
    try:
        rules.check(config)
    except rules.Mistake as mistake:
        line = text.line_of(mistake.place, written)
        raise errors.InvalidArgument(f"{source}: {f'line {line}: ' if line else ''}{mistake}") from None
    return config
