"""A tree goes over a socket and is what it was; what lies in its way is replaced, never followed."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atoll import errors
from atoll.files import wire
from atoll.files.receiving import Receiver
from atoll.files.root import Ids, Root
from atoll.files.sending import Sender, count


def copied(source: Path, target: Path, *, passes: bool, top: str = "") -> tuple[Sender, Receiver]:
    """Send `source` to the folder `target` through a socket, with or without descriptors."""
    ours, theirs = socket.socketpair()
    sending, receiving = wire.Channel(ours), wire.Channel(theirs)
    held, root = os.open(source, os.O_PATH), os.open(target, os.O_PATH)
    sender = Sender(sending, lambda _: passes, lambda: None)

    def send() -> None:
        sender.send(held, str(source))
        sending.send(wire.End(sender.skipped))
        sending.close()

    thread = threading.Thread(target=send)
    thread.start()
    receiver = Receiver(Root(root), top)
    try:
        while (found := receiving.receive()) is not None:
            message, fds = found
            match message:
                case wire.Items(items):
                    receiver.take(items, fds)
                case wire.Data():
                    receiver.data(message)
                case _:
                    receiver.finish()
    finally:
        receiver.close()
        receiving.close()
        thread.join()
        os.close(held)
        os.close(root)
    return sender, receiver


def look(folder: Path) -> dict[str, tuple[str, int, object]]:
    found: dict[str, tuple[str, int, object]] = {}
    for one in sorted(folder.rglob("*")):
        status, name = one.lstat(), str(one.relative_to(folder))
        if one.is_symlink():
            found[name] = ("link", 0, os.readlink(one))
        elif one.is_dir():
            found[name] = ("folder", status.st_mode, status.st_mtime_ns)
        else:
            found[name] = ("file", status.st_mode, (status.st_mtime_ns, one.read_bytes()))
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "empty").mkdir(mode=0o750)
    (source / "zero").touch()
    (source / "small").write_bytes(b"x" * 100)
    (source / "a" / "edge").write_bytes(b"y" * wire.INLINE_BYTES)
    (source / "a" / "b" / "big").write_bytes(os.urandom(wire.INLINE_BYTES * 5 + 1))
    (source / "a" / "link").symlink_to("../small")
    (source / "dangling").symlink_to("/nowhere/at/all")
    (source / "a" / "b" / "run").write_text("#!")
    (source / "a" / "b" / "run").chmod(0o755)
    for number in range(2 * wire.BATCH_ITEMS):
        (source / "empty" / str(number)).write_bytes(b"%d" % number)
    os.utime(source / "a", (1, 2))
    os.mkfifo(source / "fifo")
    return source


@pytest.mark.parametrize("passes", [True, False])
def test_a_tree_arrives_as_it_was(tree: Path, tmp_path: Path, passes: bool) -> None:
    target = tmp_path / "target"
    target.mkdir()
    sender, receiver = copied(tree, target, passes=passes)
    (tree / "fifo").unlink()
    assert look(target) == look(tree)
    assert sender.skipped == [b"fifo"]
    assert (sender.files, sender.size) == (receiver.files, receiver.size)


def test_many_small_files_of_many_folders_arrive_though_one_cannot(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "3" / "7").mkdir(parents=True)  # in the way, and no file
    names = [b"%d/%d" % (folder, number) for folder in range(6) for number in range(100)]
    items = [wire.Item(b"%d" % folder, wire.FOLDER, 0o755) for folder in range(6)]
    items += [wire.Item(name, wire.FILE, 0o640, 5, len(name), name) for name in names]
    root = os.open(target, os.O_PATH)
    receiver = Receiver(Root(root), "")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(errors.FailedPrecondition, match=r"/3/7: is a directory"):
        receiver.take(items, [])
    receiver.close()
    os.close(root)
    assert len(os.listdir("/proc/self/fd")) == before - 1
    found = {str(one.relative_to(target)): one.read_bytes() for one in target.rglob("*") if one.is_file()}
    cut = {f"3/{number}" for number in range(100)}  # a run of one folder ends at what cannot be made
    assert {name: found[name] for name in found.keys() - cut} == {
        name.decode(): name for name in names if not name.startswith(b"3/")
    }


def test_a_hole_takes_no_room_where_it_arrives(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    size = 64 << 20
    with (source / "holes").open("wb") as file:
        for at in (8 << 20, 40 << 20):
            file.seek(at)
            file.write(b"data" * 1000)
        file.truncate(size)
    (source / "hole").touch()
    os.truncate(source / "hole", size)
    _, receiver = copied(source, target, passes=True)
    assert receiver.size == 2 * size
    for name in ("holes", "hole"):
        assert (target / name).stat().st_size == size
        assert (target / name).stat().st_blocks * 512 <= (source / name).stat().st_blocks * 512 + (1 << 20)
    assert (target / "holes").read_bytes() == (source / "holes").read_bytes()


def test_a_machine_that_gives_no_thread_makes_the_files_all_the_same(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refused)
    target = tmp_path / "target"
    target.mkdir()
    copied(tree, target, passes=True)
    (tree / "fifo").unlink()
    assert look(target) == look(tree)


def test_a_file_arrives_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    target = tmp_path / "target"
    target.mkdir()
    copied(tmp_path / "one", target, passes=True, top="two")
    assert (target / "two").read_bytes() == b"1"


def test_what_is_in_the_way_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    source, target, away = tmp_path / "source", tmp_path / "target", tmp_path / "away"
    for folder in (source, target, away):
        folder.mkdir()
    (away / "file").write_text("kept")
    (source / "file").write_text("new")
    (target / "file").symlink_to(away / "file")
    copied(source, target, passes=True)
    assert ((away / "file").read_text(), (target / "file").read_text()) == ("kept", "new")
    assert not (target / "file").is_symlink()


@pytest.mark.parametrize("name", [b"../out", b"a/../../out", b"/../out", b"link/out"])
def test_no_name_leads_out_of_the_target(tmp_path: Path, name: bytes) -> None:
    target = tmp_path / "target"
    (target / "a").mkdir(parents=True)
    (target / "link").symlink_to(tmp_path)
    root = os.open(target, os.O_PATH)
    receiver = Receiver(Root(root), "")
    try:
        receiver.take([wire.Item(name, wire.FILE, 0o644, 0, 1, b"x")], [])
    except errors.AtollError:
        pass
    finally:
        receiver.close()
        os.close(root)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_counted(tree: Path) -> None:
    held = os.open(tree, os.O_PATH)
    try:
        files, size = count(held)
    finally:
        os.close(held)
    assert (files, size > 5 * wire.INLINE_BYTES) == (8 + 2 * wire.BATCH_ITEMS, True)


def test_owners_are_named_as_inside() -> None:
    ids = Ids(((0, 1000, 10),), ((0, 2000, 10),))
    assert (ids.here(5, 6), ids.inside(1005, 2006)) == ((1005, 2006), (5, 6))
    with pytest.raises(errors.InvalidArgument, match="owner 10"):
        ids.here(10, 0)
