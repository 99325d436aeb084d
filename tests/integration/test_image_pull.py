"""Pulls from a real registry: plain HTTP, TLS, authentication, mirrors, progress, cancellation, damage."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.image.config import Auth, ImageLimits, ImageSettings, RegistryConfig
from atoll.image.endpoint import speaks_tls
from atoll.image.progress import Phase, Progress
from tests.integration.conftest import Roots
from tests.integration.images import (
    OCI,
    ImageFiles,
    Stack,
    descriptor,
    digest,
    image,
    layer,
    member,
    mounted,
    stack,
    write_layout,
)
from tests.integration.registry import PASSWORD, USER, ConnectProxy, Registry, Throttle, running_registry

BASE = layer(member("etc/motd", b"hello\n"), member("data", b"below"))
NOISE = os.urandom(3 << 20)
TOP = layer(member("data", b"above"), member("noise", NOISE))


@pytest.fixture
def registry(roots: Roots) -> Iterator[Registry]:
    with running_registry(roots.base / "registry") as registry:
        yield registry


@pytest.fixture
def tls_registry(roots: Roots) -> Iterator[Registry]:
    with running_registry(roots.base / "tls", tls=True) as registry:
        yield registry


@pytest.fixture
def locked_registry(roots: Roots) -> Iterator[Registry]:
    """One that asks for a name and a password."""
    with running_registry(roots.base / "auth", auth=True) as registry:
        yield registry


@pytest.fixture
def files(roots: Roots) -> ImageFiles:
    files = image([BASE, TOP], config={"Cmd": ["/bin/true"], "Env": ["A=b"], "User": "7:8"})
    write_layout(roots.base / "layout", (files, ""))
    return files


@pytest.fixture
def pushed(registry: Registry, roots: Roots, files: ImageFiles) -> str:
    return registry.push(f"oci:{roots.base}/layout", "team/app:v1")


@pytest.fixture
async def store(roots: Roots, registry: Registry) -> AsyncIterator[Stack]:
    async with stack(roots.root, allowing(registry.address)) as one:
        yield one


def allowing(address: str, limits: ImageLimits | None = None) -> ImageSettings:
    """Settings under which this registry may speak plain HTTP."""
    return ImageSettings(registries={address: RegistryConfig(plain_http=True)}, limits=limits or ImageLimits())


async def test_pull_makes_an_image_that_mounts(store: Stack, pushed: str, files: ImageFiles, roots: Roots) -> None:
    pulled = await store.images.pull(pushed)
    assert pulled.id == files.id
    assert pulled.repo_tags == (pushed,)
    assert pulled.repo_digests == (f"{pushed.removesuffix(':v1')}@{digest(files.manifest)}",)
    assert pulled.size == len(files.manifest) + len(files.config) + sum(map(len, files.blobs))
    assert (pulled.config.env, pulled.config.user, pulled.config.cmd) == (("A=b",), "7:8", ("/bin/true",))
    mounts = await store.snapshots.prepare("box", pulled.chain_ids[-1])
    with mounted(mounts, roots.base / "mnt") as root:
        assert (root / "data").read_bytes() == b"above"
        assert (root / "etc/motd").read_bytes() == b"hello\n"
        (root / "data").write_bytes(b"mine")
    assert (store.snapshots.fs("box") / "data").read_bytes() == b"mine"


async def test_pulled_image_is_there_after_a_restart(roots: Roots, registry: Registry, pushed: str) -> None:
    settings = allowing(registry.address)
    async with stack(roots.root, settings) as first:
        pulled = await first.images.pull(pushed)
    async with stack(roots.root, settings) as second:
        assert second.images.list() == (pulled,)
        assert second.snapshots.has(pulled.chain_ids[-1])


async def test_second_pull_fetches_no_blob(store: Stack, pushed: str) -> None:
    await store.images.pull(pushed)
    seen: list[Progress] = []
    await store.images.pull(pushed, on_progress=seen.append)
    assert {one.phase for one in seen} == {Phase.WAITING, Phase.PRESENT}


async def test_pull_by_digest(store: Stack, pushed: str, files: ImageFiles) -> None:
    reference = f"{pushed.removesuffix(':v1')}@{digest(files.manifest)}"
    pulled = await store.images.pull(reference)
    assert (pulled.repo_tags, pulled.repo_digests) == ((), (reference,))
    assert store.images.get(reference) is store.images.get(digest(files.manifest))


async def test_progress_tells_bytes_of_each_layer(store: Stack, pushed: str, files: ImageFiles) -> None:
    seen: list[Progress] = []
    await store.images.pull(pushed, on_progress=seen.append)
    for blob in files.blobs:
        mine = [one for one in seen if one.digest == digest(blob)]
        assert {one.total for one in mine} == {len(blob)}
        phases = [one.phase for one in mine]
        assert phases == sorted(phases, key=list(Phase).index), "a layer does not go back"
        assert (phases[0], phases[-1]) == (Phase.WAITING, Phase.DONE)
        assert any(one.phase == Phase.DOWNLOADED and one.done == len(blob) for one in mine)


async def test_docker_manifest_keeps_its_digests(
    store: Stack, registry: Registry, roots: Roots, files: ImageFiles
) -> None:
    """A registry's docker v2s2 image is not rewritten: its digest and ID are those that others see."""
    reference = await asyncio.to_thread(registry.push, f"oci:{roots.base}/layout", "team/docker:v2", "--format=v2s2")
    pulled = await store.images.pull(reference)
    manifest = json.loads((store.root / "content/blobs/sha256" / pulled.manifest_digest[7:]).read_bytes())
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert pulled.id == manifest["config"]["digest"]
    assert registry.blob_file(pulled.id).exists()


