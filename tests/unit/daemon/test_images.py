"""What the configuration comes to for the image store."""

from __future__ import annotations

from pathlib import Path

from atoll.config import Config, ImageSection, Registry, RuntimeHandler
from atoll.daemon.images import image_settings


def test_every_key_of_images_reaches_the_store() -> None:
    section = ImageSection(
        registries={"a.example": Registry(plain_http=True, skip_verify=True, ca_file="/ca", mirrors=("m.example/x",))},
        auth_file="/auth",
        pinned=("mine:1",),
        max_layer_bytes=5,
        max_concurrent_unpacks=6,
        max_concurrent_downloads=7,
        stall_timeout_s=8.0,
    )
    found = image_settings(Config(images=section))
    registry = found.registry("a.example")
    assert (registry.plain_http, registry.skip_verify, registry.ca_file) == (True, True, Path("/ca"))
    assert registry.mirrors == ("m.example/x",)
    assert (found.auth_file, found.pinned) == (Path("/auth"), {"mine:1"})
    limits = found.limits
    assert (limits.max_layer_bytes, limits.unpacks, limits.downloads, limits.stall_timeout_s) == (5, 6, 7, 8.0)


def test_the_pause_image_of_a_handler_that_runs_one_is_pinned() -> None:
    runtimes = {
        "atoll": RuntimeHandler(pause_image="unused:1"),
        "runc": RuntimeHandler(sandboxer="podsandbox", pause_image="pause:3"),
    }
    assert image_settings(Config(runtimes=runtimes)).pinned == {"pause:3"}
