"""Regular expressions from clients, matched in linear time.

The standard library's matcher takes exponential time for some patterns, and holds the interpreter
lock meanwhile: one filter could stop the daemon. This one runs all alternatives side by side
(Thompson's construction), so a search costs at most (size of the pattern) x (length of the text).

The syntax is RE2's, which containerd's filters have; like it without back-references and look-around,
and also without Unicode classes: literals, `.`, `[a-z]`, `[^...]`, `[[:alpha:]]`, `\\d \\w \\s` and their
opposites, `\\b \\B ^ $ \\A \\z`, `( )`, `(?: )`, `(?P<name> )`, `|`, `* + ? {n,m}` and their lazy forms,
`(?i)` at the start. `$` is the end of the text, `.` is not a newline, classes are ASCII.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll import errors

MAX_PATTERN = 512
"""Longest pattern, in characters."""
MAX_STEPS = 4096
"""Most steps of a compiled pattern; counted repetitions are written out."""
MAX_NESTING = 50

Test = Callable[[str], bool]
Part = Callable[[int], int]
"""Adds its steps, which go on to the step given; the number of its first one."""

_WORD = frozenset(string.ascii_letters + string.digits + "_")
_CLASSES = {"d": frozenset(string.digits), "w": _WORD, "s": frozenset("\t\n\f\r ")}
_POSIX = {
    "alnum": frozenset(string.ascii_letters + string.digits),
    "alpha": frozenset(string.ascii_letters),
    "digit": frozenset(string.digits),
    "lower": frozenset(string.ascii_lowercase),
    "punct": frozenset(string.punctuation),
    "space": frozenset(string.whitespace),
    "upper": frozenset(string.ascii_uppercase),
    "word": _WORD,
    "xdigit": frozenset(string.hexdigits),
}
_CONTROL = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_GROUP = re.compile(r"\((?:\?:|\?P?<[A-Za-z_][A-Za-z0-9_]*>)?(?!\?)")
_COUNT = re.compile(r"\{([0-9]{1,4})(,([0-9]{0,4}))?\}")
_HEX = re.compile(r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})")


@dataclass(slots=True)
class _Step:
    """Take a character that passes `test`, or go on to `to` where `guard` holds."""

    to: list[int] = field(default_factory=list[int])
    test: Test | None = None
    guard: str = ""


class Regex:
    """A compiled pattern; `InvalidArgument` for one that cannot be."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise errors.InvalidArgument(f"regular expression: is longer than {MAX_PATTERN} characters")
        parser = _Parser(pattern)
        whole = parser.parse()
        self._steps = parser.steps
        self._end = parser.add(_Step())
        self._start = whole(self._end)

    def search(self, text: str) -> bool:
        """Whether the pattern matches anywhere in `text`."""
        alive: set[int] = set()
        for at in range(len(text) + 1):
            reached = self._reach(alive, text, at)
            if self._end in reached:
                return True
            if at < len(text):
                alive = {self._steps[number].to[0] for number in reached if self._takes(number, text[at])}
        return False

    def _takes(self, number: int, character: str) -> bool:
        test = self._steps[number].test
        return test is not None and test(character)

    def _reach(self, alive: set[int], text: str, at: int) -> set[int]:
        """Every step that those alive, and a match that begins here, lead to without taking a character."""
        reached: set[int] = set()
        pending = [*alive, self._start]
        while pending:
            number = pending.pop()
            if number not in reached:
                reached.add(number)
                step = self._steps[number]
                if step.test is None and (not step.guard or _holds(step.guard, text, at)):
                    pending += step.to
        return reached


