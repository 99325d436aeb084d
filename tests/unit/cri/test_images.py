"""The credentials that a CRI client sends with a pull."""

from __future__ import annotations

import base64

import pytest

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.cri.images import credentials
from atoll.image.config import Auth

NAME = "reg.example:5000/team/app:v1"
ADA = Auth(username="ada", password="a:b")


def both(text: bytes) -> str:
    return base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (pb.AuthConfig(username="ada", password="a:b"), ADA),
        (pb.AuthConfig(auth=both(b"ada:a:b")), ADA),
        (pb.AuthConfig(auth=both(b"ada:a:b\0\0")), ADA),
        (pb.AuthConfig(username="ada", password="a:b", auth=both(b"eve:x")), ADA),
        (pb.AuthConfig(identity_token="t"), Auth(identity_token="t")),
        (pb.AuthConfig(), None),
        (pb.AuthConfig(username="ada", password="a:b", server_address="https://reg.example:5000/v2/"), ADA),
        (pb.AuthConfig(username="ada", password="a:b", server_address="reg.example:5000"), ADA),
        (pb.AuthConfig(username="ada", password="a:b", server_address="https://other.example"), None),
    ],
)
def test_every_form_of_credentials(given: pb.AuthConfig, found: Auth | None) -> None:
    assert credentials(given, NAME) == found


@pytest.mark.parametrize("server", ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"])
def test_docker_hub_has_several_names(server: str) -> None:
    assert credentials(pb.AuthConfig(username="ada", password="a:b", server_address=server), "busybox") == ADA


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (pb.AuthConfig(registry_token="t"), "registry_token: is not supported"),
        (pb.AuthConfig(auth="?"), "is not base64"),
        (pb.AuthConfig(auth="é"), "is not base64"),
        (pb.AuthConfig(auth=both(b"\xff\xfe:x")), "is not base64"),
    ],
)
def test_what_cannot_be_used_is_refused_without_its_value(given: pb.AuthConfig, said: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=said):
        credentials(given, NAME)
