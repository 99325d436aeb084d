"""Credentials in docker's file and in the programs that it names."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

from atoll import errors
from atoll.client import credentials
from atoll.client.registries import NOBODY, Credentials

ADA = Credentials(username="ada", password="a pass:word")
HELPER = """#!/bin/sh
# Keeps one secret a registry in files; told through pipes alone.
case "$1" in
store) cat > "$STORE/last"; sed -n 's/.*"ServerURL": "\\([^"]*\\)".*/\\1/p' "$STORE/last" | tr / _ > "$STORE/name"
       cp "$STORE/last" "$STORE/$(cat "$STORE/name").json" ;;
get) name=$(tr / _)
     [ -e "$STORE/$name.json" ] || { echo 'credentials not found in native keychain'; exit 1; }
     cat "$STORE/$name.json" ;;
erase) name=$(tr / _); rm "$STORE/$name.json" ;;
esac
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return tmp_path / "config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "docker-credential-kept"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("STORE", str(store))
    return store


def test_what_is_stored_is_found_and_erased(file: Path) -> None:
    assert credentials.find("r.example:5000") is NOBODY
    assert credentials.store("r.example:5000", ADA) == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert credentials.find("r.example:5000") == ADA
    assert credentials.find("r.example") is NOBODY
    assert credentials.erase("r.example:5000") is True
    assert credentials.erase("r.example:5000") is False
    assert credentials.find("r.example:5000") is NOBODY


def test_what_else_is_in_the_file_stays(file: Path) -> None:
    file.write_text(json.dumps({"HttpHeaders": {"a": "b"}, "auths": {"other": {"auth": "eDp5"}}}))
    credentials.store("r.example", ADA)
    kept = json.loads(file.read_text())
    assert (kept["HttpHeaders"], kept["auths"]["other"]) == ({"a": "b"}, {"auth": "eDp5"})


def test_docker_hub_goes_by_its_old_address(file: Path) -> None:
    credentials.store("docker.io", ADA)
    assert list(json.loads(file.read_text())["auths"]) == ["https://index.docker.io/v1/"]
    assert credentials.find("docker.io") == ADA


def test_an_identity_token_is_none_of_a_password(file: Path) -> None:
    file.write_text(
        json.dumps({"auths": {"r.example": {"identitytoken": "t", "auth": base64.b64encode(b"a:b").decode()}}})
    )
    assert credentials.find("r.example") == Credentials(identity_token="t")


def test_a_helper_keeps_what_the_file_does_not_see(file: Path, helper: Path) -> None:
    file.write_text(json.dumps({"credHelpers": {"r.example": "kept"}}))
    assert credentials.find("r.example") is NOBODY
    assert credentials.store("r.example", ADA) == "docker-credential-kept"
    assert "word" not in file.read_text()
    assert credentials.find("r.example") == ADA
    assert credentials.find("other.example") is NOBODY
    assert credentials.erase("r.example") is True
    assert credentials.find("r.example") is NOBODY


def test_the_store_is_for_all_others_and_may_keep_tokens(file: Path, helper: Path) -> None:
    file.write_text(json.dumps({"credsStore": "kept"}))
    token = Credentials(identity_token="secret")
    credentials.store("r.example", token)
    assert json.loads((helper / "last").read_text())["Username"] == "<token>"
    assert credentials.find("r.example") == token


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "is no JSON"),
        ('{"auths": {"r.example": {"auth": "%%"}}}', "not base64"),
        ('{"credsStore": "../../bin/sh"}', "is no credential helper"),
        ('{"credsStore": "nobody-has-this"}', "docker-credential-nobody-has-this: is not installed"),
    ],
)
def test_what_cannot_be_read_is_told(file: Path, content: str, words: str) -> None:
    file.write_text(content)
    with pytest.raises(errors.FailedPrecondition, match=words):
        credentials.find("r.example")


def test_no_secret_is_shown() -> None:
    assert "word" not in repr(ADA)
    assert "tok" not in repr(Credentials(identity_token="tok"))