async def test_index_gives_the_image_of_this_machine(
    store: Stack, registry: Registry, roots: Roots, files: ImageFiles
) -> None:
    other = image([layer(member("wrong", b""))], architecture="s390x")
    layout = write_layout(roots.base / "multi", (files, ""), (other, ""))
    platforms = [
        descriptor(one.manifest, f"{OCI}.manifest.v1+json", platform={"os": "linux", "architecture": name})
        for one, name in ((other, "s390x"), (files, "amd64"))
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": platforms}).encode()
    (layout / "blobs/sha256" / digest(index)[7:]).write_bytes(index)
    entry = descriptor(index, f"{OCI}.index.v1+json", annotations={"org.opencontainers.image.ref.name": "all"})
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    reference = await asyncio.to_thread(registry.push, f"oci:{layout}:all", "team/multi:v1", "--all")
    pulled = await store.images.pull(reference)
    assert pulled.id == files.id
    assert pulled.repo_digests == (f"{reference.removesuffix(':v1')}@{digest(index)}",)


async def test_index_without_this_machine_is_refused(roots: Roots, registry: Registry, pushed: str) -> None:
    settings = ImageSettings(registries={registry.address: RegistryConfig(plain_http=True)}, architecture="s390x")
    async with stack(roots.root, settings) as one:
        assert (await one.images.pull(pushed)).config.architecture == "amd64", "a manifest alone is taken as it is"


async def test_equal_pulls_are_one(roots: Roots, registry: Registry, pushed: str) -> None:
    async with (
        Throttle(registry.address, bytes_per_s=50 << 20) as relay,
        stack(roots.root, allowing(relay.address)) as one,
    ):
        reference = pushed.replace(registry.address, relay.address)
        async with asyncio.TaskGroup() as group:
            pulls = [group.create_task(one.images.pull(reference)) for _ in range(5)]
        assert len({pull.result().id for pull in pulls}) == 1
        assert relay.passed < 2 * len(NOISE)


async def test_images_that_share_a_layer_unpack_it_once(store: Stack, registry: Registry, roots: Roots) -> None:
    names: list[str] = []
    for number in range(3):
        files = image([BASE, layer(member("number", str(number).encode()))])
        write_layout(roots.base / f"share{number}", (files, ""))
        names.append(
            await asyncio.to_thread(registry.push, f"oci:{roots.base}/share{number}", f"team/share{number}:v1")
        )
    async with asyncio.TaskGroup() as group:
        pulls = [group.create_task(store.images.pull(name)) for name in names]
    assert len({pull.result().chain_ids[0] for pull in pulls}) == 1
    assert len(store.snapshot_folders()) == 4


async def test_tls_with_a_private_authority(roots: Roots, files: ImageFiles, tls_registry: Registry) -> None:
    reference = await asyncio.to_thread(tls_registry.push, f"oci:{roots.base}/layout", "team/app:v1")
    async with stack(roots.root) as one:
        with pytest.raises(errors.Unavailable, match="ca_file"):
            await one.images.pull(reference)
        assert one.is_empty()
    trusting = ImageSettings(registries={tls_registry.address: RegistryConfig(ca_file=tls_registry.ca_file)})
    async with stack(roots.root, trusting) as one:
        assert (await one.images.pull(reference)).id == files.id


async def test_plain_http_must_be_allowed(roots: Roots, registry: Registry, pushed: str) -> None:
    async with stack(roots.root) as one:
        with pytest.raises(errors.Unavailable, match="plain_http"):
            await one.images.pull(pushed)


@pytest.mark.parametrize(
    ("plain_http", "skip_verify", "over_http", "over_tls"),
    [
        (False, False, "set plain_http", "certificate"),
        (True, False, "", "certificate"),
        (False, True, "set plain_http", ""),
        (True, True, "", ""),
    ],
)
async def test_plain_http_and_skip_verify_allow_what_they_say(
    roots: Roots,
    files: ImageFiles,
    registry: Registry,
    tls_registry: Registry,
    plain_http: bool,
    skip_verify: bool,
    over_http: str,
    over_tls: str,
) -> None:
    config = RegistryConfig(plain_http=plain_http, skip_verify=skip_verify)
    for one, refusal in ((registry, over_http), (tls_registry, over_tls)):
        reference = await asyncio.to_thread(one.push, f"oci:{roots.base}/layout", "team/app:v1")
        root = roots.root / one.folder.name
        root.mkdir()
        async with stack(root, ImageSettings(registries={one.address: config})) as store:
            if refusal:
                with pytest.raises(errors.Unavailable, match=refusal):
                    await store.images.pull(reference)
                assert store.is_empty()
            else:
                assert (await store.images.pull(reference)).id == files.id


async def test_a_proxy_is_asked_for_the_way_to_the_registry(
    monkeypatch: pytest.MonkeyPatch, tls_registry: Registry, registry: Registry
) -> None:
    async with ConnectProxy() as proxy:
        monkeypatch.setenv("https_proxy", proxy.address)
        for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for one, tls in ((tls_registry, True), (registry, False)):
            proxy.leads_to = one.address
            assert await speaks_tls("registry.invalid") is tls
        assert proxy.asked == ["registry.invalid:443"] * 2
        proxy.leads_to = ""
        assert await speaks_tls("registry.invalid:5000") is False, "the proxy refuses"
        monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
        assert await speaks_tls("registry.invalid") is None
        monkeypatch.setenv("no_proxy", "registry.invalid")
        assert await speaks_tls("registry.invalid") is False, "nobody has that name"


async def test_authentication(roots: Roots, files: ImageFiles, locked_registry: Registry) -> None:
    reference = await asyncio.to_thread(locked_registry.push, f"oci:{roots.base}/layout", "team/app:v1")
    async with stack(roots.root, allowing(locked_registry.address)) as one:
        with pytest.raises(errors.Unauthenticated, match="wants credentials"):
            await one.images.pull(reference)
        with pytest.raises(errors.Unauthenticated, match="refuses these credentials"):
            await one.images.pull(reference, Auth(username=USER, password="wrong"))
        assert one.is_empty()
        assert (await one.images.pull(reference, Auth(username=USER, password=PASSWORD))).id == files.id
        assert one.ingests() == [], "no credentials stay on the disk"


async def test_authentication_from_the_configuration(
    roots: Roots, files: ImageFiles, locked_registry: Registry
) -> None:
    reference = await asyncio.to_thread(locked_registry.push, f"oci:{roots.base}/layout", "team/app:v1")
    config = RegistryConfig(plain_http=True, auth=Auth(username=USER, password=PASSWORD))
    async with stack(roots.root, ImageSettings(registries={locked_registry.address: config})) as one:
        assert (await one.images.pull(reference)).id == files.id


async def test_credentials_are_on_no_command_line(roots: Roots, registry: Registry, pushed: str) -> None:
    async with (
        Throttle(registry.address, bytes_per_s=256 << 10) as relay,
        stack(roots.root, allowing(relay.address)) as one,
        asyncio.TaskGroup() as group,
    ):
        reference = pushed.replace(registry.address, relay.address)
        pull = group.create_task(one.images.pull(reference, Auth(username="u", password="not-on-a-command-line")))
        await until(lambda: relay.passed > (64 << 10))  # the blob is on its way, and slow
        seen = b"".join(
            Path(f"/proc/{pid}/{name}").read_bytes()
            for pid in programs("skopeo", roots)
            for name in ("cmdline", "environ")
        )
        pull.cancel()
        assert b"skopeo" in seen
        assert b"not-on-a-command-line" not in seen


async def test_mirror_is_asked_first(roots: Roots, registry: Registry, pushed: str, files: ImageFiles) -> None:
    registries = {
        "registry.invalid": RegistryConfig(mirrors=(registry.address,)),
        registry.address: RegistryConfig(plain_http=True),
    }
    async with stack(roots.root, ImageSettings(registries=registries)) as one:
        pulled = await one.images.pull("registry.invalid/team/app:v1")
        assert (pulled.id, pulled.repo_tags) == (files.id, ("registry.invalid/team/app:v1",))


@pytest.fixture
def mirrored(roots: Roots, locked_registry: Registry, tls_registry: Registry, files: ImageFiles) -> None:
    locked_registry.push(f"oci:{roots.base}/layout", "second/team/one:v1")
    tls_registry.push(f"oci:{roots.base}/layout", "team/two:v1")


async def test_mirrors_are_asked_in_order_with_their_own_settings_and_credentials(
    roots: Roots,
    registry: Registry,
    locked_registry: Registry,
    tls_registry: Registry,
    files: ImageFiles,
    mirrored: None,
) -> None:
    """Two paths of one host; a name and password by the auth file; a certificate; then nobody who has it."""
    auth_file = roots.base / "auth.json"
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    auth_file.write_text(json.dumps({"auths": {locked_registry.address: {"auth": encoded}}}))
    locked, secure = locked_registry.address, tls_registry.address
    mirrors = (f"{locked}/first", f"{locked}/second", registry.address, secure)
    registries = {
        "registry.invalid": RegistryConfig(mirrors=mirrors),
        secure: RegistryConfig(ca_file=tls_registry.ca_file),
        "*": RegistryConfig(plain_http=True),
    }
    async with stack(roots.root, ImageSettings(registries=registries, auth_file=auth_file)) as one:
        assert (await one.images.pull("registry.invalid/team/one:v1")).id == files.id
        assert (await one.images.pull("registry.invalid/team/two:v1")).id == files.id
        with pytest.raises(
            errors.Unavailable, match=rf"cannot reach registry\.invalid.*its mirrors.*{registry.address}"
        ):
            await one.images.pull("registry.invalid/team/three:v1")
        auth_file.write_text("{")
        with pytest.raises(errors.FailedPrecondition, match=r"auth\.json: is no auth file"):
            await one.images.pull("registry.invalid/team/one:v1")


async def test_a_mirror_that_keeps_silent_is_passed_over(
    roots: Roots, registry: Registry, pushed: str, files: ImageFiles
) -> None:
    async with Throttle(registry.address, bytes_per_s=0, free=0) as silent:
        registries = {
            "registry.invalid": RegistryConfig(mirrors=("127.0.0.1:1", silent.address, registry.address)),
            "*": RegistryConfig(plain_http=True),
        }
        limits = ImageLimits(stall_timeout_s=1.0)
        async with stack(roots.root, ImageSettings(registries=registries, limits=limits)) as one:
            pulled = await one.images.pull("registry.invalid/team/app:v1")
            assert (pulled.id, pulled.repo_tags) == (files.id, ("registry.invalid/team/app:v1",))


@pytest.mark.parametrize("name", ["team/app:v9", "team/none:v1"])
async def test_unknown_image_is_not_found(store: Stack, pushed: str, registry: Registry, name: str) -> None:
    with pytest.raises(errors.NotFound, match=name):
        await store.images.pull(f"{registry.address}/{name}")
    assert store.is_empty()


async def test_dead_registry_is_unavailable(store: Stack) -> None:
    with pytest.raises(errors.Unavailable, match=r"cannot reach 127\.0\.0\.1:1"):
        await store.images.pull("127.0.0.1:1/team/app:v1")
    assert store.is_empty()


async def test_cancelling_ends_the_program_and_leaves_nothing(roots: Roots, registry: Registry, pushed: str) -> None:
    async with (
        Throttle(registry.address, bytes_per_s=256 << 10) as relay,
        stack(roots.root, allowing(relay.address)) as one,
        asyncio.TaskGroup() as group,
    ):
        seen: list[Progress] = []
        pull = group.create_task(
            one.images.pull(pushed.replace(registry.address, relay.address), on_progress=seen.append)
        )
        await until(lambda: any(progress.phase == Phase.DOWNLOADING and progress.done for progress in seen))
        assert programs("skopeo", roots)
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        assert not programs("skopeo", roots)
        assert one.is_empty()


async def test_pull_goes_on_while_one_caller_is_left(roots: Roots, registry: Registry, pushed: str) -> None:
    async with (
        Throttle(registry.address, bytes_per_s=8 << 20) as relay,
        stack(roots.root, allowing(relay.address)) as one,
        asyncio.TaskGroup() as group,
    ):
        reference = pushed.replace(registry.address, relay.address)
        leaving, staying = (group.create_task(one.images.pull(reference)) for _ in range(2))
        await until(lambda: relay.passed > 0)
        leaving.cancel()
        assert (await staying).repo_tags == (reference,)


async def test_stalled_registry_is_given_up(roots: Roots, registry: Registry, pushed: str) -> None:
    async with (
        Throttle(registry.address, bytes_per_s=0) as relay,
        stack(roots.root, allowing(relay.address, ImageLimits(stall_timeout_s=1.0))) as one,
    ):
        with pytest.raises(errors.DeadlineExceeded, match="1 s"):
            await one.images.pull(pushed.replace(registry.address, relay.address))
        assert one.is_empty()
        assert not programs("skopeo", roots)


async def test_damaged_layer_is_refused(store: Stack, registry: Registry, pushed: str, files: ImageFiles) -> None:
    path = registry.blob_file(digest(files.blobs[1]))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.DataLoss, match=digest(files.blobs[1])):
        await store.images.pull(pushed)
    assert store.is_empty()


