"""The configuration file: what is wrong with it is told with the file, the place and the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll import config, errors

TWO = """# two handlers
default_runtime = "a"

[runtimes.a]
systemd_cgroup = true

[runtimes.b] # the other one
oci_runtime = "crun"
systemd_cgroup = "no"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_without_a_file_of_its_own_every_key_has_its_default(file: Path) -> None:
    file.write_text("")
    assert config.load(file) == config.Config()
    assert config.load(file).socket_path == Path("/run/atoll/atoll.sock")


def test_the_socket_follows_the_state_folder(file: Path) -> None:
    file.write_text('state = "/run/other"\n')
    assert config.load(file).socket_path == Path("/run/other/atoll.sock")


def test_a_pipe_is_no_file_and_nothing_is_one_without_keys(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.InvalidArgument, match="is a pipe"):
        config.load(tmp_path / "pipe")
    with pytest.raises(errors.InvalidArgument, match="Is a directory"):
        config.load(tmp_path)
    assert config.load(Path("/dev/null")) == config.Config()


def test_a_missing_file_that_was_named_is_not_found(file: Path) -> None:
    with pytest.raises(errors.NotFound, match=r"config\.toml: no such config file"):
        config.load(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('rot = "/x"', r"config\.toml: line 1: unknown key 'rot'; did you mean 'root'\?"),
        ("[network]\n\npool_sise = 3", r"line 3: unknown key 'pool_sise'; did you mean 'pool_size'\?"),
        ('[runtimes.kata]\nshimm = "x"', r"line 2: unknown key 'shimm'; did you mean 'shim'\?"),
        ('[images.registries."a.example"]\nzzzz = 1', r"line 2: unknown key 'zzzz'; known here: plain_http, "),
        ("pods_per_shim = 0", r"pods_per_shim = 0: must be 1 to 1024"),
        ("root = 5", r"config\.toml: line 1: root: must be a text in quotes, and is a whole number"),
        (
            '[network]\nbin_dirs = "x"',
            r'line 2: \[network\] bin_dirs: must be a list, as in \["a", "b"\], and is a text$',
        ),
        ("[network]\nbin_dirs = [1]", r"line 2: \[network\] bin_dirs: each item must be a text in quotes"),
        ("network = 3", r"line 1: network: must be a table, and is a whole number"),
        ('[runtimes.kata]\nsystemd_cgroup = "no"', r"line 2: \[runtimes\.kata\] systemd_cgroup: must be true or false"),
        ('log_level = "loud"', r"line 1: log_level: 'loud' is none of debug, info, warning, error"),
        ("root =", r"config\.toml: line 1: is not TOML: "),
        ("pods_per_shim = 3\n\nroot", r"line 3: is not TOML: "),
        (TWO, r"line 9: \[runtimes\.b\] systemd_cgroup: must be true or false, and is a text$"),
        (
            "[network]\npool_size = 3\n\n[streaming]\nport = 70000",
            r"line 5: \[streaming\] port = 70000: must be 0 to 65535",
        ),
        (
            "[metrics]\naddress = '0.0.0.0:9417'",
            r"line 2: \[metrics\] address '0\.0\.0\.0:9417': must be of the loopback",
        ),
        ("[metrics]\naddress = ':9417'", r"\[metrics\] address ':9417': must be a path, or an IP and a port"),
        ("[metrics]\naddress = '127.0.0.1:0'", r"\[metrics\] address '127\.0\.0\.1:0': must be a path, or an IP"),
        (f"[metrics]\naddress = '/{'x' * 107}'", r"\[metrics\] address /x+: is longer than 107 bytes"),
        ("[telemetry]\nendpoint = 'localhost:4318'", r"\[telemetry\] endpoint 'localhost:4318': must be a URL"),
        ("[telemetry]\nsample_ratio = 1.5", r"\[telemetry\] sample_ratio = 1\.5: must be 0 to 1"),
        ("[network]\nbin_dirs = ['bin']", r"line 2: \[network\] bin_dirs: 'bin' must be an absolute path"),
        (
            "[network]\ndefault_subnet = '10.0.0.1/8'",
            r"line 2: \[network\] default_subnet: 10\.0\.0\.1/8 has host bits",
        ),
        ("[images]\npinned = ['a b']", r"line 2: \[images\] pinned: 'a b' is no image reference"),
        (
            "[images.registries.'a.example']\nplain_http = true\nmirrors = ['ok:5000/x', 'http://b']",
            r"line 3: \[images\.registries\.\"a\.example\"\] mirrors: 'http://b' must be HOST, ",
        ),
        ("[images.registries]\n'a/b' = {}", r"line 2: \[images\.registries\] a/b: is no HOST, HOST:PORT or \*"),
        ("runtimes = { atoll = { sandboxer = 'shmi' } }", r"line 1: \[runtimes\.atoll\] sandboxer 'shmi': is none of "),
        ("runtimes.atoll.sandboxer = 'shmi'", r"line 1: \[runtimes\.atoll\] sandboxer 'shmi': is none of "),
        ('root = "var/lib"', r"root = 'var/lib': must be an absolute path"),
        ('default_runtime = "kata"', r"default_runtime 'kata' is not among \[runtimes\]: atoll"),
        ('cgroup_parent = "/a/../b"', r"cgroup_parent '/a/\.\./b': must be like /atoll"),
        (f'socket = "/{"x" * 107}"', r"is longer than 107 bytes; choose a shorter path"),
        ('[runtimes.atoll]\nsandboxer = "shmi"', r"\[runtimes\.atoll\] sandboxer 'shmi': is none of "),
        (
            '[runtimes.atoll]\nshim = "io.containerd.runc.v2"',
            r'has no sandbox service; give .* sandboxer = "podsandbox"',
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(errors.InvalidArgument, match=said):
        config.load(file)
