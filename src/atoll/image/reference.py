"""Names of images, normalised as docker does: `busybox` is `docker.io/library/busybox:latest`.

Grammar: the distribution project's reference format: `[domain[:port]/]path[:tag][@sha256:hex]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from atoll import errors

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME_CHARACTERS = 255

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether `text` is `sha256:` and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A normalised name: at least one of `tag` and `digest` is there."""

    domain: str
    path: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference that `text` stands for; without tag and digest the tag is `latest`.

        Raises `InvalidArgument` telling what is wrong. A bare image ID is no reference.
        """
        if is_digest(text):
            raise _bad(text, "a digest is no name; write repository@digest, or an image id where one is asked for")
        rest, at, digest = text.partition("@")
        if at and not is_digest(digest):
            raise _bad(text, "what follows `@` must be `sha256:` and 64 hexadecimal digits")
        name, colon, tag = rest, "", ""
        if ":" in rest.rpartition("/")[2]:
            name, colon, tag = rest.rpartition(":")
        if colon and not _TAG.fullmatch(tag):
            if not tag:
                raise _bad(text, "nothing follows the `:`; name a tag after it, or leave it out")
            raise _bad(text, f"the tag {tag!r} may have only letters, digits, `_`, `.`, `-`, and at most 128 of them")
        domain, path = _split(name)
        if not path or not _PATH.fullmatch(path):
            raise _bad(text, f"the repository {path!r} is not well formed; {_way_out(path)}")
        if not _DOMAIN.fullmatch(domain):
            raise _bad(text, f"the registry {domain!r} is not a host name with or without a port")
        if len(domain) + 1 + len(path) > MAX_NAME_CHARACTERS:
            raise _bad(text, f"the name has more than {MAX_NAME_CHARACTERS} characters")
        if _HEX.fullmatch(name):
            raise _bad(text, "64 hexadecimal digits are an image id, not a name")
        default_tag = None if at else DEFAULT_TAG
        return cls(domain=domain, path=path, tag=tag if colon else default_tag, digest=digest if at else None)

    @property
    def repository(self) -> str:
        """Registry and path, as in `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def tagged(self) -> str | None:
        """The canonical name by tag alone."""
        return f"{self.repository}:{self.tag}" if self.tag is not None else None

    def with_digest(self, digest: str) -> Reference:
        """The same repository by `digest` alone."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.repository}{tag}{digest}"


def _split(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_domain = "." in first or ":" in first or first == "localhost"
    if not slash or not is_domain:
        domain, path = DEFAULT_DOMAIN, name
    else:
        domain, path = first, rest
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return domain, path


def _way_out(path: str) -> str:
    """How a repository that is not well formed is to be written."""
    if not path:
        return "name one, as in docker.io/library/busybox"
    if ":" in path:
        return "a `:` stands once, before the tag, or before the port of a registry"
    if _PATH.fullmatch(path.lower()):
        return "write it in lower case"
    return "write small letters and digits, in parts joined by `.`, `_`, `-` or one `/`"


def _bad(text: str, why: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"image reference {text[:300]!r}: {why}")
