"""The filter language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.sandbox.controller import Runtime, Sandbox
from atoll.sandbox.filters import compile_filters

BOX = Sandbox(
    id="box1",
    sandboxer="shim",
    runtime=Runtime(name="r"),
    labels={"app": "web", "example.com/tier": "front end", "a.b": "c", "quote": 'say "hi"\n'},
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "id==box1",
        "id!=box2",
        "id~=^box[0-9]$",
        "id~=ox",
        "id",
        "labels.app",
        "labels.app==web",
        "labels.app!=db",
        "labels.missing!=x",
        'labels."example.com/tier"=="front end"',
        'labels."example.com/tier"~="^front\\\\s"',
        "labels.a.b==c",
        "id==box1,labels.app==web",
        "id~=/^b.x/,labels.app",
        "id~=|^box|",
        r'labels.quote=="say \"hi\"\n"',
        r'labels.app=="\x77\u0065\142"',
    ],
)
def test_matches(text: str) -> None:
    assert compile_filters([text])(BOX)


@pytest.mark.parametrize(
    "text",
    [
        "id==box",
        "id!=box1",
        "id~=^x",
        "labels.missing",
        "labels.missing~=.",
        "labels.app==web,id==other",
        "labels",
        "unknown==x",
    ],
)
def test_does_not_match(text: str) -> None:
    assert not compile_filters([text])(BOX)


def test_several_filters_mean_any_of_them() -> None:
    assert compile_filters(["id==other", "labels.app==web"])(BOX)
    assert not compile_filters(["id==other", "labels.app==db"])(BOX)
    assert compile_filters([])(BOX)
    assert compile_filters(["", "id==other"])(BOX)


@pytest.mark.parametrize(
    "text",
    [
        "id==",
        "id=box1",
        "==box1",
        "id==box1,",
        ",",
        "labels.",
        '"id',
        'id=="box1',
        "id~=/box",
        "id~=(",
        "id==a b",
        "id box",
        r'id=="\q"',
        r'id=="\U7fffffff"',
        "id==" + "x" * 5000,
    ],
)
def test_what_cannot_be_parsed_is_an_invalid_argument(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"filter|regular expression"):
        compile_filters([text])


def test_the_error_tells_the_place() -> None:
    with pytest.raises(errors.InvalidArgument, match="at character 9"):
        compile_filters(["id==box1 and"])


@given(st.text(alphabet='id.labels=!~",/|\\x01 é\n(', max_size=40))
def test_anything_parses_or_is_refused(text: str) -> None:
    try:
        matches = compile_filters([text])
    except errors.InvalidArgument:
        return
    assert matches(BOX) in (True, False)
