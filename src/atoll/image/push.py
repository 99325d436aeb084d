"""Pushing: an image of the store to its registry, by skopeo.

skopeo reads a folder of its `dir` transport (containers-transports(5)), whose files are links to our blobs, so nothing
is copied. It asks the registry for each blob first and sends what is missing; the manifest's digest stays as it is.
How far it is, is told by the position at which it has a blob's file open (proc(5), fdinfo).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from atoll import errors
from atoll.concurrency import run_to_completion
from atoll.image.config import Auth
from atoll.image.model import digest_of
from atoll.image.outward import Held, Outward
from atoll.image.process import Program, running
from atoll.image.progress import OnProgress, Phase, Progress
from atoll.image.reference import Reference
from atoll.image.registry_errors import complaint, translate
from atoll.image.skopeo import Skopeo

LOOK_S = 0.1
CLEAN_UP_TIMEOUT_S = 30.0
LOGIN_TIMEOUT_S = 60.0
VERSION = "Directory Transport Version: 1.1\n"
_COPYING = re.compile(r"^Copying (?:blob|config) (sha256:[0-9a-f]{64})", re.MULTILINE)


async def push(store: Outward, held: Held, target: Reference, auth: Auth | None, on_progress: OnProgress) -> str:
    """Send an image to the registry of `target`; the digest of its manifest there.

    Raises `Unauthenticated`, `PermissionDenied`, `Unavailable` (the registry), `DeadlineExceeded` (no progress),
    `InvalidArgument` for a name with a digest.
    """
    if target.digest is not None or target.tagged is None:
        raise errors.InvalidArgument(f"{target}: a digest is what an image is; push it by a tag")
    async with _skopeo(store, target, auth) as (skopeo, folder):
        source = folder / "image"
        await store.pool.run(_lay_out, source, store, held)
        arguments = [
            *skopeo.command(), "copy", "--preserve-digests",
            "--dest-authfile", str(folder / "auth.json"), "--dest-cert-dir", str(folder / "certs"),
            f"dir:{source}", f"docker://{target}",
        ]  # fmt: skip
        async with running(store.pool, arguments, skopeo.environment()) as program:
            code = await _watched(program, held, source, store.settings.limits.stall_timeout_s, target, on_progress)
            if code != 0:
                raise translate(complaint(program.complaints()), target, has_auth=skopeo.has_auth)
    for blob in (held.manifest.config, *held.manifest.layers):
        on_progress(Progress(digest=blob.digest, phase=Phase.DONE, done=blob.size, total=blob.size))
    return digest_of(held.document)


async def log_in(store: Outward, registry: str, auth: Auth) -> None:
    """Ask a registry whether it takes a name and a password; raises as `push`, and keeps nothing."""
    reference = Reference.parse(f"{registry}/login")
    async with _skopeo(store, reference, auth) as (skopeo, folder):
        answers = folder / "login.json"
        certificates = ["--cert-dir", str(folder / "certs")]
        who = ["--username", auth.username, "--password-stdin"]
        lax = ["--tls-verify=false"] if skopeo.is_lax else []
        arguments = [*skopeo.command(), "login", "--authfile", str(answers), *certificates, *lax, *who, registry]
        secret = os.memfd_create("atoll-login")
        try:
            os.write(secret, auth.password.encode())
            os.lseek(secret, 0, os.SEEK_SET)
            async with running(store.pool, arguments, skopeo.environment(), stdin=secret) as program:
                async with asyncio.timeout(LOGIN_TIMEOUT_S):
                    code = await program.wait()
                if code != 0:
                    raise _refused(registry, translate(complaint(program.complaints()), reference, has_auth=True))
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"{registry}: did not answer within {LOGIN_TIMEOUT_S:g} s") from error
        finally:
            os.close(secret)


def _refused(registry: str, error: errors.AtollError) -> errors.AtollError:
    """The error of a login, which is about a registry and no image."""
    if isinstance(error, errors.Unauthenticated | errors.PermissionDenied):
        return errors.Unauthenticated(f"{registry}: refuses these credentials; check the name and the password")
    return type(error)(error.message.replace(f"{registry}/login:latest: ", f"{registry}: "))


@asynccontextmanager
async def _skopeo(store: Outward, reference: Reference, auth: Auth | None) -> AsyncGenerator[tuple[Skopeo, Path]]:
    folder = await store.pool.run(store.content.folder)
    try:
        skopeo = Skopeo(folder, (), reference, auth, store.settings)
        await skopeo.prepare(store.pool)
        yield skopeo, folder
    finally:
        cleanup = store.pool.run(lambda: shutil.rmtree(folder, ignore_errors=True))
        await run_to_completion(cleanup, within=CLEAN_UP_TIMEOUT_S)


def _lay_out(folder: Path, store: Outward, held: Held) -> None:
    folder.mkdir(mode=0o700)
    (folder / "version").write_text(VERSION)
    (folder / "manifest.json").write_bytes(held.document)
    for blob in {one.digest: one for one in (held.manifest.config, *held.manifest.layers)}.values():
        os.link(store.content.path(blob.digest), folder / blob.digest.removeprefix("sha256:"))


async def _watched(
    program: Program, held: Held, source: Path, stall_s: float, target: Reference, on_progress: OnProgress
) -> int:
    """The exit code; tells the progress meanwhile, and raises `DeadlineExceeded` where there is none for too long."""
    sizes = {blob.digest: blob.size for blob in (held.manifest.config, *held.manifest.layers)}
    told: dict[str, Progress] = {}
    loop = asyncio.get_running_loop()
    last = loop.time()

    def tell(digest: str, phase: Phase, done: int) -> None:
        nonlocal last
        progress = Progress(digest=digest, phase=phase, done=done, total=sizes[digest])
        if told.get(digest) != progress:
            told[digest] = progress
            last = loop.time()
            on_progress(progress)

    for digest in sizes:
        tell(digest, Phase.WAITING, 0)
    async with asyncio.TaskGroup() as group:
        ending = group.create_task(program.wait(), name=f"image/{target}/push")
        while not ending.done():
            await asyncio.wait({ending}, timeout=LOOK_S)
            _look(program, source, sizes, tell)
            if loop.time() - last > stall_s and not ending.done():
                raise errors.DeadlineExceeded(f"{target}: {target.domain} took nothing for {stall_s:g} s")
    return ending.result()


def _look(program: Program, source: Path, sizes: dict[str, int], tell: Callable[[str, Phase, int], None]) -> None:
    """What skopeo has begun, as it says, and how far it has read what it has open."""
    opened = _positions(program.pid, source)
    for digest in _COPYING.findall(program.output().decode(errors="replace")):
        if digest in sizes:
            tell(digest, Phase.UPLOADING, opened.get(digest, sizes[digest]))


def _positions(pid: int, source: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):  # it has ended
        for name in os.listdir(folder):
            with contextlib.suppress(OSError, ValueError):
                target = Path(os.readlink(folder / name))
                if target.parent == source:
                    text = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
                    found["sha256:" + target.name] = int(text.partition("pos:")[2].split()[0])
    return found
