"""Where in the file a key is, and what is wrong with a value, in the words of the file."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import get_args, get_origin, get_type_hints

import msgspec

from atoll.config.sections import Config, Section

ANY = "*"
"""Stands, in a place, for a name that is not known."""
Place = tuple[str, ...]

_WORD = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_WORD}(?:[ \t]*\.[ \t]*{_WORD})*"
_HEADER = re.compile(rf"[ \t]*\[\[?[ \t]*({_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]+)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_WRONG_TYPE = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<given>[^`]+)`")
_TYPES = {
    "array": 'a list, as in ["a", "b"]',
    "str": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a table",
}


def line_of(place: Place, written: str) -> int:
    """The line of the key or table at `place`, or of the nearest table around it; 0 where none is written."""
    best, length = 0, 0
    table: Place = ()
    for number, row in enumerate(written.splitlines(), 1):
        if header := _HEADER.match(row):
            table = path = _words(header[1])
        elif key := _KEY.match(row):
            path = (*table, *_words(key[1]))
        else:
            continue
        if len(path) > length and _fits(path, place):
            best, length = number, len(path)
    return best


def _fits(path: Place, place: Place) -> bool:
    return len(path) <= len(place) and all(wanted in (ANY, word) for word, wanted in zip(path, place, strict=False))


def _words(dotted: str) -> Place:
    words: list[str] = []
    here = _table(tomllib.loads(f"{dotted} = 0"))
    while here:
        name, value = next(iter(here.items()))
        words.append(name)
        here = _table(value)
    return tuple(words)


def _table(value: object) -> Mapping[str, object]:
    """The table that a value of the file is, or an empty one."""
    try:
        return msgspec.convert(value, dict[str, object])
    except msgspec.ValidationError:
        return {}


def named(place: Sequence[str]) -> str:
    """A place as people write it: `[table] key`."""
    *table, key = place
    quoted = (name if re.fullmatch(r"[\w*-]+", name) else f'"{name}"' for name in table)
    return f"[{'.'.join(quoted)}] {key}" if table else key


def explain(message: str, values: Mapping[str, object], written: str) -> str:
    """msgspec's error of the file's `values`, with its line, and the key that was probably meant."""
    found = _UNKNOWN.search(message)
    if found is None:
        return _explain_value(message, values, written)
    place = (*_concrete(found["path"] or "", values), found["field"])
    known = _known(place[:-1])
    close = difflib.get_close_matches(place[-1], known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"{_line(place, written)}unknown key {place[-1]!r}; {hint}"


def _explain_value(message: str, values: Mapping[str, object], written: str) -> str:
    what, _, at = message.partition(" - at ")
    path = at.strip("`").removeprefix("$").removeprefix(".")
    is_item = path.endswith("]") and not _is_table(path)
    place = _concrete(re.sub(r"\[[^]]*\]$", "", path) if is_item else path, values)
    name = named(place) if place else "the file"
    line = _line(place, written)
    if what.startswith("Invalid enum value"):  # the one key that is a choice
        known = ", ".join(get_args(get_type_hints(Config)["log_level"]))
        return f"{line}{name}: {what.removeprefix('Invalid enum value ')} is none of {known}"
    wrong = _WRONG_TYPE.fullmatch(what)
    if wrong is None:
        return f"{line}{name}: {what[:1].lower()}{what[1:].replace('`', '')}"
    wanted = " or ".join(_TYPES.get(one.strip(), one.strip()) for one in wrong["wanted"].split("|"))
    given = _TYPES.get(wrong["given"], wrong["given"]).partition(",")[0].removesuffix(" in quotes")
    return f"{line}{name}: {'each item ' if is_item else ''}must be {wanted}, and is {given}"


def _line(place: Place, written: str) -> str:
    line = line_of(place, written) if place else 0
    return f"line {line}: " if line else ""


def _is_table(path: str) -> bool:
    """Whether what a path of msgspec ends with is a name in a table of tables."""
    return _section(tuple(_parts(path))) is not None


def _parts(path: str) -> list[str]:
    return [part for part in re.sub(r"\[[^]]*\]", f".{ANY}", path).split(".") if part]


def _concrete(path: str, values: Mapping[str, object]) -> Place:
    """A path of msgspec with the names that it leaves out: of the tables that are wrong, the first."""
    place: Place = ()
    here = values
    for part in _parts(path):
        name = part
        if part == ANY and (section := _section((*place, ANY))) is not None:
            name = next((key for key, value in here.items() if not _is_valid(value, section)), ANY)
        place = (*place, name)
        here = _table(here.get(name))
    return place


def _is_valid(value: object, section: type[Section]) -> bool:
    try:
        msgspec.convert(value, section)
    except msgspec.ValidationError:
        return False
    return True


def _section(place: Place) -> type[Section] | None:
    """What is at a place: the type of a table, None for what is no table or holds tables by name."""
    kind: object = Config
    for part in place:
        if isinstance(kind, type) and issubclass(kind, Section):
            kind = get_type_hints(kind).get(part)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return None
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _known(place: Place) -> tuple[str, ...]:
    section = _section(place)
    return section.__struct_fields__ if section is not None else ()
