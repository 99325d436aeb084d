#!/usr/bin/env python3
"""Make this machine and this clone ready: `setup.py run` for running Atoll, `setup.py tests` for testing it too,
`setup.py guest` for testing it in virtual machines as well.

It installs what is missing with apt where it may (root, apt-get present) and says what to type where it may
not; makes `.venv` with the locked dependencies and Atoll itself. A second run finds that all is there
and changes nothing. It needs only the standard library of Python 3.9 or newer.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
from typing import NoReturn

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
STAMP = VENV / ".atoll-setup"
OLDEST_PYTHON = (3, 11)
APT_TIMEOUT_S = 20 * 60
PIP_TIMEOUT_S = 20 * 60
SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_SERVICE_POLICY = pathlib.Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# written by Atoll's set-up while it installs test tools; removed at its end\nexit 101\n"


@dataclasses.dataclass(frozen=True)
class Need:
    """A thing this machine must have: any one of `found_as` (a command's name or an absolute path) proves it."""

    found_as: tuple[str, ...]
    package: str
    purpose: str

    def is_met(self) -> bool:
        return any(
            os.path.exists(name) if name.startswith("/") else shutil.which(name, path=SEARCH_PATH)
            for name in self.found_as
        )


RUN_NEEDS = (
    Need(("crun", "runc"), "crun", "the OCI runtime that starts containers"),
    Need(
        ("/usr/lib/cni/bridge", "/opt/cni/bin/bridge"),
        "containernetworking-plugins",
        "the CNI plugins that connect a pod to its network",
    ),
    Need(("iptables",), "iptables", "masquerading and published ports, used by CNI plugins"),
    Need(("skopeo",), "skopeo", "pulls images from registries"),
    Need(
        ("/bin/busybox", "/usr/bin/busybox"), "busybox-static", "the static program in the built-in image atoll/busybox"
    ),
    Need(("/etc/ssl/certs/ca-certificates.crt",), "ca-certificates", "the certificates that registries are checked by"),
)
TEST_NEEDS = (
    *RUN_NEEDS,
    Need(("runc",), "runc", "the second OCI runtime that the tests drive"),
    Need(("crun",), "crun", "the first OCI runtime that the tests drive"),
    Need(("containerd",), "containerd", "a real client of the shim, and a peer to compare with"),
    Need(("ctr",), "containerd", "containerd's command line"),
    Need(("containerd-shim-runc-v2",), "containerd", "a real shim that Atoll drives"),
    Need(("docker-registry",), "docker-registry", "a real registry to pull from"),
    Need(("openssl",), "openssl", "makes the certificates of the test registries"),
    Need(("htpasswd",), "apache2-utils", "makes the passwords of the test registries"),
    Need(("nft",), "nftables", "lists the firewall's rules for the leak guard"),
    Need(("bwrap",), "bubblewrap", "an example of a sandboxer drives it"),
    Need(("ip",), "iproute2", "makes test networks"),
    Need(("zstd",), "zstd", "makes zstd layers"),
    Need(("setfattr",), "attr", "extended attributes in test layers"),
    Need(("criu",), "criu", "checkpoints of the OCI runtimes"),
    Need(("strace",), "strace", "records what the stores write, for the test of power losses"),
    Need(("pgrep",), "procps", "finds processes that tests made"),
)
GUEST_NEEDS = (
    *TEST_NEEDS,
    Need(("qemu-system-x86_64",), "qemu-system-x86", "runs the virtual machines"),
    Need(("debootstrap",), "debootstrap", "makes their disk"),
    Need(("mke2fs",), "e2fsprogs", "makes their disk's file system"),
)
NEEDS = {"run": RUN_NEEDS, "tests": TEST_NEEDS, "guest": GUEST_NEEDS}


def main() -> None:
    """Set up for the level on the command line; ends with status 1 and one message where that cannot be."""
    parser = argparse.ArgumentParser(description="make this machine and this clone ready for Atoll")
    parser.add_argument("level", choices=tuple(NEEDS), help="what to be ready for")
    level = parser.parse_args().level
    python = find_python()
    install_packages(NEEDS[level], python)
    make_venv("run" if level == "run" else "tests", python)


def stop(message: str) -> NoReturn:
    print(f"setup: {message}", file=sys.stderr)
    raise SystemExit(1)


def tell(message: str) -> None:
    print(f"setup: {message}", flush=True)


def find_python() -> str:
    """The interpreter for .venv: the system's where it is new enough, else this one, else a newer one by name."""
    for candidate in ("/usr/bin/python3", sys.executable, "python3.14", "python3.13", "python3.12", "python3.11"):
        path = shutil.which(candidate)
        if path and python_version(path) >= OLDEST_PYTHON:
            return path
    oldest = ".".join(map(str, OLDEST_PYTHON))
    stop(f"no Python {oldest} or newer found; install one (on Debian 12: apt-get install python3), then run this again")


def python_version(path: str) -> tuple[int, ...]:
    if os.path.realpath(path) == os.path.realpath(sys.executable):
        return tuple(sys.version_info[:2])
    code = "import sys; print(*sys.version_info[:2])"
    answer = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return tuple(int(part) for part in answer.stdout.split()) if answer.returncode == 0 else (0, 0)


def venv_need(python: str) -> Need:
    """What `python -m venv` takes: Debian packs pip's part of it separately."""
    if os.path.realpath(python).startswith("/usr/bin/"):
        stdlib = sysconfig.get_path("stdlib") if os.path.realpath(sys.executable) == os.path.realpath(python) else ""
        name = os.path.basename(os.path.realpath(python))
        ensurepip = pathlib.Path(stdlib or f"/usr/lib/{name}") / "ensurepip" / "__init__.py"
        return Need((str(ensurepip), str(VENV / "bin" / "pip")), "python3-venv", "makes .venv")
    return Need((python,), "python3-venv", "makes .venv")


def install_packages(needs: tuple[Need, ...], python: str) -> None:
    """Install the Debian packages of the needs that are not met; nothing installed is ever removed for them."""
    missing = [need for need in (venv_need(python), *needs) if not need.is_met()]
    if not missing:
        return
    packages = sorted({need.package for need in missing})
    by_hand = f"apt-get install {' '.join(packages)}"
    if shutil.which("apt-get", path=SEARCH_PATH) is None:
        stop("this machine lacks\n" + listing(missing) + "install them with its package manager, then run this again")
    if os.geteuid() != 0:
        stop("this machine lacks\n" + listing(missing) + f"as root, type\n    {by_hand}\nthen run this again")
    tell(f"installing {' '.join(packages)}")
    with_policy = not NO_SERVICE_POLICY.exists() or NO_SERVICE_POLICY.read_text() == POLICY_TEXT
    if with_policy:  # a tool that the tests start by hand must not start as a service of this machine
        NO_SERVICE_POLICY.write_text(POLICY_TEXT)
        NO_SERVICE_POLICY.chmod(0o755)
    try:
        apt("update", "--quiet")
        apt("install", "--quiet", "--yes", "--no-install-recommends", "--no-remove", *packages)
    finally:
        if with_policy:
            NO_SERVICE_POLICY.unlink()
    if still := [need for need in missing if not need.is_met()]:
        stop(f"after {by_hand} this machine still lacks\n" + listing(still))


def listing(needs: list[Need]) -> str:
    return "".join(f"    {need.found_as[0]:28} (Debian package {need.package}): {need.purpose}\n" for need in needs)


def apt(*arguments: str) -> None:
    """Run apt-get silently; where it fails, end with the reason it gives and the command to try by hand."""
    command = ["apt-get", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
    finished = run(command, APT_TIMEOUT_S, environment)
    if finished.returncode != 0:
        reasons = [line for line in finished.stdout.splitlines() if line.startswith(("E:", "W:", "Err:"))]
        stop(
            f"{' '.join(command)} failed; is the package archive reachable from this machine?\n"
            + "".join(f"    {line}\n" for line in reasons[-6:] or finished.stdout.splitlines()[-6:])
            + "put that right, then run this again"
        )


def run(command: list[str], timeout_s: int, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        stop(f"{' '.join(command[:3])} was not done after {timeout_s} s; check the network, then run this again")


def make_venv(level: str, python: str) -> None:
    """Bring .venv to what the lock files say; the stamp tells that it is so already."""
    lock = REPOSITORY / ("requirements.lock" if level == "run" else "requirements-dev.lock")
    wanted = fingerprint(python)
    done = STAMP.read_text().split() if STAMP.exists() else []
    if done[:1] == [wanted] and level in done[1:] and (VENV / "bin" / "atoll").exists():
        return
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    STAMP.unlink(missing_ok=True)
    if not (VENV / "bin" / "python").exists() or python_version(str(VENV / "bin" / "python")) < OLDEST_PYTHON:
        tell(f"making .venv with {python}")
        call([python, "-m", "venv", "--clear", str(VENV)], environment)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    tell(f"installing the dependencies that {lock.name} pins")
    call([*pip, "--require-hashes", "--only-binary=:all:", "--requirement", str(lock)], environment)
    call([*pip, "--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY)], environment)
    levels = {"run", level} | (set(done[1:]) if done[:1] == [wanted] else set())
    STAMP.write_text(" ".join([wanted, *sorted(levels)]))


def fingerprint(python: str) -> str:
    digest = hashlib.sha256(os.path.realpath(python).encode())
    for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock", "scripts/setup.py"):
        digest.update((REPOSITORY / name).read_bytes())
    digest.update(str(REPOSITORY).encode())  # a venv does not survive being moved
    return digest.hexdigest()


def call(command: list[str], environment: dict[str, str]) -> None:
    finished = run(command, PIP_TIMEOUT_S, environment)
    if finished.returncode != 0:
        stop(f"{' '.join(command[:4])} ... failed:\n{finished.stdout.strip()}\nput that right, then run this again")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    main()
