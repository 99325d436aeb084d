"""What can be wrong, from the command line: one line that names the thing and the way out, a code, nothing left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.integration.conftest import BIN, Daemon, Roots
from tests.integration.cri_client import connected
from tests.integration.leaks import wait_until
from tests.integration.registry import running_registry

pytestmark = pytest.mark.shared_daemon


NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""A command that executes the rest of its line as a user who may read everything, wherever this clone lies."""


def told(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It failed, in one line with all of these words, and with no traceback."""
    assert done.returncode not in (0, 1, 2), done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is missing in {lines[0]!r}"


def nothing_is_left(daemon: Daemon) -> None:
    assert json.loads(daemon.run("ps", "--all", "--json").stdout) == []
    check = daemon.run("fsck")
    assert check.returncode == 0, check.stdout
    for name in ("netns", "pods", "shims", "bundles", "s"):
        folder = daemon.roots.state / name
        assert not folder.exists() or not [one for one in os.listdir(folder) if not one.startswith("pool-")], name


@pytest.fixture
def started(roots: Roots) -> Iterator[Daemon]:
    """A daemon whose configuration the test chooses before it starts it."""
    daemon = Daemon(roots)
    try:
        yield daemon
        if daemon.is_running():
            assert daemon.stop() == 0, daemon.log_tail()
    finally:
        daemon.kill()


def test_an_unknown_image(daemon: Daemon) -> None:
    told(daemon.run("run", "--pull", "never", "nowhere/nothing:1", "true"), "nowhere/nothing", "atoll pull")
    nothing_is_left(daemon)


def test_a_registry_that_is_not_there(daemon: Daemon) -> None:
    told(daemon.run("run", "127.0.0.1:1/nothing:1", "true"), "127.0.0.1:1", "check the address")
    nothing_is_left(daemon)


def test_an_image_that_its_registry_does_not_have(started: Daemon) -> None:
    roots = started.roots
    with running_registry(roots.base / "registry") as registry:
        with roots.config.open("a") as file:
            file.write(f'[images.registries."{registry.address}"]\nplain_http = true\n')
        started.start()
        wanted = f"{registry.address}/nobody/has:it"
        told(started.run("run", wanted, "true"), wanted, "check the name and the tag")
        told(started.run("pull", wanted), wanted, "check the name and the tag")
    nothing_is_left(started)


@pytest.mark.parametrize(
    ("reference", "way_out"),
    [
        ("UPPER/case", "write it in lower case"),
        ("image:", "name a tag after it, or leave it out"),
        ("BAD::ref", "a `:` stands once"),
        ("a//b", "joined by `.`, `_`, `-` or one `/`"),
        ("x@sha256:12", "64 hexadecimal"),
        ("-x", "write small letters and digits"),
        ("a b", "write small letters and digits"),
        ("", "as in atoll/busybox"),
    ],
)
def test_a_bad_reference(daemon: Daemon, reference: str, way_out: str) -> None:
    told(daemon.run("run", "--", reference, "true"), repr(reference)[1:-1], "image", way_out)
    nothing_is_left(daemon)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_command_that_is_not_in_the_image(started: Daemon, runtime: str) -> None:
    with started.roots.config.open("a") as file:
        file.write(f'[runtimes.atoll]\noci_runtime = "{runtime}"\n')
    started.start()
    for command, code, words in (
        ("/no/such/program", 127, ["is not in", "name a program"]),
        ("nope", 127, ["is not in", "name a program"]),
        ("/etc/passwd", 126, ["cannot be executed", "permission denied", "its mode"]),
    ):
        done = started.run("run", "--network", "none", "atoll/busybox", command)
        told(done, f"command {command!r}", "atoll/busybox", *words)
        assert done.returncode == code
    told(started.run("run", "--network", "none", "-w", "/etc/passwd", "atoll/busybox", "true"), "'/etc/passwd'")
    nothing_is_left(started)
    up = started.run("run", "--network", "none", "-d", "--name", "one", "atoll/busybox", "sleep", "1000")
    assert up.returncode == 0, up.stderr
    for command, code in (("/no/such/program", 127), ("/etc/passwd", 126)):
        done = started.run("exec", "one", command)
        told(done, f"command {command!r}", "container one", "atoll/busybox")
        assert done.returncode == code
    with connected(started.roots) as cri:
        with pytest.raises(grpc.RpcError) as refused:
            cri.exec(up.stdout.strip(), "/no/such/program")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert started.run("rm", "-f", "one").returncode == 0
    nothing_is_left(started)


def test_a_port_in_use(daemon: Daemon) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        told(
            daemon.run("run", "--publish", f"{port}:80", "atoll/busybox", "true"), str(port), "in use", "choose another"
        )
    nothing_is_left(daemon)


def test_an_unknown_runtime_handler(daemon: Daemon) -> None:
    told(daemon.run("run", "--runtime", "kata", "atoll/busybox", "true"), "'kata'", "atoll")
    nothing_is_left(daemon)


def test_a_mount_of_what_is_not_there(daemon: Daemon) -> None:
    told(daemon.run("run", "--volume", "relative:/x", "atoll/busybox", "true"), "'relative'", "absolute")
    missing = daemon.roots.base / "missing"
    told(daemon.run("run", "--volume", f"{missing}:/x", "atoll/busybox", "true"), str(missing), "make it first")
    assert not missing.exists()
    nothing_is_left(daemon)


def test_unknown_pods_and_containers(daemon: Daemon) -> None:
    for words in (["logs", "zzz"], ["exec", "zzz", "true"]):
        told(daemon.run(*words), "container 'zzz'", "atoll ps -a")
    for command in ("inspect", "phases", "stop", "rm"):
        told(daemon.run(command, "zzz"), "pod or container 'zzz'", "atoll ps -a")


def test_an_exec_where_nothing_runs(daemon: Daemon) -> None:
    done = daemon.run("run", "--network", "none", "--keep", "--name", "over", "atoll/busybox", "true")
    assert done.returncode == 0, done.stderr
    told(daemon.run("exec", "over", "true"), "is not running", "atoll logs", "atoll run")
    assert daemon.run("rm", "over").returncode == 0
    nothing_is_left(daemon)


def test_output_that_cannot_be_written(daemon: Daemon) -> None:
    kept = ["run", "--network", "none", "--keep", "--name", "said", "atoll/busybox", "echo", "hi"]
    assert daemon.run(*kept).returncode == 0
    env = {**os.environ, "ATOLL_SOCKET": str(daemon.roots.socket)}
    passing = ["run", "--network", "none", "atoll/busybox", "echo", "hi"]
    asking = (["ps", "-a"], ["logs", "said"], ["version"], ["images", "--json"], ["--help"])
    for words in (*asking, passing):
        command = [str(BIN / "atoll"), *words]
        with open("/dev/full", "wb", buffering=0) as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=env)
        told(done, "the output cannot be written: No space left on device")
        assert done.returncode == 125
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=env)
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")
    assert daemon.run("rm", "said").returncode == 0
    nothing_is_left(daemon)


def test_a_user_who_is_not_root(daemon: Daemon) -> None:
    socket_path = "/run/atoll-of-root.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(socket_path)
        os.chmod(socket_path, 0o600)
        try:
            server.listen()
            for words, env in (
                (["--socket", socket_path, "ps"], {}),
                (["ps", "--socket", socket_path], {}),
                (["ps"], {"ATOLL_SOCKET": socket_path}),
            ):
                done = subprocess.run(
                    [*NOBODY, str(BIN / "atoll"), *words],
                    env={**os.environ, **env},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                told(done, socket_path, "run as root (sudo)")
        finally:
            os.unlink(socket_path)


# --- what a daemon is started with ---


def serve(roots: Roots, **paths: object) -> subprocess.CompletedProcess[str]:
    """Start a daemon that must refuse."""
    chosen = {"root": roots.root, "state": roots.state, "socket": roots.socket, "config": roots.config, **paths}
    options = [word for name, path in chosen.items() for word in (f"--{name}", str(path))]
    return subprocess.run(
        [str(BIN / "atoll"), "serve", *options], capture_output=True, text=True, check=False, timeout=30
    )


def test_no_cni_plugin(started: Daemon) -> None:
    roots = started.roots
    roots.config.write_text(
        f'cgroup_parent = "/{roots.prefix}"\n'
        f'[network]\nconf_dir = "{roots.conf_dir}"\nbin_dirs = ["{roots.base}/empty"]\n'
    )
    started.start()
    told(started.run("run", "atoll/busybox", "true"), "cni plugin bridge", f"{roots.base}/empty", "install it")
    nothing_is_left(started)
    done = started.run("run", "--network", "none", "atoll/busybox", "echo", "still")
    assert (done.returncode, done.stdout) == (0, "still\n"), done.stderr


def test_a_missing_oci_runtime(started: Daemon) -> None:
    with started.roots.config.open("a") as file:
        file.write('[runtimes.atoll]\noci_runtime = "/no/such/runtime"\n')
    started.start()
    told(started.run("run", "atoll/busybox", "true"), "/no/such/runtime", "install")
    nothing_is_left(started)
    with connected(started.roots) as cri:
        assert cri.list_pods() == []


def test_a_config_file_with_a_typo(roots: Roots) -> None:
    roots.config.write_text('[network]\ncon_dir = "/x"\n')
    told(serve(roots), str(roots.config), "line 2", "'con_dir'", "did you mean 'conf_dir'")
    roots.config.write_text("[network\n")
    told(serve(roots), str(roots.config), "not TOML")
    told(serve(roots, config=roots.base / "none.toml"), "none.toml")
    assert not list(roots.state.glob("*.sock"))


def test_a_sandboxer_that_nobody_knows(roots: Roots) -> None:
    roots.write_config()
    with roots.config.open("a") as file:
        file.write('[runtimes.atoll]\nsandboxer = "microvm"\n')
    told(serve(roots), "microvm", "podsandbox")


def test_a_dead_daemons_socket_is_taken_over(roots: Roots) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(roots.socket))
    daemon = Daemon(roots)
    daemon.start()  # takes the place of the dead one
    assert daemon.run("ps").returncode == 0
    assert daemon.stop() == 0


def test_a_file_at_the_place_of_the_socket(roots: Roots) -> None:
    roots.socket.write_text("precious")
    told(serve(roots), str(roots.socket), "no socket", "choose another path")
    assert roots.socket.read_text() == "precious"


def test_a_state_folder_that_cannot_be_one(roots: Roots) -> None:
    blocked = roots.base / "file"
    blocked.write_text("")
    told(serve(roots, state=blocked / "state"), str(blocked))
    told(serve(roots, root=blocked / "root"), str(blocked))


@pytest.mark.slow
def test_a_full_disk(started: Daemon) -> None:
    roots = started.roots
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(roots.root)], check=True)
    try:
        started.start()
        assert started.run("run", "--network", "none", "atoll/busybox", "true").returncode == 0
        filler = roots.root / "filler"
        fill(filler)
        done = started.run("run", "--network", "none", "atoll/busybox", "true")
        told(done, str(roots.root), "space")
        filler.unlink()
        nothing_is_left_within(started)
        done = started.run("run", "--network", "none", "atoll/busybox", "echo", "again")
        assert (done.returncode, done.stdout) == (0, "again\n"), done.stderr
        nothing_is_left(started)
        assert started.stop() == 0
    finally:
        started.kill()
        subprocess.run(["umount", "-l", str(roots.root)], check=False)


def fill(path: Path) -> None:
    """Take all the space of a small disk."""
    with path.open("wb", buffering=0) as file:

        def write() -> None:
            while True:
                file.write(bytes(4096))

        with pytest.raises(OSError, match="No space"):
            write()


def nothing_is_left_within(daemon: Daemon) -> None:
    """Debts of a full disk are paid by themselves once there is space."""
    wait_until(lambda: daemon.run("fsck").returncode == 0, within=30)
    nothing_is_left(daemon)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "--memory", "99999999999999999999", "atoll/busybox"), "more bytes than any machine has"),
        (("run", "--cpus", "1e300", "atoll/busybox"), "at most 65536"),
        (("run", "atoll/busybox", "echo", "\udcff"), "argument 4, b'\\xff': is not UTF-8"),
        (("pull", "a/\udcff"), "argument 2"),
    ],
)
def test_numbers_and_bytes_that_nothing_can_be_made_of(daemon: Daemon, words: tuple[str, ...], told: str) -> None:
    done = daemon.run(*words)
    assert (done.returncode, done.stdout) == (125, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
