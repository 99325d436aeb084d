from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.linux import syscalls
from atoll.linux.mounts import mount_of, parse_mountinfo, parse_options, unescape

TABLE = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:25 / /mnt/with\\040space rw,nosuid master:2 propagate_from:1 - tmpfs tmp\\134fs rw,size=4k
31 30 0:26 /sub /mnt/with\\040space/deep ro - tmpfs none ro
32 22 0:4 net:[4026531840] /run/ns rw shared:9 - nsfs nsfs rw
33 31 0:27 / /mnt/with\\040space/deep rw - tmpfs top rw
"""


def test_lines_are_parsed_with_escapes_and_optional_fields() -> None:
    root, spaced, *_, pin, _ = parse_mountinfo(TABLE)
    assert root.is_shared
    assert not root.is_slave
    assert (root.major, root.minor, root.filesystem, root.super_options) == (254, 0, "ext4", ("rw", "discard"))
    assert spaced.mount_point == "/mnt/with space"
    assert spaced.source == "tmp\\fs"
    assert spaced.is_slave
    assert pin.root == "net:[4026531840]"


def test_path_belongs_to_the_deepest_and_topmost_mount() -> None:
    table = parse_mountinfo(TABLE)
    assert mount_of(Path("/mnt/with space/deep/x"), table).id == 33
    assert mount_of(Path("/mnt/with space/deeper"), table).id == 30
    assert mount_of(Path("/mnt"), table).id == 22


@pytest.mark.parametrize("line", ["", "1 2 3", "22 1 254:0 / / rw shared:1 ext4 /dev/vda rw", "x 1 0:1 / / rw - a b c"])
def test_other_text_is_refused(line: str) -> None:
    if line:
        with pytest.raises(ValueError):  # noqa: PT011
            parse_mountinfo(line)
    else:
        assert parse_mountinfo(line) == []


@given(st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\0")))
def test_escapes_round_trip(text: str) -> None:
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)
    assert unescape(escaped) == text


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parse_mountinfo(text)
    except ValueError:
        pass


def test_options_become_flags_propagation_and_text() -> None:
    parsed = parse_options(
        ["rbind", "ro", "nosuid", "rslave", "size=5m", "rnoexec", "suid", "mode=755", "defaults", ""]
    )
    assert parsed.flags == syscalls.MS_BIND | syscalls.MS_REC | syscalls.MS_RDONLY
    assert parsed.propagation == (syscalls.MS_SLAVE | syscalls.MS_REC,)
    assert parsed.recursive_attributes == syscalls.MOUNT_ATTR_NOEXEC
    assert parsed.data == "size=5m,mode=755"


def test_later_option_wins() -> None:
    assert parse_options(["ro", "rw"]).flags == 0
    assert parse_options(["rw", "ro"]).flags == syscalls.MS_RDONLY
