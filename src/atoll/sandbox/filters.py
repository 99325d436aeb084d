"""The filter language of list calls: `<fieldpath>[<op><value>]`.

    id==abc                       equal
    labels.app!=web               not equal
    labels."example.com/tier"~=^fr   the regular expression is found in the value
    labels.app                    present
    id==abc,labels.app==web       both

A comma means AND; several filters mean OR; an empty one matches everything. A key or value that
holds other characters is written in double quotes, with the escapes of Go strings; a regular
expression also between `/` or `|`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from atoll import errors
from atoll.sandbox.controller import Sandbox
from atoll.sandbox.regex import Regex

T = TypeVar("T")
Matcher = Callable[[T], bool]
Lookup = Callable[[T, list[str]], str | None]
"""The value at a field path, None where there is none."""

MAX_LENGTH = 4096
"""Longest filter, in characters."""

_FIELD = re.compile(r"[A-Za-z0-9_]+")
_VALUE = re.compile(r"[^\s,]+")
_OPERATOR = re.compile(r"==|!=|~=")
_QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})|(.))", re.DOTALL)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}


def compile_filters(filters: Iterable[str]) -> Matcher[Sandbox]:
    """One predicate of sandboxes for all `filters`; `InvalidArgument` shows where one cannot be parsed."""
    return compile_with(filters, _lookup)


def compile_with(filters: Iterable[str], lookup: Lookup[T]) -> Matcher[T]:
    """`compile_filters` for anything whose fields `lookup` finds."""
    alternatives = [_Parser(text).parse() for text in filters]
    if not alternatives:
        return _everything
    return lambda item: any(all(term.holds(lookup(item, term.path)) for term in terms) for terms in alternatives)


def _everything(_item: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class _Term:
    path: list[str]
    holds: Callable[[str | None], bool]


@dataclass(slots=True)
class _Parser:
    text: str
    at: int = 0

    def parse(self) -> list[_Term]:
        if len(self.text) > MAX_LENGTH:
            raise errors.InvalidArgument(f"filter: is longer than {MAX_LENGTH} characters")
        terms: list[_Term] = []
        if not self.text.strip():
            return terms
        while True:
            terms.append(self._selector())
            if self.at == len(self.text):
                return terms
            if self.text[self.at] != ",":
                raise self._wrong("a comma or an operator")
            self.at += 1

    def _selector(self) -> _Term:
        path = [self._field()]
        while self.text.startswith(".", self.at):
            self.at += 1
            path.append(self._field())
        operator = self._take(_OPERATOR)
        if operator is None:
            return _Term(path, _is_present)
        return _Term(path, _comparison(operator.group(), self._value(regex=operator.group() == "~=")))

    def _field(self) -> str:
        if self.text.startswith('"', self.at):
            return self._quoted()
        found = self._take(_FIELD)
        if found is None:
            raise self._wrong("a field name")
        return found.group()

    def _value(self, *, regex: bool) -> str:
        start = self.text[self.at : self.at + 1]
        if start == '"':
            return self._quoted()
        if regex and start in ("/", "|"):
            return self._delimited(start)
        found = self._take(_VALUE)
        if found is None:
            raise self._wrong("a value")
        return found.group()

    def _quoted(self) -> str:
        found = self._take(_QUOTED)
        if found is None:
            raise self._wrong("a closing quote")
        return _ESCAPE.sub(self._unescape, found.group(1))

    def _delimited(self, mark: str) -> str:
        found = self._take(re.compile(rf"{re.escape(mark)}((?:[^{re.escape(mark)}\\]|\\.)*){re.escape(mark)}"))
        if found is None:
            raise self._wrong(f"a closing {mark}")
        return found.group(1).replace("\\" + mark, mark)

    def _unescape(self, found: re.Match[str]) -> str:
        byte, short, long, octal, simple = found.groups()
        if simple is not None:
            if simple not in _SIMPLE:
                raise self._wrong(f"an escape that Go knows instead of \\{simple}")
            return _SIMPLE[simple]
        code = int(octal, 8) if octal else int(byte or short or long, 16)
        if code > 0x10FFFF:
            raise self._wrong("a code point of Unicode")
        return chr(code)

    def _take(self, rule: re.Pattern[str]) -> re.Match[str] | None:
        found = rule.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def _wrong(self, wanted: str) -> errors.InvalidArgument:
        return errors.InvalidArgument(f"filter {self.text!r}: expected {wanted} at character {self.at + 1}")


def _lookup(sandbox: Sandbox, path: list[str]) -> str | None:
    """The value at `path`, None where there is none; unknown fields are absent, as in containerd."""
    if path == ["id"]:
        return sandbox.id
    if path[0] == "labels" and len(path) > 1:
        return sandbox.labels.get(".".join(path[1:]))
    return None


def _is_present(value: str | None) -> bool:
    return value is not None


def _comparison(operator: str, wanted: str) -> Callable[[str | None], bool]:
    if operator == "==":
        return lambda value: value == wanted
    if operator == "!=":
        return lambda value: value != wanted
    pattern = Regex(wanted)
    return lambda value: value is not None and pattern.search(value)
