"""The work of `login`, `logout`, `push`, `save`, `tag` and of `load` from a pipe."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from atoll import errors
from atoll.cli import pulling, show, terminal
from atoll.cli.outcome import say
from atoll.client import Client, credentials
from atoll.client.registries import NOBODY, Credentials, Format

SCRATCH = "/var/tmp"  # noqa: S108 - for what may be larger than memory; the names in it are random and private
COPY_BYTES = 1 << 20


def credentials_asked(registry: str, username: str, *, from_stdin: bool) -> Credentials:
    """The name and the password of a login, asked for on the terminal where they are not given."""
    if from_stdin:
        if not username:
            raise errors.InvalidArgument("--password-stdin: needs --username")
        return Credentials(username=username, password=sys.stdin.readline().rstrip("\n"))
    if not sys.stdin.isatty():
        raise errors.InvalidArgument(
            f"login to {registry}: there is no terminal to ask on; use -u and --password-stdin"
        )
    if not username:
        print("Username: ", end="", file=sys.stderr, flush=True)
        username = sys.stdin.readline().strip()
    return Credentials(username=username, password=getpass.getpass("Password: ", stream=sys.stderr))


async def login(client: Client, registry: str, given: Credentials) -> int:
    await client.registries.check(registry, given)
    where = credentials.store(registry, given)
    say(f"logged in to {registry} as {given.username}; kept in {where}")
    return 0


def logout(registry: str) -> int:
    if credentials.erase(registry):
        say(f"logged out of {registry}")
    else:
        say(f"not logged in to {registry}")
    return 0


async def push(
    client: Client, image: str, target: str, *, quiet: bool, username: str, password: str, as_json: bool
) -> int:
    given = Credentials(username=username, password=password) if username else NOBODY
    done = await pulling.push_shown(client, image, target, quiet=quiet, given=given)
    if as_json:
        show.dump(done)
    else:
        print(f"{done.target}@{done.digest}")
    return 0


async def tag(client: Client, image: str, names: Sequence[str]) -> int:
    for name in names:
        print(await client.registries.tag(image, name))
    return 0


async def save(client: Client, images: Sequence[str], output: Path | None, form: Format) -> int:
    """Write an archive to `output`, whole or not at all, or to standard output."""
    archive = client.registries.save(images, format=form)
    async with contextlib.aclosing(archive):
        if output is None:
            if sys.stdout.isatty():
                raise errors.InvalidArgument("save: an archive is nothing for a terminal; use -o FILE, or a pipe")
            async for data in archive:
                terminal.write(sys.stdout.fileno(), data)
            return 0
        fd, name = _beside(output)
        try:
            with os.fdopen(fd, "wb") as file:
                async for data in archive:
                    file.write(data)
            os.chmod(name, 0o644)
            os.rename(name, output)
        except OSError as error:
            raise errors.Unavailable(f"{output}: cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    return 0


def _beside(path: Path) -> tuple[int, str]:
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise errors.NotFound(f"{path}: cannot be made: {error.strerror}") from error


@asynccontextmanager
async def archive_of(path: Path) -> AsyncGenerator[Path]:
    """The archive to load: `path`, or for `-` what comes on standard input, kept while the block lasts."""
    if str(path) != "-":
        yield path
        return
    if sys.stdin.isatty():
        raise errors.InvalidArgument("load -: nothing comes from a terminal; name a file, or use a pipe")
    with tempfile.NamedTemporaryFile(dir=SCRATCH, prefix="atoll-load-") as file:
        while data := sys.stdin.buffer.read(COPY_BYTES):
            file.write(data)
        file.flush()
        yield Path(file.name)