def _holds(guard: str, text: str, at: int) -> bool:
    if guard == "A":
        return at == 0
    if guard == "z":
        return at == len(text)
    before = at > 0 and text[at - 1] in _WORD
    after = at < len(text) and text[at] in _WORD
    return (before != after) == (guard == "b")


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._folds = pattern.startswith("(?i)")
        self._text = pattern
        self._at = 4 if self._folds else 0
        self._depth = 0
        self.steps: list[_Step] = []

    def add(self, step: _Step) -> int:
        if len(self.steps) >= MAX_STEPS:
            raise errors.InvalidArgument("regular expression: its repetitions make it too large")
        self.steps.append(step)
        return len(self.steps) - 1

    def parse(self) -> Part:
        whole = self._alternatives()
        if self._at < len(self._text):
            raise self._wrong("an unexpected )")
        return whole

    def _alternatives(self) -> Part:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._wrong(f"more than {MAX_NESTING} nested groups")
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        self._depth -= 1
        if len(parts) == 1:
            return parts[0]
        return lambda then: self.add(_Step(to=[part(then) for part in parts]))

    def _sequence(self) -> Part:
        parts: list[Part] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repetition())

        def build(then: int) -> int:
            for part in reversed(parts):
                then = part(then)
            return then

        return build

    def _repetition(self) -> Part:
        part = self._atom()
        if (bounds := self._bounds()) is not None:
            self._take("?")
            part = self._repeated(part, *bounds)
            if self._bounds() is not None:
                raise self._wrong("a repeated repetition")
        return part

    def _bounds(self) -> tuple[int, int | None] | None:
        """The least and the most times, where a repetition stands here."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        if (found := _COUNT.match(self._text, self._at)) is None:
            return None
        self._at = found.end()
        least = int(found[1])
        most = least if found[2] is None else int(found[3]) if found[3] else None
        if max(least, most or 0) > 1000 or (most is not None and most < least):
            raise self._wrong("a repetition that is out of order or above 1000")
        return least, most

    def _repeated(self, part: Part, least: int, most: int | None) -> Part:
        def build(then: int) -> int:
            if most is None:
                loop = self.add(_Step(to=[then]))
                self.steps[loop].to.append(part(loop))
                then = loop
            for _ in range(least):
                then = part(then)
            return then

        if most is not None and most > least:
            return self._optional(part, least, most)
        return build

    def _optional(self, part: Part, least: int, most: int) -> Part:
        """`least` times, then up to `most`: each further one may be left out, with all after it."""

        def build(then: int) -> int:
            end = then
            for _ in range(most - least):
                then = self.add(_Step(to=[end, part(then)]))
            for _ in range(least):
                then = part(then)
            return then

        return build

    def _atom(self) -> Part:
        if (group := _GROUP.match(self._text, self._at)) is not None:
            self._at = group.end()
            inner = self._alternatives()
            if not self._take(")"):
                raise self._wrong("a missing )")
            return inner
        character = self._text[self._at]
        if character in "(*+?":
            raise self._wrong(f"{character!r} where it has no meaning here")
        self._at += 1
        if character in "^$":
            return self._guard("A" if character == "^" else "z")
        if character == ".":
            return self._test(lambda c: c != "\n")
        if character == "[":
            return self._test(self._set())
        if character == "\\":
            return self._escaped()
        return self._test(self._one(character))

    def _guard(self, guard: str) -> Part:
        return lambda then: self.add(_Step(to=[then], guard=guard))

    def _test(self, test: Test) -> Part:
        return lambda then: self.add(_Step(to=[then], test=test))

    def _one(self, character: str) -> Test:
        return self._folded(lambda c: c == character)

    def _folded(self, test: Test) -> Test:
        return (lambda c: test(c) or test(c.lower()) or test(c.upper())) if self._folds else test

    def _escaped(self) -> Part:
        character = self._text[self._at : self._at + 1]
        if character and character in "bBAz":
            self._at += 1
            return self._guard(character)
        class_ = self._class()
        return self._test(class_ if class_ is not None else self._one(self._literal()))

    def _class(self) -> Test | None:
        """`\\d` and its kin, behind the backslash."""
        character = self._text[self._at : self._at + 1]
        if not character or character.lower() not in _CLASSES:
            return None
        self._at += 1
        members = _CLASSES[character.lower()]
        return (lambda c: c in members) if character.islower() else (lambda c: c not in members)

    def _literal(self) -> str:
        """The one character that an escape stands for, behind the backslash."""
        if (found := _HEX.match(self._text, self._at)) is not None:
            self._at = found.end()
            code = int(found[1] or found[2], 16)
            if code > 0x10FFFF:
                raise self._wrong("a character that Unicode does not have")
            return chr(code)
        character = self._text[self._at : self._at + 1]
        if character in _CONTROL:
            self._at += 1
            return _CONTROL[character]
        if not character or character.isalnum() or ord(character) > 127:
            raise self._wrong(f"an unknown escape \\{character}")
        self._at += 1
        return character

    def _set(self) -> Test:
        negated = self._take("^")
        tests: list[Test] = []
        first = True
        while first or not self._take("]"):
            if self._at >= len(self._text):
                raise self._wrong("a missing ]")
            tests.append(self._member())
            first = False
        among = self._folded(lambda c: any(test(c) for test in tests))
        return (lambda c: not among(c)) if negated else among

    def _member(self) -> Test:
        if self._text.startswith("[:", self._at):
            name, closed, _ = self._text[self._at + 2 :].partition(":]")
            if not closed or name not in _POSIX:
                raise self._wrong("an unknown class")
            self._at += len(name) + 4
            members = _POSIX[name]
            return lambda c: c in members
        low = self._set_character()
        if not isinstance(low, str):
            return low
        if not self._text.startswith("-", self._at) or self._text.startswith("-]", self._at):
            return lambda c: c == low
        self._at += 1
        high = self._set_character()
        if not isinstance(high, str) or high < low:
            raise self._wrong("a range that is out of order")
        return lambda c: low <= c <= high

    def _set_character(self) -> str | Test:
        character = self._text[self._at : self._at + 1]
        if not character:
            raise self._wrong("a missing ]")
        self._at += 1
        if character != "\\":
            return character
        class_ = self._class()
        return class_ if class_ is not None else self._literal()

    def _take(self, character: str) -> bool:
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _wrong(self, what: str) -> errors.InvalidArgument:
        return errors.InvalidArgument(f"regular expression {self._text!r}: {what} at character {self._at + 1}")
