"""What the image store is told, out of the configuration."""

from __future__ import annotations

from pathlib import Path

from atoll.config import Config
from atoll.image.config import ImageLimits, ImageSettings, RegistryConfig


def image_settings(config: Config) -> ImageSettings:
    """Registries, credentials, limits, and what is pinned: the pause images of handlers too."""
    registries = {
        name: RegistryConfig(
            plain_http=one.plain_http,
            skip_verify=one.skip_verify,
            mirrors=one.mirrors,
            ca_file=Path(one.ca_file) if one.ca_file else None,
        )
        for name, one in config.images.registries.items()
    }
    images = config.images
    pauses = {handler.pause_image for handler in config.runtimes.values() if handler.sandboxer == "podsandbox"}
    return ImageSettings(
        registries=registries,
        auth_file=Path(images.auth_file) if images.auth_file else None,
        pinned=frozenset(images.pinned) | pauses,
        limits=ImageLimits(
            max_layer_bytes=images.max_layer_bytes,
            unpacks=images.max_concurrent_unpacks,
            downloads=images.max_concurrent_downloads,
            stall_timeout_s=images.stall_timeout_s,
        ),
    )
