from __future__ import annotations

import pytest

from atoll import errors
from atoll.linux.userns import ID_LIMIT, IDMap, IDRange, are_same, checked


def ranges(*rows: tuple[int, int, int]) -> tuple[IDRange, ...]:
    return tuple(IDRange(container_id=inside, host_id=host, length=length) for inside, host, length in rows)


ONE = ranges((0, 1000, 10))
TWO = ranges((5, 50, 5), (0, 1000, 5))


def test_ids_inside_stand_for_ids_of_the_host() -> None:
    users = IDMap(uids=TWO, gids=ONE)
    assert checked(users, "x") is users
    assert users.root == (1000, 1000)
    assert users.nobody == (9, 9)
    assert users.on_host(6, 9) == (51, 1009)
    assert users.on_host(77, 77) == users.root, "an id that is not mapped is root's"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ((), "1 to 340"),
        (ranges(*((at, at, 1) for at in range(341))), "1 to 340"),
        (ranges(*((at, 10_000_000 + at, 1) for at in range(340))), "less than a page"),
        (ranges((0, 0, 0)), "lengths"),
        (ranges((0, -1, 5)), "lengths"),
        (ranges((0, ID_LIMIT, 1)), "lengths"),
        (ranges((0, 100, 5), (4, 200, 5)), "overlap"),
        (ranges((0, 100, 5), (5, 104, 5)), "overlap"),
        (ranges((1, 100, 5)), "0 is not mapped"),
    ],
)
def test_what_the_kernel_would_not_take_is_refused_before(wrong: tuple[IDRange, ...], text: str) -> None:
    for users, name in ((IDMap(uids=wrong, gids=ONE), "uids"), (IDMap(uids=ONE, gids=wrong), "gids")):
        with pytest.raises(errors.InvalidArgument, match=f"the field.{name}.*{text}"):
            checked(users, "the field")


def test_as_many_ranges_as_the_kernel_takes_are_taken() -> None:
    users = IDMap(uids=ranges(*((at, 1000 + at, 1) for at in range(340))), gids=ONE)
    assert checked(users, "x") is users


def test_a_mount_needs_no_root() -> None:
    users = IDMap(uids=ranges((1, 100, 5)), gids=ONE)
    assert checked(users, "x", root=False) is users


def test_the_order_of_ranges_means_nothing() -> None:
    assert are_same(IDMap(uids=TWO, gids=ONE), IDMap(uids=TWO[::-1], gids=ONE))
    assert not are_same(IDMap(uids=TWO, gids=ONE), IDMap(uids=ONE, gids=ONE))
