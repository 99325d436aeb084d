"""Mounts short enough for mount(2)."""

from __future__ import annotations

from atoll.snapshot.mount import OPTIONS_LIMIT_BYTES, Mount


def overlay(layers: int) -> Mount:
    lowers = ":".join(f"/var/lib/atoll/snapshots/{number}/fs" for number in range(layers))
    return Mount(
        type="overlay",
        source="overlay",
        options=("volatile", f"lowerdir={lowers}", "upperdir=/var/lib/atoll/snapshots/900/fs", "workdir=/w"),
    )


def test_short_mounts_stay_as_they_are() -> None:
    assert overlay(3).compact() == ("/", overlay(3))
    bind = Mount(type="bind", source="/a", options=("ro",))
    assert bind.compact() == ("/", bind)


def test_long_overlays_become_relative() -> None:
    folder, short = overlay(150).compact()
    assert folder == "/var/lib/atoll/snapshots"
    assert len(",".join(short.options)) <= OPTIONS_LIMIT_BYTES
    lowers = short.options[1].removeprefix("lowerdir=").split(":")
    assert [f"{folder}/{lower}" for lower in lowers] == overlay(150).options[1].removeprefix("lowerdir=").split(":")
    assert short.options[2:] == overlay(150).options[2:]
