"""References: docker's normalisation, strictness, and the way back to text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.image.reference import Reference, is_digest

DIGEST = "sha256:" + "0123456789abcdef" * 4
FORMS = {
    "busybox": ("docker.io/library/busybox:latest", "busybox:latest"),
    "busybox:1.36": ("docker.io/library/busybox:1.36", "busybox:1.36"),
    "team/app": ("docker.io/team/app:latest", "team/app:latest"),
    "docker.io/busybox": ("docker.io/library/busybox:latest", "busybox:latest"),
    "index.docker.io/library/busybox": ("docker.io/library/busybox:latest", "busybox:latest"),
    "docker.io/library/a/b:c": ("docker.io/library/a/b:c", "library/a/b:c"),
    "localhost/app": ("localhost/app:latest", "localhost/app:latest"),
    "localhost:5000/app:v1": ("localhost:5000/app:v1", "localhost:5000/app:v1"),
    "[::1]:5000/app": ("[::1]:5000/app:latest", "[::1]:5000/app:latest"),
    "registry.k8s.io/pause:3.10": ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
    "Registry.Example/app": ("Registry.Example/app:latest", "Registry.Example/app:latest"),
    f"busybox@{DIGEST}": (f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
    f"quay.io/a/b:v1@{DIGEST}": (f"quay.io/a/b:v1@{DIGEST}", f"quay.io/a/b:v1@{DIGEST}"),
    "a__b/c-d.e--f": ("docker.io/a__b/c-d.e--f:latest", "a__b/c-d.e--f:latest"),
}
WAYS_OUT = {
    "BAD::ref": "a `:` stands once",
    "a:b:c": "a `:` stands once",
    "UPPER/case": "lower case",
    "image:": "leave it out",
    "a//b": "small letters",
}
BAD = (
    *(
        "",
        " ",
        "a b",
        "a:",
        ":v1",
        "/app",
        "app/",
        "a//b",
        "-a",
        "a-",
        "a..b",
        "a___b",
        ".a",
        "a/-b",
        "App",
        "team/App",
    ),
    *(
        "app:v 1",
        "app:.v1",
        "app:-v1",
        "app:" + "v" * 129,
        "app@",
        "app@sha256:00",
        f"app@{DIGEST.upper()}",
        f"@{DIGEST}",
    ),
    *(f"app@md5:{'0' * 32}", f"{DIGEST}", "0" * 64, "../etc/passwd", "https://example.org/app", "example.org:port/app"),
    *(
        "example..org/app",
        "-example.org/app",
        "a/" + "b" * 254,
        "app\n",
        "app\0",
        "app:v1\n",
        "ünïcode",
        "a@b@c",
        "é.org/app",
    ),
)


@pytest.mark.parametrize("text", FORMS)
def test_normalised_as_docker_does(text: str) -> None:
    canonical, familiar = FORMS[text]
    reference = Reference.parse(text)
    assert str(reference) == canonical
    assert Reference.parse(canonical) == Reference.parse(familiar) == reference


@pytest.mark.parametrize("text", BAD)
def test_malformed_is_refused_in_one_line_that_names_it(text: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        Reference.parse(text)
    assert repr(text)[1:20] in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_whatever_is_given_is_refused_or_stable(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except errors.InvalidArgument:
        return
    assert Reference.parse(str(reference)) == reference
    assert reference.tag is not None or reference.digest is not None


def test_tag_and_digest_apart() -> None:
    reference = Reference.parse(f"quay.io/a/b:v1@{DIGEST}")
    assert (reference.repository, reference.tagged) == ("quay.io/a/b", "quay.io/a/b:v1")
    assert str(reference.with_digest(DIGEST)) == f"quay.io/a/b@{DIGEST}"


def test_digests() -> None:
    assert is_digest(DIGEST)
    assert not any(
        map(is_digest, (DIGEST[:-1], DIGEST + "0", DIGEST.upper(), DIGEST[7:], "sha512:" + "0" * 128, DIGEST + "\n"))
    )


@pytest.mark.parametrize("text", WAYS_OUT)
def test_a_bad_one_is_told_with_its_own_fault(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=WAYS_OUT[text]):
        Reference.parse(text)
