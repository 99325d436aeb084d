"""What the operator decides about images: registries and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atoll import errors

ALL_OTHERS = "*"
"""Names, among the registries, every one that has no entry of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Who to be at a registry: a name with a password, or an identity (refresh) token.

    It reaches skopeo through a private file, never a command line or a log.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if ":" in self.username:
            raise errors.InvalidArgument("registry user name: has a `:` in it, which basic authentication cannot carry")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """One registry, by the domain in image references.

    `plain_http` allows HTTP where the registry speaks no HTTPS, `skip_verify` HTTPS with a certificate that nobody
    vouches for; neither allows the other. `mirrors` (`host[:port][/path]`) are asked first, in order. `ca_file` is a
    PEM file of certificates to trust, beside the system's.
    """

    plain_http: bool = False
    skip_verify: bool = False
    mirrors: tuple[str, ...] = ()
    ca_file: Path | None = None
    auth: Auth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The written limits: sizes in bytes, times in seconds.

    A layer is refused where its tar has more than `max_layer_bytes`, more than `max_layer_entries`
    entries, or (beyond `layer_free_bytes`) more than `max_layer_ratio` times the bytes of its blob.
    """

    max_layer_bytes: int = 64 << 30
    max_layer_ratio: int = 200
    layer_free_bytes: int = 256 << 20
    max_layer_entries: int = 1_000_000
    max_layers: int = 128
    max_manifest_bytes: int = 4 << 20
    max_config_bytes: int = 8 << 20
    unpacks: int = 2
    downloads: int = 3
    stall_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """All that `ImageStore` is told; `registries` is keyed by domain: `docker.io`, `localhost:5000`, or `*`.

    `auth_file` has credentials in docker's form (`auths`), read at each pull. An image with a name of `pinned` is
    pinned. `architecture` and `variant` choose from an index; empty means the host's.
    """

    registries: Mapping[str, RegistryConfig] = field(default_factory=dict[str, RegistryConfig])
    auth_file: Path | None = None
    pinned: frozenset[str] = frozenset()
    limits: ImageLimits = field(default_factory=ImageLimits)
    skopeo: str = "skopeo"
    architecture: str = ""
    variant: str = ""

    def registry(self, domain: str) -> RegistryConfig:
        """How to reach a registry: by its own entry, else by that of all others."""
        return self.registries.get(domain) or self.registries.get(ALL_OTHERS) or RegistryConfig()
