"""Regular expressions in linear time, against the standard library's matcher."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.sandbox.regex import MAX_PATTERN, Regex


@pytest.mark.parametrize(
    ("pattern", "matches", "differs"),
    [
        ("", ["", "a"], []),
        ("abc", ["abc", "xabcx"], ["ab", "acb", ""]),
        ("^a.c$", ["abc", "a.c"], ["abcd", "a\nc", "xabc"]),
        ("a|bc|", ["", "z"], []),
        ("^(a|bc)+$", ["a", "bca", "abc"], ["", "b", "ab"]),
        ("^a{2}$", ["aa"], ["a", "aaa"]),
        ("^a{2,}$", ["aa", "aaaaa"], ["a"]),
        ("^a{1,3}$", ["a", "aa", "aaa"], ["", "aaaa"]),
        ("^a{0}$", [""], ["a"]),
        ("^a{,3}$", ["a{,3}"], ["a"]),
        ("^[a-c_-]*?$", ["", "abc-_"], ["d"]),
        ("^[^a-c]$", ["d", "\n"], ["a"]),
        ("^[]a]$", ["]", "a"], ["b"]),
        (r"^[\d\-x]+$", ["1-x"], ["y"]),
        ("^[[:alpha:]_]+$", ["aZ_"], ["1"]),
        (r"^\w+\s\W\S\D\d$", ["ab !xy1"], ["ab !x11"]),
        (r"\bweb\b", ["a web b", "web"], ["cobweb", "webs"]),
        (r"a\Bb", ["ab"], ["a b"]),
        (r"\Aab\z", ["ab"], ["ab\n"]),
        (r"^\x41\x{1F600}\.\n\\$", ["A\U0001f600.\n\\"], ["A"]),
        ("(?i)^Web[a-c]$", ["WEBB", "webc"], ["webd"]),
        ("^(?P<n>a)(?:b)(?<m>c)$", ["abc"], ["ab"]),
        ("^(a*)*$", ["", "aaa"], ["b"]),
        ("^é$", ["é"], ["e"]),
    ],
)
def test_it_matches_what_it_should(pattern: str, matches: list[str], differs: list[str]) -> None:
    regex = Regex(pattern)
    assert [text for text in matches if not regex.search(text)] == []
    assert [text for text in differs if regex.search(text)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a)",
        "(a",
        "[a",
        "[",
        "[b-a]",
        "[a-\\d]",
        "[[:nope:]]",
        "*",
        "a**",
        "a{2}{3}",
        "a{3,2}",
        "a{1001}",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        r"(a)\1",
        r"\p{L}",
        "\\",
        r"\x{110000}",
        "(" * 60 + ")" * 60,
        "((a{100}){100}){100}",
        "a" * (MAX_PATTERN + 1),
    ],
)
def test_what_it_cannot_do_it_refuses(pattern: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="regular expression"):
        Regex(pattern)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(a*)*b$", "^(a?){50}a{50}$", "(.*)*x"])
def test_it_takes_no_exponential_time(pattern: str) -> None:
    Regex(pattern).search("a" * 200 + "!")


atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\b", "^", "x?"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map("({})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])).map(
            lambda t: f"({t[0]}){t[1]}"
        ),
    ),
    max_leaves=6,
)


@given(patterns, st.text("ab1 \n", max_size=6))
def test_it_agrees_with_the_standard_library(pattern: str, text: str) -> None:
    assert Regex(pattern).search(text) == (re.search(pattern, text, re.ASCII) is not None)


@given(st.text("ab()[]{}|*+?\\^$.,-:=!<>P1", max_size=12), st.text("ab1-", max_size=5))
def test_any_text_is_a_pattern_or_refused(pattern: str, text: str) -> None:
    try:
        regex = Regex(pattern)
    except errors.InvalidArgument:
        return
    assert regex.search(text) in (True, False)
