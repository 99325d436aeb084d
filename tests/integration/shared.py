"""One daemon for the tests of a module, where starting one for each would take longer than the tests.

    pytestmark = pytest.mark.shared_daemon           # or shared_daemon(config="[runtimes.runc]\\n...")

`{state}` in the config is the daemon's state folder.

After each test it is judged as a daemon of the test's own would be: no pod, clean books, and in the kernel nothing
with its prefix but itself. The next test gets it only where it is as it was: the same process, configuration, networks
and images. Else, and at the end of the module, it must stop with status 0 and leave nothing at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import IN_CI
from tests.integration.cri_client import connected
from tests.integration.daemons import Daemon, Roots
from tests.integration.leaks import MARKER, Footprint, Machine, command, fds_before, own_fds, settled_leaks, wait_until

OF_THE_DAEMON = ("atoll.shim.zygote", "atoll.shim.host", "atoll.files.agent")
"""Command lines of processes that a daemon without pods has: its zygotes, and shim processes kept ahead."""


@dataclass(slots=True, kw_only=True)
class Live:
    """A running daemon, and what it was like before the first test had it."""

    config: str
    roots: Roots
    daemon: Daemon
    footprint: Footprint
    machine: Machine | None
    pid: int
    files: frozenset[Path]
    settings: tuple[tuple[str, bytes], ...]
    images: frozenset[str]


class Shared:
    """Keeps at most one daemon."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._fds: frozenset[tuple[int, str]] = frozenset()

    @property
    def roots(self) -> Roots:
        assert self._live is not None
        return self._live.roots

    @property
    def daemon(self) -> Daemon:
        assert self._live is not None
        return self._live.daemon

    def take(self, test: pytest.Item) -> Footprint:
        """Have a daemon for this test: the one that is there, or another."""
        marker = test.get_closest_marker("shared_daemon")
        config = str(marker.kwargs.get("config", "")) if marker else ""
        if self._live is not None and self._live.config != config:
            self.retire()
        self._fds = fds_before()
        self._live = self._live or start(config)
        return self._live.footprint

    def judge(self, test: pytest.Item, *, failed: bool) -> None:
        """Fail the test for what it left; a daemon that is not as it was is retired."""
        live = self._live
        assert live is not None
        if failed:
            self._discard(live)
            return
        if not live.daemon.is_running():
            live.daemon.kill()  # reap what a test killed by its pid
            live.daemon.start()
        with connected(live.roots) as cri:
            pods = [pod.id for pod in cri.list_pods()]
            if pods:
                self._discard(live)
                pytest.fail(f"pods are left: {pods}", pytrace=False)
            cri.require_clean_books()
            images = frozenset(image.id for image in cri.list_images())
        left: list[str] = []

        def nothing() -> bool:
            left[:] = [*beyond(live), *(f"file descriptor {fd} -> {to}" for fd, to in sorted(own_fds() - self._fds))]
            return not left

        if not wait_until(nothing):
            self._discard(live)
            pytest.fail("left behind:\n" + "\n".join(f"  {one}" for one in left), pytrace=False)
        if (live.daemon.pid, settings(live.roots), images) != (live.pid, live.settings, live.images):
            self.retire()
            return
        for path in files(live.roots) - live.files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def retire(self) -> None:
        """End the daemon, where there is one: with status 0, and without a trace."""
        live, self._live = self._live, None
        if live is None:
            return
        try:
            if live.daemon.is_running():
                assert live.daemon.stop() == 0, f"the daemon's log ends:\n{live.daemon.log_tail()}"
        finally:
            live.daemon.kill()
            live.roots.delete_bridge()
            leaks = settled_leaks(live.footprint, live.machine)
            live.footprint.remove()
        if leaks:
            pytest.fail("left behind by a shared daemon:\n" + "\n".join(f"  {one}" for one in leaks), pytrace=False)

    def _discard(self, live: Live) -> None:
        """End it without judging: a test has failed already."""
        self._live = None
        live.daemon.kill()
        live.roots.delete_bridge()
        live.footprint.remove()


def start(config: str) -> Live:
    machine = Machine.now() if IN_CI else None
    footprint = Footprint.of(f"at{secrets.token_hex(4)}", own_fds())
    base, state = footprint.folders
    roots = Roots(prefix=footprint.prefix, base=base, state=state)
    roots.make()
    with roots.config.open("a") as file:
        file.write(config.replace("{state}", str(roots.state)))
    daemon = Daemon(roots)
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(MARKER, roots.prefix)
            daemon.start()
        with connected(roots) as cri:
            images = frozenset(image.id for image in cri.list_images())
    except BaseException:  # such as a configuration that this tree refuses
        daemon.kill()
        footprint.remove()
        raise
    return Live(
        config=config,
        roots=roots,
        daemon=daemon,
        footprint=footprint,
        machine=machine,
        pid=daemon.pid,
        files=files(roots) | {roots.base / "ipam"},
        settings=settings(roots),
        images=images,
    )


def files(roots: Roots) -> frozenset[Path]:
    """What lies in the test's folder beside the daemon's own root."""
    return frozenset(roots.base.iterdir())


def settings(roots: Roots) -> tuple[tuple[str, bytes], ...]:
    """The config file and the network configurations."""
    return tuple((str(path), path.read_bytes()) for path in (roots.config, *sorted(roots.conf_dir.iterdir())))


def beyond(live: Live) -> Iterator[str]:
    """What the kernel has with the daemon's prefix beyond what a daemon without pods has."""
    footprint = live.footprint
    for pid in footprint.processes():
        line = command(pid)
        if pid != live.daemon.pid and not any(word in line for word in OF_THE_DAEMON):
            yield f"process {pid}: {line}"
    for point in footprint.mounts():
        if Path(point).parent != live.roots.state and not Path(point).name.startswith("pool-"):
            yield f"mount {point}"
    for name in footprint.links():
        if name != live.roots.bridge:
            yield f"link {name}"
    instance = (live.roots.root / "instance").read_text().strip()
    for path in footprint.cgroups():
        if path.name not in (footprint.prefix, instance):
            yield f"cgroup {path}"
    for folder in ("pods", "shims", "bundles", "relays"):
        if (live.roots.state / folder).is_dir():
            yield from (f"file {folder}/{name}" for name in os.listdir(live.roots.state / folder))
