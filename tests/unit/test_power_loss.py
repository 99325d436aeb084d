"""The model of a disk that `tests/powerloss` loses power with: what is durable when, and what may be left."""

from __future__ import annotations

import stat

from tests.powerloss.disk import ROOT, SECTOR, Change, Named, Node, Recording, Sized, State, blocks, expected, losses

OLD, NEW = b"o" * 5000, b"n" * 5000


def recording(*, synced: bool, folder_synced: bool = False) -> Recording:
    """A file `f` with OLD, durable; then a new one with NEW is renamed to it, synced before that or not."""
    made = Recording()
    for serial, (name, data) in enumerate((("f", OLD), ("t", NEW)), 1):
        made.nodes[serial] = Node(serial=serial, mode=stat.S_IFREG | 0o600)
        made.now += 1
        made.change(Named(names=((ROOT, name, serial),)))
        made.change(Sized(node=serial, size=len(data)))
        for piece in blocks(serial, 0, data):
            made.change(piece)
        made.now += 1
        if name == "f":
            made.sync(None, since=made.now)
            made.told({"f": "old"}, is_durable=True)
            made.now += 1
            made.told({"f": "new"}, is_durable=False)
    if synced:
        made.sync(2, since=made.now)
    made.now += 1
    made.change(Named(names=((ROOT, "f", 2), (ROOT, "t", None))))
    made.now += 1
    if folder_synced:
        made.sync(ROOT, since=made.now)
        made.told({"f": "new"}, is_durable=True)
    return made


def contents(made: Recording) -> set[bytes]:
    """Everything that `f` may hold from the moment on that OLD was durable."""
    found: set[bytes] = set()
    begin = next(fact.at for fact in made.facts if fact.is_durable)
    for loss in losses(made):
        state = State(made.nodes, loss.changes)
        if loss.at >= begin:
            found.add(bytes(state.contents.get(state.folders[ROOT]["f"], b"")))
    return found


def test_what_was_synced_before_its_rename_is_old_or_new() -> None:
    assert contents(recording(synced=True)) == {OLD, NEW}


def test_what_was_not_synced_before_its_rename_may_be_anything_between() -> None:
    found = contents(recording(synced=False))
    assert {OLD, NEW, b"", bytes(5000)} <= found
    assert any(NEW[:4096] + bytes(904) == one or bytes(4096) + NEW[4096:] == one for one in found)
    assert any(one.count(0) % SECTOR == 0 and 0 < one.count(0) < 4096 for one in found - {OLD, NEW}), "a torn block"


def test_a_rename_is_durable_with_its_folder() -> None:
    made = recording(synced=True, folder_synced=True)
    (last,) = {State(made.nodes, loss.changes).digest() for loss in losses(made) if loss.at == made.now}
    assert last == State(made.nodes, [one.change for one in made.changes]).digest()


def test_what_may_be_there_is_what_was_told_last_and_what_was_begun_since() -> None:
    made = recording(synced=True, folder_synced=True)
    assert expected(made, 0) == {}
    assert expected(made, made.now - 1) == {"f": ("old", "new")}
    assert expected(made, made.now) == {"f": ("new",)}


def test_disks_are_drawn_the_same_every_time() -> None:
    def drawn(seed: int) -> list[tuple[str, tuple[Change, ...]]]:
        return [(loss.how, loss.changes) for loss in losses(recording(synced=False), seed)]

    assert drawn(1) == drawn(1) != drawn(2)
