"""Credentials where docker and podman keep them: a config file, or the programs that it names.

    $REGISTRY_AUTH_FILE, else $DOCKER_CONFIG/config.json, else ~/.docker/config.json
        auths         a registry's `auth` (base64 of user:password) or `identitytoken`
        credHelpers   the helper for a registry, by the end of its name
        credsStore    the helper for all others

A helper is `docker-credential-<name> get|store|erase`; what it is told and tells goes through pipes, so that no secret
is on a command line. Source: the protocol of docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from atoll import errors
from atoll.client.registries import NOBODY, Credentials
from atoll.linux.files import replacing

DOCKER_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"
TOKEN_USER = "<token>"  # noqa: S105 - by this name a helper says that the secret is an identity token
HELPER_WITHIN_S = 60.0
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def config_file() -> Path:
    """Where credentials are kept."""
    if chosen := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(chosen)
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def find(registry: str, file: Path | None = None) -> Credentials:
    """The credentials for `host[:port]` or docker.io; those of nobody where there are none.

    Raises `FailedPrecondition` for a file that cannot be read, and a helper that fails.
    """
    config = _read(file or config_file())
    keys = _keys(registry)
    if helper := _helper(config, registry):
        for key in keys:
            found = _ask(helper, key)
            if found is not None:
                return found
        return NOBODY
    auths = _table(config, "auths")
    for key in keys:
        entry = auths.get(key)
        if isinstance(entry, dict):
            found = _decoded(cast("dict[str, object]", entry), key)
            if found is not NOBODY:
                return found
    return NOBODY


def store(registry: str, credentials: Credentials, file: Path | None = None) -> str:
    """Keep credentials, by the helper that is named for the registry, else in the file (0600); where they are now."""
    path = file or config_file()
    config = _read(path)
    key = _keys(registry)[0]
    if helper := _helper(config, registry):
        secret = credentials.identity_token or credentials.password
        name = TOKEN_USER if credentials.identity_token else credentials.username
        _run(helper, "store", json.dumps({"ServerURL": key, "Username": name, "Secret": secret}))
        return f"docker-credential-{helper}"
    text = base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
    entry = {"identitytoken": credentials.identity_token} if credentials.identity_token else {"auth": text}
    _write(path, {**config, "auths": {**_table(config, "auths"), key: entry}})
    return str(path)


def erase(registry: str, file: Path | None = None) -> bool:
    """Forget the credentials for a registry; whether there were any."""
    path = file or config_file()
    config = _read(path)
    helper = _helper(config, registry)
    was_there = False
    for key in _keys(registry):
        if helper and _ask(helper, key) is not None:
            _run(helper, "erase", key)
            was_there = True
    auths = _table(config, "auths")
    kept = {key: entry for key, entry in auths.items() if key not in _keys(registry)}
    if len(kept) != len(auths):
        _write(path, {**config, "auths": kept})
        was_there = True
    return was_there


def _keys(registry: str) -> tuple[str, ...]:
    """The names that a registry may have in the file, the usual one first."""
    if registry in (DOCKER_HUB, "index.docker.io", "registry-1.docker.io"):
        return (_HUB_KEY, DOCKER_HUB, "index.docker.io")
    return (registry, f"https://{registry}", f"http://{registry}", f"https://{registry}/v2/", f"https://{registry}/v1/")


def _helper(config: Mapping[str, object], registry: str) -> str:
    helpers = _table(config, "credHelpers")
    named = next((helpers[key] for key in _keys(registry) if key in helpers), config.get("credsStore", ""))
    if not isinstance(named, str) or (named and not _HELPER.fullmatch(named)):
        raise errors.FailedPrecondition(f"{config_file()}: {named!r} is no credential helper")
    return named


def _table(config: Mapping[str, object], key: str) -> dict[str, object]:
    found = config.get(key)
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _decoded(entry: Mapping[str, object], key: str) -> Credentials:
    token, text = entry.get("identitytoken"), entry.get("auth")
    if isinstance(token, str) and token:
        return Credentials(identity_token=token)
    if not isinstance(text, str) or not text:
        return NOBODY
    try:
        username, _, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise errors.FailedPrecondition(f"{config_file()}: the auth of {key} is not base64 of user:password") from None
    return Credentials(username=username, password=password.rstrip("\0"))


def _ask(helper: str, key: str) -> Credentials | None:
    try:
        answer: object = json.loads(_run(helper, "get", key))
    except errors.NotFound:
        return None
    except ValueError:
        raise errors.FailedPrecondition(f"docker-credential-{helper} get: says no JSON") from None
    told = cast("dict[str, object]", answer) if isinstance(answer, dict) else {}
    username, secret = str(told.get("Username", "")), str(told.get("Secret", ""))
    return (
        Credentials(identity_token=secret)
        if username == TOKEN_USER
        else Credentials(username=username, password=secret)
    )


def _run(helper: str, action: str, told: str) -> str:
    """What the helper says; `NotFound` where it has nothing for this registry."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, action], input=told, capture_output=True, text=True, check=False, timeout=HELPER_WITHIN_S
        )
    except FileNotFoundError:
        raise errors.FailedPrecondition(f"{program}: is not installed, but {config_file()} names it") from None
    except subprocess.TimeoutExpired:
        raise errors.DeadlineExceeded(f"{program} {action}: did not end within {HELPER_WITHIN_S:g} s") from None
    if done.returncode == 0:
        return done.stdout
    said = (done.stdout.strip() or done.stderr.strip())[:300]
    if action == "get" and "not found" in said:
        raise errors.NotFound(said)
    raise errors.FailedPrecondition(f"{program} {action}: failed: {said or f'exit code {done.returncode}'}")


def _read(path: Path) -> dict[str, object]:
    try:
        found: object = json.loads(path.read_bytes() or b"{}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or "is no JSON"
        raise errors.FailedPrecondition(f"{path}: cannot be read: {told}") from None
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _write(path: Path, config: Mapping[str, object]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(config, indent="\t").encode() + b"\n")
    except OSError as error:
        raise errors.FailedPrecondition(f"{path}: cannot be written: {error.strerror}") from error
