"""Names and keys, one to one."""

from __future__ import annotations

import pytest

from atoll import errors
from atoll.container.registrar import Registrar


@pytest.fixture
def names() -> Registrar:
    names = Registrar("container")
    names.reserve("web", "1")
    return names


def test_the_same_pair_again_is_fine(names: Registrar) -> None:
    names.reserve("web", "1")
    assert names.key("web") == "1"


@pytest.mark.parametrize(("name", "key"), [("web", "2"), ("db", "1")])
def test_neither_name_nor_key_is_shared(names: Registrar, name: str, key: str) -> None:
    with pytest.raises(errors.AlreadyExists):
        names.reserve(name, key)
    assert (names.key("web"), names.key("db")) == ("1", None)


@pytest.mark.parametrize(("name", "key"), [("", "2"), ("db", "")])
def test_neither_may_be_empty(names: Registrar, name: str, key: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        names.reserve(name, key)


def test_released_both_are_free(names: Registrar) -> None:
    names.release_key("1")
    names.reserve("db", "1")
    names.reserve("web", "2")
    names.release_key("2")
    names.reserve("web", "3")


def test_releasing_the_unknown_is_fine(names: Registrar) -> None:
    names.release_key("9")
    assert names.key("web") == "1"
