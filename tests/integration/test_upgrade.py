"""The daemon is replaced by a newer one while pods run and calls wait; the way back is refused, and breaks nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.conftest import Daemon, Roots
from tests.integration.cri_client import CRI, eventually
from tests.integration.newer import FAILING, MIGRATION, VERSION, copy_of_atoll

WAIT_LIMIT_S = 60.0


class Waiting(threading.Thread):
    """A client that waits for an exit, and asks again while no daemon answers."""

    def __init__(self, cri: CRI, container: str) -> None:
        super().__init__(daemon=True)
        self._cri, self._container = cri, container
        self.code: int | None = None
        self.asked = 0
        self.begun = threading.Event()
        self.start()
        assert self.begun.wait(WAIT_LIMIT_S)

    def run(self) -> None:
        while self.code is None:
            self.asked += 1
            self.begun.set()
            try:
                self.code = self._cri.wait(self._container, timeout=WAIT_LIMIT_S).code
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                threading.Event().wait(0.05)


def tables(roots: Roots) -> dict[str, int]:
    with closing(sqlite3.connect(roots.root / "state.db")) as db:
        return dict(db.execute("SELECT component, version FROM schema"))


def version_of(cri: CRI) -> str:
    """Asked until the channel, which others use meanwhile, is connected again."""
    found: list[str] = []

    def answers() -> bool:
        try:
            found.append(cri.runtime.call("Version", pb.VersionRequest(), pb.VersionResponse).runtime_version)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        return bool(found)

    eventually(answers, "the daemon answers", within=WAIT_LIMIT_S)
    return found[0]


def refused(daemon: Daemon, roots: Roots) -> str:
    """Start a daemon that must end by itself with an error; what it said."""
    roots.log.write_text("")
    daemon.launch()
    eventually(lambda: not daemon.is_running(), "the daemon has ended", within=WAIT_LIMIT_S)
    daemon.kill()
    return roots.log.read_text()


def test_a_newer_daemon_takes_over_and_an_older_one_is_refused(
    cri: CRI, daemon: Daemon, roots: Roots, tmp_path: Path
) -> None:
    pod = cri.run_pod(cri.pod_config())
    made = cri.create(pod, cri.container_config("/bin/sh", "-c", "exit 5"))
    running = cri.script(pod, "while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 7")
    before, older = tables(roots), version_of(cri)
    waiting = Waiting(cri, running)

    daemon.stop()
    daemon.wrapper = copy_of_atoll(tmp_path / "newer", migration=MIGRATION)
    daemon.start()
    assert version_of(cri) == VERSION != older
    assert tables(roots) == {**before, "container": before["container"] + 1}
    with closing(sqlite3.connect(roots.root / "state.db")) as db:
        assert {row[0] for row in db.execute("SELECT id FROM upgraded")} == {made, running}
    assert cri.status(running).state == pb.CONTAINER_RUNNING
    assert cri.sh(running, "echo here") == "here", "the shim is of the older version, and answers"
    cri.start(made)
    assert cri.wait(made).code == 5
    another = cri.run_pod(cri.pod_config())
    assert cri.wait(cri.script(another, "exit 3")).code == 3
    cri.sh(running, "touch /tmp/go")
    waiting.join(WAIT_LIMIT_S)
    assert (waiting.code, waiting.asked > 1) == (7, True)

    daemon.stop()
    newer, daemon.wrapper = daemon.wrapper, ()
    kept = (roots.root / "state.db").read_bytes()
    said = refused(daemon, roots)
    assert "container tables have version" in said
    assert "newer atoll" in said
    assert "Traceback" not in said
    assert (roots.root / "state.db").read_bytes() == kept
    daemon.wrapper = newer
    daemon.start()
    for one in (pod, another):
        cri.remove_pod(one)
    assert cri.fsck() == []


def test_a_migration_that_fails_changes_nothing(cri: CRI, daemon: Daemon, roots: Roots, tmp_path: Path) -> None:
    pod = cri.run_pod(cri.pod_config())
    running = cri.script(pod, "sleep 1000")
    daemon.stop()
    kept = (roots.root / "state.db").read_bytes()
    daemon.wrapper = copy_of_atoll(tmp_path / "broken", migration=FAILING)
    assert "state.db" in refused(daemon, roots)
    assert (roots.root / "state.db").read_bytes() == kept
    daemon.wrapper = ()
    daemon.start()
    assert cri.status(running).state == pb.CONTAINER_RUNNING
    assert cri.fsck() == []


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from atoll import database
from atoll.database import Database, Schema

class Deadly(list):
    def __iter__(self):
        for number, statement in enumerate([*super().__iter__(), None]):
            if number == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            if statement is not None:
                yield statement

statements = database._statements
database._statements = lambda script: Deadly(statements(script)) if "more" in script else statements(script)
old = "CREATE TABLE notes (text TEXT PRIMARY KEY);"
new = "CREATE TABLE more (a); INSERT INTO more SELECT text FROM notes; DELETE FROM notes;"
asyncio.run(Database.open(Path(sys.argv[1]), (Schema(component="notes", migrations=(old, new)),)))
"""


@pytest.mark.parametrize("statement", range(4))
def test_a_migration_that_is_killed_changes_nothing(tmp_path: Path, statement: int) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(
            "PRAGMA journal_mode = WAL; CREATE TABLE notes (text TEXT PRIMARY KEY); INSERT INTO notes VALUES ('kept');"
            "CREATE TABLE schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL);"
            "INSERT INTO schema VALUES ('notes', 1);"
        )
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(statement)], check=False, timeout=60)
    assert done.returncode == -9
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM notes").fetchall() == [("kept",)]
        assert db.execute("SELECT version FROM schema WHERE component = 'notes'").fetchall() == [(1,)]
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name IN ('more', 'quarantine')").fetchall()
