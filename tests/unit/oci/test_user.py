from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.oci import user
from atoll.oci.config import Int64Value, LinuxContainerSecurityContext, SupplementalGroupsPolicy
from atoll.oci.rootfs import RootfsView

PASSWD = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nweb:x:33:34::/:\n99:x:7:8::/:\n"
GROUP = "root:x:0:\nweb:x:34:\nlogs:x:44:web,other\nextra:x:45:other\n"


@pytest.fixture
def view(tmp_path: Path) -> RootfsView:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return RootfsView((tmp_path,))


def ids(view: RootfsView, image: str = "", **asked: object) -> tuple[int, int, tuple[int, ...]]:
    found = user.resolve(LinuxContainerSecurityContext(**asked), image, view)  # pyright: ignore[reportArgumentType]
    return found.uid, found.gid, found.additional_gids


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("", (0, 0, (0,))),
        ("web", (33, 34, (34, 44))),
        ("33", (33, 34, (34, 44))),
        ("web:logs", (33, 44, (44,))),
        ("web:5", (33, 5, (5, 44))),
        ("1000", (1000, 0, (0,))),
        ("1000:1001", (1000, 1001, (1001,))),
        ("99", (7, 8, (8,))),
    ],
)
def test_image_user_is_looked_up(view: RootfsView, image: str, expected: tuple[int, int, tuple[int, ...]]) -> None:
    assert ids(view, image) == expected


def test_request_comes_before_the_image(view: RootfsView) -> None:
    assert ids(view, "web", run_as_user=Int64Value(value=0)) == (0, 0, (0,))
    assert ids(view, "root", run_as_username="web", run_as_group=Int64Value(value=9)) == (33, 9, (9, 44))


def test_groups_are_merged_or_strict(view: RootfsView) -> None:
    assert ids(view, "web", supplemental_groups=(70, 60)) == (33, 34, (34, 44, 60, 70))
    strict = SupplementalGroupsPolicy.STRICT
    assert ids(view, "web", supplemental_groups=(70,), supplemental_groups_policy=strict) == (33, 34, (34, 70))


@pytest.mark.parametrize("image", ["nobody", "web:nogroup", "-1", str(1 << 31), "0:" + "9" * 30])
def test_unknown_names_and_wild_numbers_are_refused(view: RootfsView, image: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        ids(view, image)


def test_group_needs_a_user(view: RootfsView) -> None:
    with pytest.raises(errors.InvalidArgument, match="run_as_group"):
        ids(view, "web", run_as_group=Int64Value(value=1))


def test_image_without_account_files_has_numbers_only(tmp_path: Path) -> None:
    assert ids(RootfsView((tmp_path,)), "12") == (12, 0, (0,))
    with pytest.raises(errors.InvalidArgument, match="web"):
        ids(RootfsView((tmp_path,)), "web")


@given(st.binary())
def test_any_account_file_parses(content: bytes) -> None:
    for account in user.parse_passwd(content):
        assert 0 <= account.uid <= user.ID_LIMIT
    for group in user.parse_group(content):
        assert 0 <= group.gid <= user.ID_LIMIT
