"""`containerd-shim-atoll-v1`: Atoll's shim as a binary that a stock containerd starts.

    start    fork a shim (or join the pod's), print where it answers
    delete   remove a container whose shim is gone, print how it ended
    -v       the version
    -info    what the shim and its OCI runtime can do

The daemon reads stdout and stderr of `start` as one, so nothing else is printed, and the shim lets go of both.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import sys
from pathlib import Path

import atoll
from atoll import errors
from atoll.shim import bootstrap, cleanup, container, zygote
from atoll.shim.bootstrap import Bootstrap, Flags
from atoll.shim.fork import fork_shim
from atoll.shim.request import Fork, RuntimeChoice, ShimRequest

NAME = "io.containerd.atoll.v1"
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
JOIN_TIMEOUT_S = 0.1
ADDRESS_FILE = "address"


def main() -> None:
    """Do what the command line says; the exit code is 1, and one line is on stderr, where it fails."""
    try:
        flags = bootstrap.parse_flags(sys.argv[1:])
        _run(flags)
    except (errors.AtollError, OSError) as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        raise SystemExit(1) from error


def _run(flags: Flags) -> None:
    match flags.action:
        case "version":
            _print(f"{NAME} {atoll.__version__}\n".encode())
        case "info":
            _print(asyncio.run(cleanup.info(NAME, _stdin())))
        case "start":
            bootstrap.check(flags)
            told = bootstrap.read(flags, _stdin(), os.environ)
            _print(bootstrap.answer(told.form, start(flags, told, Path.cwd())))
        case "delete":
            bootstrap.check(flags)
            bundle = Path(flags.bundle) if flags.bundle else Path.cwd()
            _print(asyncio.run(cleanup.delete(flags.id, flags.namespace, bundle)))
        case _:
            raise errors.InvalidArgument("nothing to do: give start, delete, -v or -info")


def start(flags: Flags, told: Bootstrap, bundle: Path) -> str:
    """The address of the shim for this bundle: the pod's, where it lives, else a new one's."""
    path = socket_path(told, flags.namespace, group_of(flags.id, bundle))
    address = f"unix://{path}"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _answers(path):
        request = ShimRequest(
            id=flags.id,
            namespace=flags.namespace,
            bundle=str(bundle),
            socket=str(path),
            debug=told.debug,
            ttrpc_address=told.ttrpc_address,
            runtime=_choice(told, flags.namespace),
        )
        part = zygote.prepare()
        zygote.freeze()
        try:
            os.close(fork_shim(Fork(number=0, shim=request), part).pidfd)
        except errors.AlreadyExists:
            pass  # another container of the pod was faster
    if told.form == "address":
        (bundle / ADDRESS_FILE).write_text(address, encoding="utf-8")
    return address


def group_of(instance: str, bundle: Path) -> str:
    """What shares a shim: the containers of a pod by its id, else a container alone, or a sandbox without a spec."""
    try:
        annotations = container.read_spec(bundle).annotations
    except errors.NotFound:
        # containerd's `sandboxer = "shim"` writes none for the sandboxes of its CRI.
        return instance
    return next((annotations[key] for key in GROUP_ANNOTATIONS if annotations.get(key)), instance)


def socket_path(told: Bootstrap, namespace: str, group: str) -> Path:
    """The socket of a group's shim, the same for whoever asks."""
    name = hashlib.sha256(os.path.normpath(f"{told.grpc_address}/{namespace}/{group}").encode()).hexdigest()
    return Path(told.socket_dir) / name


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(JOIN_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _choice(told: Bootstrap, namespace: str) -> RuntimeChoice:
    options = told.options
    root = str(Path(options.root) / namespace) if options.root else ""
    return RuntimeChoice(binary=options.binary_name, root=root, systemd_cgroup=options.systemd_cgroup)


def _stdin() -> bytes:
    return sys.stdin.buffer.read(bootstrap.STDIN_LIMIT_BYTES)


def _print(answer: bytes) -> None:
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