async def test_wrong_diff_id_is_refused(store: Stack, registry: Registry, roots: Roots) -> None:
    wrong = "sha256:" + "0" * 64
    files = image([BASE, TOP], diff_ids=[digest(BASE), wrong])
    write_layout(roots.base / "wrong", (files, ""))
    reference = await asyncio.to_thread(registry.push, f"oci:{roots.base}/wrong", "team/wrong:v1")
    with pytest.raises(errors.DataLoss, match=digest(files.blobs[1])):
        await store.images.pull(reference)
    assert store.is_empty()


async def test_failed_pull_keeps_what_another_image_needs(
    store: Stack, registry: Registry, pushed: str, roots: Roots
) -> None:
    good = await store.images.pull(pushed)
    files = image([BASE, TOP], diff_ids=[digest(BASE), "sha256:" + "0" * 64])
    write_layout(roots.base / "wrong", (files, ""))
    reference = await asyncio.to_thread(registry.push, f"oci:{roots.base}/wrong", "team/wrong:v1")
    before = store.blobs()
    with pytest.raises(errors.DataLoss):
        await store.images.pull(reference)
    assert (store.blobs(), store.images.list()) == (before, (good,))


async def test_moved_tag_leaves_the_old_image_without_it(
    store: Stack, registry: Registry, pushed: str, roots: Roots
) -> None:
    old = await store.images.pull(pushed)
    write_layout(roots.base / "newer", (image([BASE]), ""))
    await asyncio.to_thread(registry.push, f"oci:{roots.base}/newer", "team/app:v1")
    new = await store.images.pull(pushed)
    assert new.repo_tags == (pushed,)
    assert store.images.get(old.id).repo_tags == ()
    assert store.images.get(pushed) is store.images.get(new.id)


async def until(done: Callable[[], bool], *, within: float = 15.0) -> None:
    """Wait for a state of another process, which sends no event."""
    async with asyncio.timeout(within):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def programs(word: str, roots: Roots) -> list[int]:
    """Processes of this test with `word` in their command line."""
    found: list[int] = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if word.encode() in line and roots.prefix.encode() in line:
            found.append(int(pid))
    return found
