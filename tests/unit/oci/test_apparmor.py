"""The default AppArmor profile: when it is loaded, and what happens where it cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from atoll import errors
from atoll.linux import host as host_facts
from atoll.linux.host import HostFacts
from atoll.oci import apparmor
from atoll.oci.config import LinuxContainerSecurityContext, ProfileType, SecurityProfile
from atoll.oci.security import apparmor_profile


@dataclass(slots=True)
class Parser:
    """Stands in for running programs; keeps what it was given on stdin."""

    code: int = 0
    says: bytes = b""
    read: list[bytes] = field(default_factory=list[bytes])

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> int:
        assert stdin is not None
        assert stderr is not None
        self.read.append(os.read(stdin, 1 << 16))
        os.write(stderr, self.says)
        return self.code


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / apparmor.PARSER
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


async def test_the_profile_is_loaded_where_it_is_missing(host: HostFacts, installed: None) -> None:
    parser = Parser()
    with_module = replace(host, apparmor=True, apparmor_default="docker-default")
    assert (await apparmor.with_default(with_module, parser)).apparmor_default == apparmor.NAME
    assert parser.read == [apparmor.PROFILE.encode()]


async def test_nothing_is_run_where_it_is_loaded_or_there_is_no_apparmor(host: HostFacts, installed: None) -> None:
    parser = Parser()
    loaded = replace(host, apparmor=True, apparmor_default=apparmor.NAME)
    assert await apparmor.with_default(loaded, parser) == loaded
    assert await apparmor.with_default(host, parser) == host
    assert parser.read == []


async def test_a_refusal_is_told_and_keeps_what_there_was(
    host: HostFacts, installed: None, caplog: pytest.LogCaptureFixture
) -> None:
    with_module = replace(host, apparmor=True, apparmor_default="docker-default")
    parser = Parser(code=1, says=b"Permission denied;\n you are not root\n")
    assert await apparmor.with_default(with_module, parser) == with_module
    assert "Permission denied; you are not root" in caplog.text


async def test_a_missing_parser_is_named(
    host: HostFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(apparmor, "PARSER", "apparmor_parser-of-nobody")
    assert (await apparmor.with_default(replace(host, apparmor=True), Parser())).apparmor_default == ""
    assert "install the package apparmor" in caplog.text


@pytest.mark.parametrize("name", ["mine", "mine//&atoll-default"])
def test_a_profile_by_name_must_be_loaded(
    host: HostFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    profiles = tmp_path / "profiles"
    monkeypatch.setattr(host_facts, "APPARMOR_PROFILES", profiles)
    asked = LinuxContainerSecurityContext(
        apparmor=SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref=name)
    )
    with_module = replace(host, apparmor=True)
    assert apparmor_profile(asked, with_module) == name, "where the kernel does not tell, the runtime finds out"
    profiles.write_text("mine (enforce)\natoll-default (enforce)\n")
    assert apparmor_profile(asked, with_module) == name
    profiles.write_text("/usr/bin/man (enforce)\natoll-default (enforce)\n")
    with pytest.raises(errors.FailedPrecondition, match="is not loaded"):
        apparmor_profile(asked, with_module)
