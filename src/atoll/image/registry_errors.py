"""What skopeo complains of, as one of our errors: one line that names the image and the way out."""

from __future__ import annotations

import re

from atoll import errors
from atoll.image.reference import Reference

_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_MAX_CHARACTERS = 400

# In this order: the first that occurs decides.
_NOT_FOUND = ("manifest unknown", "name unknown", "repository name not known", "blob unknown", "404")
_WRONG = ("digest did not match", "digest mismatch", "does not match digest", "corrupted blob")
_NOT_TRUSTED = ("x509:", "certificate signed by unknown authority", "certificate verify failed")
_PLAIN_HTTP = ("server gave http response to https client",)
_UNAUTHENTICATED = ("unauthorized", "authentication required", "invalid username/password", "401")
_DENIED = ("denied", "forbidden", "403")
_UNAVAILABLE = (
    "connection refused",
    "no such host",
    "i/o timeout",
    "no route to host",
    "network is unreachable",
    "connection reset",
    "tls handshake",
    "temporary failure",
    "toomanyrequests",
    "too many requests",
    "unexpected eof",
    "server misbehaving",
    "eof",
    "timeout",
    "500",
    "502",
    "503",
    "504",
)


_MIRRORS = re.compile(r"\(Mirrors also failed: \[(.*)\]\): (.*)$", re.DOTALL)


def complaint(stderr: str) -> str:
    """The last message that skopeo logged, without its frame."""
    messages = _MESSAGE.findall(stderr)
    text = messages[-1].replace('\\"', '"').replace("\\n", " ") if messages else stderr.strip().rpartition("\n")[2]
    return " ".join(text.split())


def translate(text: str, reference: Reference, *, has_auth: bool) -> errors.AtollError:
    """The error for what skopeo said about `reference`: its kind by the registry itself; mirrors are quoted."""
    if "invalid reference format" in text.lower():
        return errors.InvalidArgument(f"{reference}: skopeo takes no such name: {_clipped(text)}")
    mirrored = _MIRRORS.search(text)
    error = _translate(mirrored[2] if mirrored else text, reference, has_auth=has_auth)
    return type(error)(f"{error}; its mirrors: {_clipped(mirrored[1])}") if mirrored else error


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else "... " + text[-_MAX_CHARACTERS:]


def _translate(text: str, reference: Reference, *, has_auth: bool) -> errors.AtollError:
    said = _clipped(text)
    lower = text.lower()
    domain = reference.domain

    def has(marks: tuple[str, ...]) -> bool:
        return any(re.search(rf"(?<![0-9a-f]){re.escape(mark)}(?![0-9a-f])", lower) for mark in marks)

    if has(_NOT_FOUND):
        return errors.NotFound(f"{reference}: {domain} does not have it; check the name and the tag")
    if has(_WRONG):
        return errors.DataLoss(f"{reference}: {domain} sent something else than its digest says: {said}")
    if has(_NOT_TRUSTED):
        return errors.Unavailable(
            f"{reference}: the certificate of {domain} is not trusted: {said}; "
            "set ca_file (or skip_verify) for this registry in the config file"
        )
    if has(_PLAIN_HTTP):
        return errors.Unavailable(
            f"{reference}: {domain} speaks plain http; set plain_http for this registry in the config file"
        )
    if has(_UNAUTHENTICATED) and not has(("denied",)):
        way = "refuses these credentials" if has_auth else "wants credentials"
        return errors.Unauthenticated(
            f"{reference}: {domain} {way}; give them (`atoll login {domain}`), or name an auth_file in the config file"
        )
    if has(_DENIED):
        hint = "these credentials may not read it" if has_auth else "it does not exist or needs credentials"
        return errors.PermissionDenied(f"{reference}: {domain} denies access: {hint}")
    if has(_UNAVAILABLE):
        return errors.Unavailable(f"{reference}: cannot reach {domain}: {said}; check the address and the network")
    return errors.Unknown(f"{reference}: skopeo failed: {said or 'without a word'}")
